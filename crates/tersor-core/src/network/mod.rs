//! [`Network`]: a network that calibration, compression and evaluation can run, of this workspace or of a user.
//!
//! A network is a list of [`Site`]s (inputs, each with the weight matrices that read it), divided into *stages* that are in memory one at a
//! time, such as the layers of a transformer. It computes everything but the products of its matrices: these go through a [`Tap`], which
//! multiplies with the original matrices or with compressed ones, observes the inputs, or stops early.

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

/// A network that can be calibrated and compressed. Every product of an activation with a weight matrix that is to be compressed goes
/// through a [`Tap`]; the network computes the rest: norms, attention, activation functions, biases, residual connections.
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
    /// Returns the sites of the network (inputs, each with the weight matrices that read it), in the order of execution. The index of a site
    /// in this list identifies it in [`Tap::apply`] and [`Network::waves`]. [`check_network`] checks the list.
    fn sites(&self) -> &[Site];

    /// Returns the number of stages: the parts of the network that are in memory one at a time and run one after the other, such as layers.
    /// The provided method returns 1 if no site has a layer ([`Site::layer`]); otherwise one for each layer, and one more if some site has
    /// no layer, such as that of an output head.
    fn stages(&self) -> usize {
        let layers = self.sites().iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1);
        layers + usize::from(layers == 0 || self.sites().iter().any(|s| s.layer.is_none()))
    }

    /// Returns the indices of the sites of stage `stage`, counted from 0, in waves: the waves are in the order of execution, and the sites of
    /// a wave do not depend on each other's outputs, so that one pass of the data gathers the statistics of all of them. The provided method
    /// makes a wave of each site, and puts the sites without a layer ([`Site::layer`]) into the last stage.
    fn waves(&self, stage: usize) -> Vec<Vec<usize>> {
        let last = self.stages().saturating_sub(1);
        let sites = self.sites().iter().enumerate();
        sites.filter(|(_, s)| s.layer.unwrap_or(last) == stage).map(|(index, _)| vec![index]).collect()
    }

    /// Returns what flows into the first stage for a batch, such as token embeddings. Embedding tables are read from `weights`. Errors if the
    /// batch is not what the network takes, or a weight is missing.
    fn enter(&self, batch: &Batch, weights: &dyn Weights, exec: &Exec) -> Result<Stream>;

    /// Loads stage `index`, counted from 0. Weights other than the matrices of sites, such as norms and biases, are read from `weights`, which
    /// has the changes of rewrites applied; the matrices of sites are the tap's. The stage is dropped when it is no longer needed. Errors if
    /// there is no such stage, or a weight is missing, has another shape, or holds a value that is not finite.
    fn stage<'n>(&'n self, index: usize, weights: &dyn Weights) -> Result<Box<dyn Stage + 'n>>;

    /// Returns the figures of an output of the last stage for a batch: with `reference`, the output of the original network for the same
    /// batch, also how far the two agree. Errors if the output is not one of this network.
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, weights: &dyn Weights) -> Result<Scores>;
}

/// A stage of a [`Network`], in memory: a part that runs between two others, such as a layer.
pub trait Stage: Send + Sync {
    /// Returns what flows into the next stage, or the output of the network after the last stage, from what flows into this one. Each product
    /// with the matrices of a site goes through `tap`, once for each matrix and call, and in the order of [`Network::sites`] as far as one
    /// depends on another. An error of the tap is passed on; it may be a request to stop ([`Error::Stopped`](crate::Error::Stopped)). Errors
    /// also if the stream has not what the stage reads.
    fn run(&self, stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream>;
}

/// The products of a [`Network`] with the weight matrices of its sites. Calibration, compression and evaluation each bring a tap of their own:
/// it multiplies with the original matrices or with compressed ones, observes the inputs, or stops the stage early.
pub trait Tap: Send + Sync {
    /// Computes `y[i] = x Wᵀ` for the matrices `first + i` of site `site`, one for each entry of `y`: `site` is the index in
    /// [`Network::sites`], `first` that of a matrix in [`Site::consumers`]. A network may ask for all matrices of a site in one call or in
    /// several, such as for q, k and v. `x` is `[rows, features]` and `y[i]` is `[rows, out_features]`, row-major, for all rows of the batch.
    /// Biases are not added. Errors if there is no such site or matrix, a shape differs, or a value of `x` is not finite;
    /// with [`Error::Stopped`](crate::Error::Stopped), which the caller passes on, if what follows need not be computed.
    fn apply(&self, site: usize, first: usize, x: &Input<'_>, y: &mut [MatViewMut<'_>], exec: &Exec) -> Result<()>;
}
