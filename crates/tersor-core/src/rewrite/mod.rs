//! [`Rewrite`]: changes of a network's sites before its matrices are compressed.

mod changes;

use crate::{Context, Fold, Layout, LinearOp, Method, Result, RowSource, Site, StatNeeds, StatSet, TensorInfo};
pub use changes::Changes;

/// Which sites a rewrite sees at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One after the other, each on weights that the rewrites of the sites before it have changed.
    Site,
    /// All sites of the network, before anything else happens.
    Network,
}

/// What a rewrite will do to a tensor, known from headers alone.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Its values change; a vector is stored in f32 then.
    Values,
    /// An axis gets another length: rows and columns afterwards.
    Shape([usize; 2]),
    /// The inputs of the matrix are changed when the network runs, by what these tensors describe, stored beside it.
    Online(Layout),
    /// A tensor that was shared with this one (a head that is the embedding) becomes one of its own, made of the tensor `from`.
    Untie {
        /// Name of the tensor that it was.
        from: String,
    },
    /// It is new; it is stored in the same file as `beside`.
    New {
        /// Type and shape.
        info: TensorInfo,
        /// Name of a tensor of the model.
        beside: String,
    },
}

/// A change of sites before compression: smoothing, rotation, structured pruning, the allocation of parameters. It says from headers what it
/// will change, so that plans are exact.
pub trait Rewrite: Send + Sync {
    /// Returns a short name for reports: `awq`.
    fn name(&self) -> String;
    /// Returns which sites it sees at once.
    fn scope(&self) -> Scope;
    /// Returns what it needs to know about the inputs of a site; none of a site that it leaves as it is. `sample` tokens are those of whole
    /// windows, from the first on.
    fn needs(&self, site: &Site) -> StatNeeds;
    /// Returns every tensor that it will change or make, with the effect, from headers alone. Errors if the network cannot be rewritten so.
    fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>>;
    /// Returns folds that the network must have while it is observed. Errors as [`rewrite`](Self::rewrite).
    fn observed_with(&self, sites: &[Site], weights: &dyn Weights) -> Result<Vec<Fold>> {
        let _ = (sites, weights);
        Ok(Vec::new())
    }
    /// Finds the changes of these sites. Errors if the statistics lack what is needed or a weight is not finite.
    fn rewrite(&self, sites: &[Site], weights: &dyn Weights, seen: &dyn Seen, cx: &Context) -> Result<Changes>;
}

/// The weights of a network, with the changes that were found before.
pub trait Weights: Sync {
    /// Returns the rows of a matrix or vector (a vector is one row). Errors if there is no such tensor.
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>>;
}

/// What was seen of a network on calibration data.
pub trait Seen: Sync {
    /// Calls `f` with the sites that the rewrite sees, those of a layer at a time, in the order of the network. Errors if `f` does.
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()>;
    /// Returns the divergence of the network's predictions from the original's with these folds. None where nothing measures it.
    fn effect(&self, folds: &[Fold]) -> Option<Result<f64>> {
        let _ = folds;
        None
    }
}

/// Nothing was seen: for rewrites that need no data.
pub struct Unseen;

impl Seen for Unseen {
    fn each(&self, _: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// The output of the module behind a site for inputs `[tokens, features]`, with these operators in the place of its matrices. With `true` it
/// goes through the matrix that comes next in the network as it was (attention's output through the output projection, the inner activations
/// through the down projection).
pub type ModuleOutput<'a> = dyn Fn(&[f32], &[&dyn LinearOp], bool) -> Result<Vec<f32>> + Sync + 'a;

/// Keys after their rotary embedding, and values, `[tokens, kv_heads * head_dim]` each: what a cache would keep.
pub type KeysAndValues = [Vec<f32>; 2];

/// From inputs of whole windows to the keys and values that are made of them; none where the site makes none.
pub type MakesKeysAndValues<'a> = dyn Fn(&[f32]) -> Result<Option<KeysAndValues>> + Sync + 'a;

/// What was seen of one site.
pub struct SeenSite<'a> {
    /// The site.
    pub site: &'a Site,
    /// Statistics of its inputs.
    pub stats: &'a StatSet,
    /// Inputs of whole windows, `[tokens, features]`.
    pub sample: &'a [f32],
    /// The output of the module on the sample.
    pub output: &'a ModuleOutput<'a>,
    /// Keys and values of the sample.
    pub keys_and_values: &'a MakesKeysAndValues<'a>,
    /// For each consumer the method without data that stands for what it will become; none where that is not known.
    pub plain: &'a [Option<&'a dyn Method>],
}
