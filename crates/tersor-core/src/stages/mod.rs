//! Stages: the steps of compression of which recipes are made, such as smoothing, quantization and low-rank correction. Method crates define them.
//!
//! A recipe has rules, each of which lists the stages of some matrices; stages that change the whole network, such as a rotation; and stages that
//! store the key-value cache. A method crate defines a [`StageSpec`] for each *kind* of stage that it offers (`gptq` is a kind) and registers it in a
//! [`Stages`] registry. Code that reads recipes knows the registry alone: it parses, prints and describes the parameters of every kind through one
//! visitor ([`Fields`]), turns the stages of a matrix into a method and rewrites ([`assemble`]), and makes the stages that a recipe name such as
//! `w4-g128-gptq` stands for ([`Named::parse`]).

mod assemble;
mod fields;
mod names;
mod registry;
mod target;
mod ways;

pub use assemble::{Assembled, assemble};
pub use fields::{Field, FieldKind, Fields, HasFields, List};
pub use names::{NameRule, Named, Segment};
pub use registry::Stages;
pub use target::{Target, ValuesOf, set, value_of};
pub use ways::{Measured, PreparedWays, Way, Ways};

use crate::{CacheMethod, Method, Pruner, Result, Rewrite};

/// The place of a stage (a step of compression, such as smoothing or quantization) among the stages of a recipe: what the stage works on. The stages
/// of a matrix are applied in the order of the variants from [`Transform`](Slot::Transform) to [`Activations`](Slot::Activations).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    /// A change of the whole network before anything is compressed, such as a rotation.
    Network,
    /// A change of a [`Site`](crate::Site) (an input of linear layers with the matrices that read it) before these matrices are compressed, such as
    /// smoothing.
    Transform,
    /// The choice of the weights of a matrix that become zero.
    Prune,
    /// The stored form of the weights of a matrix: quantization, factorization or a float type. One stage of each matrix makes it.
    Quantize,
    /// A correction of the error that the stages before cause, such as a low-rank one.
    Repair,
    /// The quantization of the inputs of a matrix while the network runs.
    Activations,
    /// The form in which a key-value cache is stored.
    Cache,
}

impl Slot {
    /// Returns the name of the slot in tables and messages: the variant in lower case, such as `quantize`.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Network => "network",
            Slot::Cache => "cache",
            Slot::Transform => "transform",
            Slot::Prune => "prune",
            Slot::Quantize => "quantize",
            Slot::Repair => "repair",
            Slot::Activations => "activations",
        }
    }

    /// Returns the list of a recipe that stages of this slot belong in: [`Section::Network`] for [`Slot::Network`], [`Section::Cache`] for
    /// [`Slot::Cache`], and [`Section::Rules`] for all other slots.
    pub fn section(self) -> Section {
        match self {
            Slot::Network => Section::Network,
            Slot::Cache => Section::Cache,
            _ => Section::Rules,
        }
    }
}

/// One of the three lists of stages (steps of compression) that a recipe has. A kind of stage, such as `f16`, is named uniquely within a list only:
/// `f16` is a stored form of weights in a rule, and a form of the cache in the list of caches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Section {
    /// The changes of the whole network before anything is compressed.
    Network,
    /// The stages of the rules, each of which says how some matrices are compressed.
    Rules,
    /// The forms of the key-value caches.
    Cache,
}

impl Section {
    /// Returns the name of the list in a recipe file: `network`, `rules` or `cache`.
    pub fn name(self) -> &'static str {
        match self {
            Section::Network => "network",
            Section::Rules => "rules",
            Section::Cache => "cache",
        }
    }
}

/// A function that takes a method of compression and returns a method around it, such as one that adds a low-rank correction of the error of the
/// given method. It errors if it cannot make this method, for example because a parameter is invalid.
pub type Wrap = Box<dyn FnOnce(Box<dyn Method>) -> Result<Box<dyn Method>>>;

/// What one stage (a step of compression, such as smoothing or quantization) contributes to the compression of a matrix, of the network or of the
/// cache. [`StageSpec::parts`] returns it.
pub enum Part {
    /// A change of the [`Site`](crate::Site) of a matrix (its input, with all matrices that read this input) before these matrices are compressed;
    /// from a stage of [`Slot::Network`], a change of the whole network.
    Rewrite(Box<dyn Rewrite>),
    /// The choice of the weights of the matrix that become zero.
    Prune(Box<dyn Pruner>),
    /// The method that makes the stored form of the weights, called the base. Exactly one stage of a matrix has this part.
    Base(Box<dyn Method>),
    /// A method around the method of other stages. [`assemble`] puts the wraps in front of the [`Base`](Self::Base) around it first, from the last to
    /// the first, and then the wraps behind it, in order.
    Wrap(Wrap),
    /// The method of storing keys and values, from a stage of [`Slot::Cache`].
    Cache(Box<dyn CacheMethod>),
}

