//! [`Rewrite`]: changes of a network's sites before its matrices are compressed.
//!
//! A [`Site`] is an input of one or more linear layers, such as q, k and v, with these layers and what produces the input. A [`Fold`] is a
//! change of one stored weight along its rows or columns. A rewrite gets sites and returns folds, with other [`Changes`].

mod changes;

use crate::{
    Context, Error, Fold, Layout, LinearOp, Method, Result, RowSource, Site, StatNeeds, StatSet, TensorInfo,
    read_finite,
};
pub use changes::Changes;

/// How many sites a [`Rewrite`] gets in one call: one, or all of the network. A [`Site`] is an input of one or more linear layers, such as
/// q, k and v, with these layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One site for each call, in the order of the network, with weights that the rewrites of earlier sites have changed.
    Site,
    /// All sites of the network in one call, before anything else is done.
    Network,
}

/// What a [`Rewrite`] does to one tensor, stated from names and shapes before any weight is read. The tensor gets other values (`Values`)
/// or another shape (`Shape`). Or the tensor is a matrix whose inputs will be changed at run time (`Online`). Or the tensor shared its
/// values with another one, such as an output head tied to the embedding, and becomes a tensor of its own (`Untie`). Or the tensor is new
/// (`New`).
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// The tensor's values change, its shape does not. If it is a vector, it is stored in f32 afterwards.
    Values,
    /// The tensor's shape changes to `[rows, cols]`.
    Shape([usize; 2]),
    /// The inputs of the matrix are changed at run time. The layout has the tensors that describe this change, which are stored beside the
    /// matrix, such as the signs of a rotation.
    Online(Layout),
    /// A tensor that shared its values with another one (a head that is tied to the embedding) becomes a tensor of its own, computed from
    /// the tensor `from`.
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

/// A change of a network before compression, such as smoothing, rotation, structured pruning or the allocation of parameters. It gets
/// [`Site`]s: a site is the input of one or more linear layers, such as q, k and v, with these layers and what produces the input.
/// [`plan`](Self::plan) states from names and shapes alone which tensors will change and how, so that stored sizes are exact before any
/// weight is read; [`rewrite`](Self::rewrite) computes the changes.
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
    /// Returns whether [`rewrite`](Self::rewrite) gets one site at a time, or all of the network at once.
    fn scope(&self) -> Scope;
    /// Returns the statistics that the rewrite needs of the inputs of `site`; [`StatNeeds::none`] for a site that it leaves unchanged. If a
    /// sample is requested, it consists of all tokens of whole windows (calibration sequences), from the first window on.
    fn needs(&self, site: &Site) -> StatNeeds;
    /// Returns the name of every tensor that the rewrite will change or add, with what happens to it, from the sites alone; a tensor may
    /// occur several times. Errors if the network cannot be rewritten this way.
    fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>>;
    /// Returns the changes of stored weights that must be applied to the network while its inputs are observed, for example norms that are
    /// folded into the matrices behind them; none by default. Errors if a weight is missing or not finite.
    fn observed_with(&self, sites: &[Site], weights: &dyn Weights) -> Result<Vec<Fold>> {
        let _ = (sites, weights);
        Ok(Vec::new())
    }
    /// Computes the changes of `sites` (one, or all of the network, as [`scope`](Self::scope) says) from the weights and the observations
    /// `seen`. Errors if the statistics lack something that is needed, a weight is missing or not finite, or `cx` is cancelled.
    fn rewrite(&self, sites: &[Site], weights: &dyn Weights, seen: &dyn Seen, cx: &Context) -> Result<Changes>;
}

/// Access to the weights of a network by name, with the changes of earlier rewrites applied. A [`Rewrite`] reads weights through it.
pub trait Weights: Sync {
    /// Returns the weight `name` as a matrix `[rows, cols]` that is read some rows at a time; a vector is one row. Errors if there is no
    /// such tensor.
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>>;
    /// Returns whether there is a weight called `name`. The provided method asks for its rows.
    fn has(&self, name: &str) -> bool {
        self.rows(name).is_ok()
    }
    /// Returns the vector `name` in f32. Errors if there is no such weight, it has not `len` elements, or one is not finite.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let rows = self.rows(name)?;
        if rows.shape() != [1, len] {
            return Err(Error::shape("shape of a vector", [1, len], rows.shape()).in_tensor(name));
        }
        read_finite(&*rows, 0..1).map_err(|e| e.in_tensor(name))
    }
}

/// Access to the observations of a network on calibration data: statistics and samples of the inputs of its sites (the inputs that one or
/// more linear layers share). A [`Rewrite`] reads observations through it.
pub trait Seen: Sync {
    /// Calls `f` with the observed sites, once for each layer, in the order of the network; if a single site was observed, once with this
    /// site. Errors, and stops, if `f` errors or the sites cannot be observed.
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()>;
    /// Returns how far the predictions of the network with the changes `folds` of its weights are from those of the original network. The
    /// implementation chooses the measure. None, the default, if it is not measured. Errors if the network cannot be run.
    fn effect(&self, folds: &[Fold]) -> Option<Result<f64>> {
        let _ = folds;
        None
    }
}

