//! Stages: the steps of which a recipe's rules are made, as method crates define them.
//!
//! A rule of a recipe is a list of stages, such as smoothing, quantization and a low-rank correction. A method crate defines a
//! [`StageSpec`] for each kind of stage that it offers and registers it in a [`Stages`] registry. What reads recipes knows the registry
//! alone: it parses, prints and describes the parameters of every kind through one visitor ([`Fields`]), and [`assemble`] turns the stages
//! of a rule into a method and rewrites.

mod assemble;
mod fields;
mod registry;
mod target;

pub use assemble::{Assembled, assemble};
pub use fields::{Field, FieldKind, Fields, HasFields, List};
pub use registry::Stages;
pub use target::{Target, ValuesOf, set, value_of};

use crate::{Method, Pruner, Result, Rewrite};

/// What a stage (a step of the compression, such as smoothing or quantization) works on. The stages of a matrix are applied in the order of
/// the variants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
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
}

impl Slot {
    /// Returns the name of the slot for tables and messages, such as `quantize`.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Transform => "transform",
            Slot::Prune => "prune",
            Slot::Quantize => "quantize",
            Slot::Repair => "repair",
            Slot::Activations => "activations",
        }
    }
}

/// A function that returns a method around the given one, such as a method that adds a low-rank correction of the given method's error. It
/// errors if it cannot make this method, for example because a parameter of the method is invalid.
pub type Wrap = Box<dyn FnOnce(Box<dyn Method>) -> Result<Box<dyn Method>>>;

/// What a stage (a step of the compression, such as smoothing or quantization) contributes: a change before compression, a choice of
/// removed weights, the method that makes the stored form of the weights, or a method around it.
pub enum Part {
    /// A change of the site before its matrices are compressed.
    Rewrite(Box<dyn Rewrite>),
    /// The choice of weights that are removed.
    Prune(Box<dyn Pruner>),
    /// The method that makes the stored form of the weights (the base). Exactly one stage of a matrix makes it.
    Base(Box<dyn Method>),
    /// A method around that of other stages. Those of the stages in front of the base (the stage that makes the stored form) are put around
    /// it first, from the last to the first; then those of the stages after it, in order.
    Wrap(Wrap),
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
    /// Returns the kind of the stage, its name in recipes, such as `gptq`. It is unique in a registry.
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

    /// Returns what the stage contributes to the compression of the matrix `at`. Errors if parameters contradict each other, or do not suit
    /// the matrix or its other stages.
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>>;
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
