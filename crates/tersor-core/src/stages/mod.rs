//! Stages: the steps of which recipes are made, as method crates define them.
//!
//! A rule of a recipe is a list of stages, such as smoothing, quantization and a low-rank correction. Besides its rules, a recipe has
//! stages that change the whole network, such as a rotation, and stages that store the key-value cache. A method crate defines a
//! [`StageSpec`] for each kind of stage that it offers and registers it in a [`Stages`] registry. What reads recipes knows the registry
//! alone: it parses, prints and describes the parameters of every kind through one visitor ([`Fields`]), [`assemble`] turns the stages of
//! a rule into a method and rewrites, and [`Named::parse`] makes the stages that a name such as `w4-g128-gptq` stands for.

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

/// What a stage (a step of the compression, such as smoothing or quantization) works on. The stages of a matrix are applied in the order of
/// the variants from [`Transform`](Slot::Transform) to [`Activations`](Slot::Activations).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    /// A change of the whole network before anything is compressed, such as a rotation.
    Network,
    /// A change of a site (an input, and the matrices that read it) before these matrices are compressed, such as smoothing.
    Transform,
    /// The choice of weights that are removed.
    Prune,
    /// The stored form of the weights, such as quantization or factorization.
    Quantize,
    /// A correction of the error of the stages before, such as a low-rank one.
    Repair,
    /// The quantization of the inputs.
    Activations,
    /// The form in which a layer's cache stores keys and values.
    Cache,
}

impl Slot {
    /// Returns the name of the slot for tables and messages, such as `quantize`.
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

    /// Returns the list of a recipe that stages of this slot belong in.
    pub fn section(self) -> Section {
        match self {
            Slot::Network => Section::Network,
            Slot::Cache => Section::Cache,
            _ => Section::Rules,
        }
    }
}

/// The lists of stages that a recipe has. Kinds of stages are unique within one of them: `f16` is a stored form of weights in a rule, and a
/// form of the cache in the list of caches.
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

/// A function that returns a method around the given one, such as a method that adds a low-rank correction of the given method's error. It
/// errors if it cannot make this method, for example because a parameter of the method is invalid.
pub type Wrap = Box<dyn FnOnce(Box<dyn Method>) -> Result<Box<dyn Method>>>;

/// What a stage (a step of the compression, such as smoothing or quantization) contributes: a change before compression, a choice of
/// removed weights, the method that makes the stored form of the weights, a method around it, or a form of the cache.
pub enum Part {
    /// A change of the site before its matrices are compressed, or, from a stage of [`Slot::Network`], of the whole network.
    Rewrite(Box<dyn Rewrite>),
    /// The choice of weights that are removed.
    Prune(Box<dyn Pruner>),
    /// The method that makes the stored form of the weights (the base). Exactly one stage of a matrix makes it.
    Base(Box<dyn Method>),
    /// A method around that of other stages. Those of the stages in front of the base (the stage that makes the stored form) are put around
    /// it first, from the last to the first; then those of the stages after it, in order.
    Wrap(Wrap),
    /// The method of caching keys and values, from a stage of [`Slot::Cache`].
    Cache(Box<dyn CacheMethod>),
}

/// One stage with its parameters: a step of the compression of a matrix, such as smoothing or quantization. A recipe names it by its
/// [`kind`](Self::kind), such as `gptq`. A stage that the registry ([`Stages`]) makes has the default parameters.
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
    /// Returns the kind of the stage, its name in recipes, such as `gptq`. It is unique among the kinds of a registry that have the same
    /// [section](Slot::section).
    fn kind(&self) -> &'static str;

    /// Returns what the stage does, in one sentence.
    fn help(&self) -> &'static str;

    /// Returns the slot of the stage, which is what it works on, such as the stored form of the weights.
    fn slot(&self) -> Slot;

    /// Shows every parameter to `f`, in the order in which they are printed; `f` reads or replaces it. Errors if `f` does. By default the
    /// stage has no parameters.
    fn fields(&mut self, _f: &mut dyn Fields) -> Result<()> {
        Ok(())
    }

    /// Returns what the stage contributes to the compression of the matrix `at`; for a stage of [`Slot::Network`] or [`Slot::Cache`], `at`
    /// is [`Target::none`]. Errors if parameters contradict each other, or do not suit the matrix or its other stages.
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>>;

    /// Returns what a budget may choose among stages of this kind; None if this kind is no choice, which is the default.
    fn ways(&self) -> Option<Box<dyn Ways>> {
        None
    }

    /// Returns the words by which the name of a recipe asks for this stage, such as `gptq` in `w4-g128-gptq`. By default it is the kind
    /// alone.
    fn words(&self) -> Vec<&'static str> {
        vec![self.kind()]
    }

    /// Returns the segments of a recipe's name that set parameters of this stage, such as `g128`. By default there are none.
    fn segments(&self) -> Vec<Segment> {
        Vec::new()
    }

    /// Returns whether a recipe's name with a segment that no stage takes, such as `w4`, gets this stage if it takes the segment. By
    /// default it does not.
    fn is_default(&self) -> bool {
        false
    }

    /// Adds this stage, which the name of a recipe asks for by `word` (empty if a segment alone does), to that recipe, with other stages
    /// that the word stands for. The stages of a rule come before those of the network, and these before caches, and each in the order of
    /// [`Slot`]. By default the stage itself is added. Errors if the word does not suit what the recipe has already.
    fn add_to(&self, recipe: &mut Named<'_>, _word: &str) -> Result<()> {
        recipe.push(self.clone_stage());
        Ok(())
    }
}

/// Copying of a stage as a trait object; every [`StageSpec`] that is `Clone` implements it.
pub trait CloneStage {
    /// Returns a copy of the stage.
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
