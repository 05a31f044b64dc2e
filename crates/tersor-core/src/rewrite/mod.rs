//! [`Rewrite`]: changes of a network's sites before its matrices are compressed.

mod changes;

use crate::{Context, Fold, Layout, LinearOp, Method, Result, RowSource, Site, StatNeeds, StatSet, TensorInfo};
pub use changes::Changes;

/// The sites that a rewrite gets in one call: one site, or all sites of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One site after the other, each with weights that the rewrites of earlier sites have changed.
    Site,
    /// All sites of the network together, before anything else is done.
    Network,
}

/// The effect of a rewrite on a tensor, known from headers alone.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// The tensor's values change; a vector is stored in f32 then.
    Values,
    /// The tensor's shape changes to these rows and columns.
    Shape([usize; 2]),
    /// The inputs of the matrix are changed at run time, as described by these tensors, which are stored beside it.
    Online(Layout),
    /// A tensor that was tied to another one (a head that is the embedding) becomes a tensor of its own, computed from the tensor `from`.
    Untie {
        /// The name of the tensor that it was tied to.
        from: String,
    },
    /// The tensor is new; it is stored in the same file as the tensor `beside`.
    New {
        /// The type and shape of the new tensor.
        info: TensorInfo,
        /// The name of a tensor of the model in whose file the new tensor is stored.
        beside: String,
    },
}

/// A change of [`Site`]s (matrices that read the same input, and what produces it) before compression, such as smoothing, rotation, structured
/// pruning or the allocation of parameters. [`plan`](Self::plan) states from names and shapes alone which tensors it will change and how, so that
/// stored sizes are exact before any weight is read; [`rewrite`](Self::rewrite) computes the changes.
///
/// ```
/// use tersor_core::*;
///
/// /// Multiplies the columns of every consumer by 2 and halves the weight of the norm in front.
/// struct Twice;
///
/// impl Rewrite for Twice {
///     fn name(&self) -> String {
///         "twice".into()
///     }
///     fn scope(&self) -> Scope {
///         Scope::Site
///     }
///     fn needs(&self, _site: &Site) -> StatNeeds {
///         StatNeeds::none()
///     }
///     fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>> {
///         let consumers = sites.iter().flat_map(|s| &s.consumers).map(|c| c.weight.clone());
///         let norms = sites.iter().filter_map(|s| match &s.producer {
///             Producer::Norm { weight } => Some(weight.clone()),
///             _ => None,
///         });
///         Ok(consumers.chain(norms).map(|weight| (weight, Effect::Values)).collect())
///     }
///     fn rewrite(&self, sites: &[Site], _: &dyn Weights, _: &dyn Seen, _: &Context) -> Result<Changes> {
///         let mut changes = Changes::default();
///         for site in sites {
///             let Producer::Norm { weight } = &site.producer else { continue };
///             let scale = |factor: f32| Transform::Scale(vec![factor; site.features]);
///             let fold = |weight: &str, transform: Transform| Fold { weight: weight.into(), side: Side::Input, transform };
///             changes.folds.push(fold(weight, scale(0.5)));
///             changes.folds.extend(site.consumers.iter().map(|c| fold(&c.weight, scale(2.0))));
///         }
///         Ok(changes)
///     }
/// }
///
/// /// A network whose weights are all ones.
/// struct Ones;
///
/// impl Weights for Ones {
///     fn rows<'w>(&'w self, _name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
///         Ok(Box::new(MatView::new(&[1.0f32; 4], [2, 2])?))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let site = Site {
///     name: "up".into(),
///     layer: None,
///     features: 2,
///     consumers: vec![Consumer { weight: "up.weight".into(), shape: [2, 2], role: Role::Up }],
///     producer: Producer::Norm { weight: "norm.weight".into() },
///     writers: vec![],
/// };
/// let sites = [site];
/// assert_eq!(Twice.plan(&sites)?.len(), 2);
/// let changes = Twice.rewrite(&sites, &Ones, &Unseen, &Context::new())?;
/// let up = Ones.rows("up.weight")?;
/// assert_eq!(read_finite(&FoldedRows::new(&*up, "up.weight", &changes.folds)?, 0..1)?, [2.0, 2.0]);
/// # Ok(())
/// # }
/// ```
pub trait Rewrite: Send + Sync {
    /// Returns a short name for reports, such as `awq`.
    fn name(&self) -> String;
    /// Returns which sites the rewrite gets at once.
    fn scope(&self) -> Scope;
    /// Returns the statistics that the rewrite needs of the inputs of a site; none for a site that it leaves unchanged. The `sample` tokens
    /// are those of whole windows (calibration sequences), from the first window on.
    fn needs(&self, site: &Site) -> StatNeeds;
    /// Returns every tensor that the rewrite will change or add, with the effect, from the sites alone. Errors if the network cannot be
    /// rewritten this way.
    fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>>;
    /// Returns folds that must be applied to the network while its inputs are observed; none by default. Errors if a weight is missing or
    /// not finite.
    fn observed_with(&self, sites: &[Site], weights: &dyn Weights) -> Result<Vec<Fold>> {
        let _ = (sites, weights);
        Ok(Vec::new())
    }
    /// Computes the changes of these sites from the weights and the observations `seen`. Errors if the statistics lack something that is
    /// needed, a weight is missing or not finite, or `cx` is cancelled.
    fn rewrite(&self, sites: &[Site], weights: &dyn Weights, seen: &dyn Seen, cx: &Context) -> Result<Changes>;
}