/// A stage with its parameters: a step of compression, such as smoothing or quantization. A recipe names it by its [`kind`](Self::kind), such as
/// `gptq`. The registry ([`Stages`]) holds one stage of each kind, whose parameters are the defaults of the kind.
///
/// ```
/// use tersor_core::stages::{Fields, Part, Slot, StageSpec, Stages, Target};
/// use tersor_core::Result;
///
/// /// Removes the smallest weights.
/// #[derive(Clone)]
/// struct Smallest {
///     sparsity: f64,
/// }
///
/// impl StageSpec for Smallest {
///     fn kind(&self) -> &'static str {
///         "smallest"
///     }
///     fn help(&self) -> &'static str {
///         "Removes the weights of the smallest magnitude in each row."
///     }
///     fn slot(&self) -> Slot {
///         Slot::Prune
///     }
///     fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
///         f.float("sparsity", "Share of the weights that are removed.", 0.0..=1.0, &mut self.sparsity)
///     }
///     fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
///         Ok(Vec::new())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut stages = Stages::new();
/// stages.register(Smallest { sparsity: 0.5 });
/// assert_eq!(stages.make("smallest")?.slot(), Slot::Prune);
/// assert!(stages.make("largest").is_err());
/// # Ok(())
/// # }
/// ```
pub trait StageSpec: CloneStage + Send + Sync {
    /// Returns the name of the kind of stage in recipes, such as `gptq`. It is unique among the kinds of a registry that belong in the same list of a
    /// recipe ([`Slot::section`]).
    fn kind(&self) -> &'static str;

    /// Returns what the stage does, as one sentence with a full stop.
    fn help(&self) -> &'static str;

    /// Returns the [`Slot`] of the stage: what it works on, such as the stored form of the weights. It does not depend on the parameters.
    fn slot(&self) -> Slot;

    /// Shows every parameter of the stage to the visitor `f`, in the order in which they are printed; `f` reads the value of a parameter or replaces
    /// it. By default the stage has no parameters. Errors as `f` does, which refuses values that are out of range; parameters that were visited
    /// before may have new values then.
    fn fields(&mut self, _f: &mut dyn Fields) -> Result<()> {
        Ok(())
    }

    /// Returns what the stage contributes to the compression of the matrix `at`. For a stage of [`Slot::Network`] or [`Slot::Cache`], `at` is
    /// [`Target::none`], which has no matrix. Errors, usually with [`Error::Param`](crate::Error::Param), if parameters contradict each other, or do
    /// not suit the matrix or its other stages.
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>>;

    /// Returns the forms in which this kind of stage may store a matrix for a budget ([`Ways`]), whatever the parameters of this stage are. None, the
    /// default, if a budget does not choose this kind.
    fn ways(&self) -> Option<Box<dyn Ways>> {
        None
    }

    /// Returns the words by which the name of a recipe asks for this stage, such as `gptq` in `w4-g128-gptq`. By default the only one is the kind.
    /// For a stage of [`Slot::Cache`] they have no effect: a name does not ask for it by a word.
    fn words(&self) -> Vec<&'static str> {
        vec![self.kind()]
    }

    /// Returns the forms of the segments that set parameters of this stage in the name of a recipe (or, for a stage of [`Slot::Cache`], of a cache),
    /// such as `g<number>` for the group size. A segment is a part of a name between two `-`. By default there are none.
    fn segments(&self) -> Vec<Segment> {
        Vec::new()
    }

    /// Returns whether a recipe name gets this stage without a word that asks for it, if the name has a segment, such as `w4`, that no other stage of
    /// the name takes and this stage does ([`segments`](Self::segments)). By default it does not.
    fn is_default(&self) -> bool {
        false
    }

    /// Adds this stage to `recipe`, with any other stages that `word` stands for; by default, adds the stage alone ([`Named::push`]). `word` is the
    /// word of the recipe's name that asks for the stage, empty if only a segment such as `w4` does. [`Named::parse`] calls it for the stages of the
    /// rules, then for those of the network, then for those of caches, each in the order of [`Slot`]. Errors, usually with
    /// [`Error::Param`](crate::Error::Param), if the word does not suit what the recipe has already; the default cannot fail.
    fn add_to(&self, recipe: &mut Named<'_>, _word: &str) -> Result<()> {
        recipe.push(self.clone_stage());
        Ok(())
    }
}

/// Copying of a [`StageSpec`] (a step of compression with its parameters) behind `dyn StageSpec`. Every `StageSpec` that is `Clone` implements it.
pub trait CloneStage {
    /// Returns a copy of the stage with its parameters.
    fn clone_stage(&self) -> Box<dyn StageSpec>;
}

impl<T: StageSpec + Clone + 'static> CloneStage for T {
    fn clone_stage(&self) -> Box<dyn StageSpec> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn StageSpec> {
    fn clone(&self) -> Self {
        self.clone_stage()
    }
}
