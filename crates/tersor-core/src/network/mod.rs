//! [`Network`]: a neural network of this workspace or of the caller's own, as calibration, compression and evaluation run it.
//!
//! A network is a list of [`Site`]s (a site is one input and the weight matrices that read it, such as the input of q, k and v). It is divided into
//! *stages*, parts that run one after the other and of which one at a time is in memory, such as the layers of a transformer. The network computes
//! everything but the products with the matrices of sites. It asks a [`Tap`] for these, which multiplies with original or compressed matrices, and
//! observes the inputs.

mod batch;
mod check;
mod forward;
mod memory;
mod stream;

pub use batch::{Batch, Scores};
pub use check::check_network;
pub use forward::{Forward, Products};
pub use memory::MemWeights;
pub use stream::{Part, Stream};

use std::sync::Arc;

use crate::{Exec, Input, MatViewMut, Result, Site, Weights};

/// A network that can be calibrated and compressed. Every product of an activation with a weight matrix that may be compressed goes through a
/// [`Tap`]. The network computes the rest: norms, attention, activation functions, biases, residual connections. `tersor_pipeline::compress_network`
/// takes it.
///
/// ```
/// use std::sync::Arc;
/// use tersor_core::network::{Batch, MemWeights, Network, Scores, Stage, Stream, Tap, check_network};
/// use tersor_core::{Consumer, Exec, Input, MatViewMut, Producer, Result, Role, Site, Weights};
///
/// /// Two linear layers with a ReLU between them.
/// struct Mlp(Vec<Site>);
///
/// fn site(name: &str, shape: [usize; 2]) -> Site {
///     let consumers = vec![Consumer { weight: format!("{name}.weight"), shape, role: Role::Linear }];
///     let (producer, writers) = (Producer::Opaque, vec![]);
///     Site { name: name.into(), layer: None, features: shape[1], consumers, producer, writers }
/// }
///
/// impl Network for Mlp {
///     fn sites(&self) -> &[Site] {
///         &self.0
///     }
///     fn enter(&self, batch: &Batch, _: &dyn Weights, _: &Exec) -> Result<Stream> {
///         Stream::of("x", batch.shape.clone(), batch.values.clone())
///     }
///     fn stage<'n>(&'n self, _: usize, _: &dyn Weights) -> Result<Box<dyn Stage + 'n>> {
///         Ok(Box::new(Whole(self)))
///     }
///     fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, _: &dyn Weights) -> Result<Scores> {
///         Scores::of_logits(out.part("x")?, reference.map(|r| r.part("x")).transpose()?, &batch.labels)
///     }
/// }
///
/// struct Whole<'n>(&'n Mlp);
///
/// impl Stage for Whole<'_> {
///     fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
///         for (index, site) in self.0.0.iter().enumerate() {
///             let x = stream.take("x")?;
///             let [rows, out] = [x.shape[0], site.consumers[0].shape[0]];
///             let (input, mut y) = (Input::new(&x.values, [rows, site.features])?, vec![0.0; rows * out]);
///             tap.apply(index, 0, &input, &mut [MatViewMut::new(&mut y, [rows, out])?], exec)?;
///             if index == 0 {
///                 y.iter_mut().for_each(|v| *v = v.max(0.0));
///             }
///             stream.set("x", vec![rows, out], y)?;
///         }
///         Ok(stream)
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mlp = Mlp(vec![site("first", [3, 2]), site("second", [2, 3])]);
/// let mut weights = MemWeights::new();
/// weights.insert("first.weight", [3, 2], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
/// weights.insert("second.weight", [2, 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0])?;
/// check_network(&mlp, &weights)?;
/// assert_eq!((mlp.stages(), mlp.waves(0)), (1, vec![vec![0], vec![1]]));
/// # Ok(())
/// # }
/// ```
pub trait Network: Send + Sync {
    /// Returns the sites of the network in the order of execution; a site is one input and the weight matrices that read it. The index of a site in
    /// this list identifies it in [`Tap::apply`] and [`Network::waves`]. Every call must return the same list. [`check_network`] checks it.
    fn sites(&self) -> &[Site];

