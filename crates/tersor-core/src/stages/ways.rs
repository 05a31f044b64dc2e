//! [`Ways`]: the forms of a matrix among which a budget may choose, with the measured error of each.

use std::sync::Arc;

use super::StageSpec;
use crate::{Context, LinearOp, Result, RowSource, StatNeeds, StatSet};

/// The forms in which one kind of stage (a step of compression, such as `gptq`) may store a matrix: for example several numbers of bits and group
/// sizes. An allocator chooses one of them for each matrix under a budget. A kind that offers forms returns them from [`StageSpec::ways`].
pub trait Ways: Send + Sync {
    /// Returns which statistics of the inputs of the matrix [`prepare`](Self::prepare) needs; [`StatNeeds::none`] for forms that need no data. An
    /// allocator offers forms that need data for matrices whose inputs it observes, and forms that need none for embeddings and output heads.
    fn needs(&self) -> StatNeeds;

    /// Returns the stored bytes of the smallest form of a matrix of the shape `shape`, `[out_features, in_features]`. Errors if the size overflows or
    /// a matrix of this shape cannot be stored.
    fn smallest(&self, shape: [usize; 2]) -> Result<u64>;

    /// Does the work that all matrices with the same inputs share, such as factoring a Hessian, and returns the prepared forms. `stats` has the
    /// statistics of these inputs ([`StatSet::none`] for forms that need no data), `cx` threads, seed and cancellation. Errors if `stats` lacks what
    /// [`needs`](Self::needs) returns, if the work fails numerically, or if it is cancelled.
    fn prepare<'s>(&'s self, stats: &'s StatSet, cx: &Context) -> Result<Box<dyn PreparedWays + 's>>;
}

/// The forms of [`Ways`], prepared with the statistics of the inputs of some matrices. [`Ways::prepare`] makes it.
pub trait PreparedWays: Send + Sync {
    /// Returns all forms of the matrix `w`, `[out_features, in_features]`, with size and error of each, and the form with which the effect of the
    /// matrix is to be measured. `cx` has threads, seed and cancellation. Errors if a weight is not finite, if a form cannot store the matrix, or if
    /// the work is cancelled.
    fn measure(&self, w: &dyn RowSource, cx: &Context) -> Result<Measured>;

    /// Returns the matrix `w`, `[out_features, in_features]`, stored in the form `way`, which must be one that [`measure`](Self::measure) returned
    /// for this matrix. `cx` has threads, seed and cancellation. Errors if a weight is not finite, if the form cannot store the matrix, or if the
    /// work is cancelled.
    fn store(&self, w: &dyn RowSource, way: &Way, cx: &Context) -> Result<Arc<dyn LinearOp>>;
}

/// The forms of a matrix with their errors, as [`PreparedWays::measure`] returns them.
pub struct Measured {
    /// The forms among which an allocator may choose, in any order.
    pub ways: Vec<Way>,
    /// The form in which the matrix is stored to measure its effect on the predictions of the network. Its error is large, such as that of 3 bits.
    /// The loss of another form is taken to be this effect times the ratio of the two errors.
    pub probe: Way,
}

/// One form in which a matrix can be stored, for an allocator: the stages that make it, its size and its error.
#[derive(Clone)]
pub struct Way {
    /// The stages (steps of compression, such as quantization) that store the matrix in this form, in the order of [`Slot`](super::Slot).
    pub stages: Vec<Box<dyn StageSpec>>,
    /// The stored bytes of the whole matrix in this form.
    pub bytes: u64,
    /// The squared error of this form, measured or estimated, on a sample of the rows (such as 512 evenly spaced ones) that is the same for all forms
    /// of the matrix. If the forms need data, it is that of the outputs, `tr(E H Eᵀ)`, for the error `E` of the weights and the Gram matrix `H` of
    /// the calibration inputs; otherwise that of the weights. All forms of a matrix and the probe have the same kind of error.
    pub error: f64,
}
