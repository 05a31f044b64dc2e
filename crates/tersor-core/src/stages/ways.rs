//! [`Ways`]: what a budget may choose for a matrix, with the measured error of each choice.

use std::sync::Arc;

use super::StageSpec;
use crate::{Context, LinearOp, Result, RowSource, StatNeeds, StatSet};

/// The ways in which one kind of stage may store a matrix, from which an allocator chooses under a budget: for example several numbers of
/// bits and group sizes. A stage that offers them returns them from [`StageSpec::ways`].
pub trait Ways: Send + Sync {
    /// Returns the statistics of the inputs that the ways need; none for ways that need no data. An allocator offers ways that need data
    /// for matrices whose inputs it observes, and the others for embeddings and heads.
    fn needs(&self) -> StatNeeds;

    /// Returns the stored bytes of the smallest way for a matrix of the shape `[out_features, in_features]`. Errors if it cannot be stored.
    fn smallest(&self, shape: [usize; 2]) -> Result<u64>;

    /// Does the work that all matrices with the same inputs share, on the statistics `stats` of these inputs. Errors if they lack what
    /// [`needs`](Self::needs) states, or the work fails.
    fn prepare<'s>(&'s self, stats: &'s StatSet, cx: &Context) -> Result<Box<dyn PreparedWays + 's>>;
}

/// [`Ways`] with the statistics of the inputs of a matrix.
pub trait PreparedWays: Send + Sync {
    /// Returns the ways to store `w`, `[out_features, in_features]`, with size and error of each. Errors if a weight is not finite or a way
    /// fails.
    fn measure(&self, w: &dyn RowSource, cx: &Context) -> Result<Measured>;

    /// Returns `w`, `[out_features, in_features]`, stored by the way `way`, one that [`measure`](Self::measure) returned for it. Errors if a
    /// weight is not finite or the way fails.
    fn store(&self, w: &dyn RowSource, way: &Way, cx: &Context) -> Result<Arc<dyn LinearOp>>;
}

/// What [`PreparedWays::measure`] finds for a matrix.
pub struct Measured {
    /// The ways to store the matrix.
    pub ways: Vec<Way>,
    /// The way by which the effect of the matrix on the network is to be measured, with much error, such as 3 bits. The loss of another way
    /// is taken to be this effect times the ratio of the errors.
    pub probe: Way,
}

/// One way to store a matrix.
#[derive(Clone)]
pub struct Way {
    /// The stages that store it.
    pub stages: Vec<Box<dyn StageSpec>>,
    /// Its stored bytes.
    pub bytes: u64,
    /// Its error, on at most 512 evenly spaced rows: the squared error of the outputs, `tr(E H Eᵀ)` with the sum `H` of the outer products of
    /// the calibration inputs, if the ways need data; the squared error of the weights otherwise.
    pub error: f64,
}