/// The weights of a network, with the changes of earlier rewrites applied.
pub trait Weights: Sync {
    /// Returns the rows of a matrix or vector (a vector is one row). Errors if there is no such tensor.
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>>;
}

/// The observations of a network on calibration data, for a [`Rewrite`].
pub trait Seen: Sync {
    /// Calls `f` with the observed sites, those of one layer at a time, in the order of the network. Errors if `f` does or the sites cannot
    /// be observed.
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()>;
    /// Returns how far the predictions of the network with these folds applied are from those of the original, in a measure that the
    /// implementation chooses; None, the default, if it is not measured. Errors if the network cannot be run.
    fn effect(&self, folds: &[Fold]) -> Option<Result<f64>> {
        let _ = folds;
        None
    }
}

/// Observations of nothing, for rewrites that need no data.
pub struct Unseen;

impl Seen for Unseen {
    fn each(&self, _: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// A function that returns the output of the module that a [`Site`] belongs to, `[tokens, out_features]`. Its arguments are inputs
/// `[tokens, features]` for the tokens of [`SeenSite::sample`], one operator for each matrix of the site, in order, and a flag. If the flag
/// is set, the output also passes through the next matrix of the network with its original weights (the attention output through the output
/// projection, the inner activations through the down projection). Errors if the module cannot be computed, for example because an input is
/// not finite.
pub type ModuleOutput<'a> = dyn Fn(&[f32], &[&dyn LinearOp], bool) -> Result<Vec<f32>> + Sync + 'a;

/// The keys, with rotary embedding applied, and the values of some tokens, `[tokens, kv_heads * head_dim]` each: the content of the cache
/// of one layer.
pub type KeysAndValues = [Vec<f32>; 2];

/// A function that returns the keys and values of a [`Site`] for inputs `[tokens, features]`, for the tokens of [`SeenSite::sample`]; None
/// if the site does not produce keys and values. Errors if they cannot be computed, for example because an input is not finite.
pub type MakesKeysAndValues<'a> = dyn Fn(&[f32]) -> Result<Option<KeysAndValues>> + Sync + 'a;

/// The observations of one site on calibration data: statistics and samples of its inputs, and the outputs of its module.
pub struct SeenSite<'a> {
    /// The observed site.
    pub site: &'a Site,
    /// The statistics of the observed site's inputs.
    pub stats: &'a StatSet,
    /// Inputs of the observed site, `[tokens, features]`, for the first windows (whole calibration sequences) one after the other.
    pub sample: &'a [f32],
    /// The output of the module that the observed site belongs to, as a function of the site's inputs and of operators in place of its
    /// matrices.
    pub output: &'a ModuleOutput<'a>,
    /// The keys and values of the observed site, as a function of the site's inputs.
    pub keys_and_values: &'a MakesKeysAndValues<'a>,
    /// For each consumer of the observed site, the method without data that has the stored form it will be compressed to, or None if that
    /// is not known. Empty if it is not known for any consumer.
    pub plain: &'a [Option<&'a dyn Method>],
}