/// A [`Seen`] without observations, for rewrites that need no calibration data. [`Seen::each`] returns Ok without calling the function that
/// is passed to it, and [`Seen::effect`] returns None.
pub struct Unseen;

impl Seen for Unseen {
    fn each(&self, _: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// A function that computes the output of the module that reads the input of a [`Site`] (the input of one or more linear layers), with
/// other operators in place of the site's matrices; biases are kept.
///
/// The first argument holds inputs of the site for the tokens of [`SeenSite::sample`], `[tokens, features]` row-major. The second holds one
/// operator for each of [`Site::consumers`], in order, of the same shape as that matrix. The third is a flag that says whether the matrix
/// behind the module is applied too, with its original weights.
///
/// The result is `[tokens, out_features]`, row-major. For q, k and v it is the output of attention; with the flag, this output after the
/// output projection. For gate and up it is the inner activations of the feed-forward block; with the flag, these activations after the
/// down projection. For any other matrix it is the product of the inputs with this matrix, whatever the flag. Errors if the length of the
/// inputs, the number of operators or the number of columns of an operator does not match, or if the module cannot be computed, for example
/// because an input is not finite. An operator with another number of rows than its matrix may give an error, wrong values or a panic.
pub type ModuleOutput<'a> = dyn Fn(&[f32], &[&dyn LinearOp], bool) -> Result<Vec<f32>> + Sync + 'a;

/// The keys, with rotary embedding applied, and then the values of some tokens in one layer, as a KV cache holds them; each is
/// `[tokens, kv_heads * head_dim]`, row-major.
pub type KeysAndValues = [Vec<f32>; 2];

/// A function that computes the keys and values that the key and value projections of a [`Site`] (the input of one or more linear layers)
/// give for other inputs of the site. The argument is these inputs, `[tokens, features]` row-major, for the tokens of [`SeenSite::sample`].
/// Returns None if the site is not the input of key and value projections, or if the model is not a decoder. Errors if the argument has
/// another length, or if the keys and values cannot be computed, for example because an input is not finite.
pub type MakesKeysAndValues<'a> = dyn Fn(&[f32]) -> Result<Option<KeysAndValues>> + Sync + 'a;

/// What was observed of one [`Site`] (an input of one or more linear layers, such as q, k and v) on calibration data: statistics and a
/// sample of the inputs, and functions that compute outputs, keys and values from inputs.
pub struct SeenSite<'a> {
    /// The site that was observed: the input of one or more linear layers, with these layers and what produces the input.
    pub site: &'a Site,
    /// The statistics of the site's inputs (the inputs that one or more linear layers share) over all calibration data, those that
    /// [`Rewrite::needs`] requested.
    pub stats: &'a StatSet,
    /// A sample of the site's inputs (the inputs that one or more linear layers share), `[tokens, features]` row-major: all tokens of the
    /// first windows (whole calibration sequences), one window after the other. There are as many windows as fit in the number of tokens
    /// that [`Rewrite::needs`] requested, but at least one; there may be more if another site of the same layer requested more tokens.
    /// Empty if [`Rewrite::needs`] requested no sample of this site.
    pub sample: &'a [f32],
    /// Computes the output of the module that reads the site's input (such as attention for q, k and v), with other operators in place of
    /// the site's matrices. The arguments are inputs of the sampled tokens, `[tokens, features]` row-major; one operator for each of
    /// [`Site::consumers`], in order; and a flag. If the flag is true, the matrix behind the module is applied too, with its original
    /// weights: the output projection behind attention, or the down projection behind gate and up; for other sites the flag has no effect.
    /// The result is row-major, `[tokens, out_features]`. [`ModuleOutput`] says when it errors.
    pub output: &'a ModuleOutput<'a>,
    /// Computes the keys and values that the site's key and value projections give for inputs of the sampled tokens. The argument is these
    /// inputs, `[tokens, features]` row-major. The result is keys and then values, each `[tokens, kv_heads * head_dim]` row-major; None if
    /// the site has no such projections or the model is not a decoder. [`MakesKeysAndValues`] says when it errors.
    pub keys_and_values: &'a MakesKeysAndValues<'a>,
    /// For each of [`Site::consumers`] (the weight matrices that read the site's input), in order, a method that needs no calibration data
    /// and has the stored form that the matrix will be compressed to ([`Method::plain`]). Rewrites use it to try out changes. The entry is
    /// None if there is no such method for the matrix. The slice may be empty if there is no such method for any of the matrices.
    pub plain: &'a [Option<&'a dyn Method>],
}