    /// Returns the number of stages: parts of the network that run one after the other and of which one at a time is in memory, such as layers. The
    /// provided method returns 1 if no site has a layer ([`Site::layer`]). Otherwise it returns one stage for each layer, and one more at the end if
    /// some site has no layer, such as that of an output head.
    fn stages(&self) -> usize {
        let layers = self.sites().iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1);
        layers + usize::from(layers == 0 || self.sites().iter().any(|s| s.layer.is_none()))
    }

    /// Returns the indices of the sites of stage `stage`, counted from 0, as a list of waves. A wave is a set of sites that do not depend on each
    /// other's outputs, so that one pass of the data gathers the statistics of all of them. The waves are in the order of execution. The provided
    /// method makes a wave of each site, and puts the sites without a layer ([`Site::layer`]) into the last stage. The list is empty for a stage
    /// without sites.
    fn waves(&self, stage: usize) -> Vec<Vec<usize>> {
        let last = self.stages().saturating_sub(1);
        let sites = self.sites().iter().enumerate();
        sites.filter(|(_, s)| s.layer.unwrap_or(last) == stage).map(|(index, _)| vec![index]).collect()
    }

    /// Returns the tensors that flow into the first stage for `batch`, such as token embeddings. `weights` has the weights by name, with the changes
    /// of rewrites (such as rotations) applied; embedding tables are read from it. `exec` has the threads to compute with. Errors if the batch has no
    /// input of the form that the network takes, or if a weight is missing or has another shape.
    fn enter(&self, batch: &Batch, weights: &dyn Weights, exec: &Exec) -> Result<Stream>;

    /// Loads stage `index`, counted from 0, and returns it. Weights other than the matrices of sites, such as norms and biases, are read from
    /// `weights`, which has the changes of rewrites (such as smoothing) applied. The matrices of sites are not read: the tap has them. The caller
    /// drops the stage when it is no longer needed. Errors if there is no such stage, or if a weight is missing, has another shape, or holds a value
    /// that is not finite.
    fn stage<'n>(&'n self, index: usize, weights: &dyn Weights) -> Result<Box<dyn Stage + 'n>>;

    /// Returns the scores of `out`, the output of the last stage for `batch`: against the labels of the batch (or the next tokens), where the network
    /// has such, and against `reference`, the output of the original network for the same batch, if it is given. `weights` has the weights by name,
    /// with the changes of rewrites applied. Errors if a tensor is missing from an output or has another shape, or if the outputs cannot be scored,
    /// for example because a logit is not finite.
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, weights: &dyn Weights) -> Result<Scores>;
}

/// A loaded stage of a [`Network`]: a part of the network, such as a layer, with its weights in memory, but without the matrices of its sites (a site
/// is one input and the matrices that read it).
pub trait Stage: Send + Sync {
    /// Computes the stage for one batch. `stream` has the tensors that flow into it. Returns the tensors that flow into the next stage, or after the
    /// last stage the output of the network. Each product with a matrix of a site of this stage goes through `tap`, exactly once in each call of this
    /// function. Where the input of one site depends on the output of another, the products are in the order of [`Network::sites`]. `exec` has the
    /// threads to compute with.
    ///
    /// Errors if the stream lacks a tensor that the stage reads, or the tensor has another shape. An error of the tap is returned as it is; it may be
    /// a request to stop ([`Error::Stopped`](crate::Error::Stopped)).
    fn run(&self, stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream>;
}

/// The products of a [`Network`] with the weight matrices of its sites (a site is one input and the matrices that read it). Calibration, compression
/// and evaluation each bring a tap of their own. It multiplies with original or compressed matrices, and may observe the inputs or stop the stage
/// early. It can be called from several threads.
pub trait Tap: Send + Sync {
    /// Computes `y[i] = x Wᵀ` for the matrices `first + i` of site `site`, one for each element of `y`. `site` is the index in [`Network::sites`],
    /// `first` the index of a matrix in [`Site::consumers`]. `x` is `[rows, features]`, `y[i]` is `[rows, out_features]`, both row-major, for all
    /// rows of the batch. What `y[i]` held before is overwritten; biases are not added. `exec` has the threads. A network may ask for the matrices of
    /// a site, such as q, k and v, in one call or in several, each with the same `x`: only the first call is observed.
    ///
    /// Errors if there is no such site or matrix in the stage, if a matrix is asked for a second time in a run of the stage, if a shape differs, or
    /// if a value of `x` is not finite. Errors with [`Error::Stopped`](crate::Error::Stopped), which the stage returns to its caller, if nothing
    /// further needs to be computed.
    fn apply(&self, site: usize, first: usize, x: &Input<'_>, y: &mut [MatViewMut<'_>], exec: &Exec) -> Result<()>;
}
