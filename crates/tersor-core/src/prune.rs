//! [`Pruner`]: the choice of the weights of a matrix that become zero.

use std::ops::Range;

use crate::{Context, Extent, Mask, Result, RowSource, StatNeeds, StatSet};

/// A way to choose the weights of a matrix that become zero (pruning), with its parameters already checked. [`needs`](Self::needs) says
/// which statistics of the matrix's inputs are gathered, [`prepare`](Self::prepare) takes them, and [`PreparedPruner::prune`] chooses the
/// weights of a block of rows.
///
/// ```
/// use std::ops::Range;
/// use tersor_core::*;
///
/// /// Prunes the weights below a threshold.
/// struct Threshold(f32);
///
/// impl Pruner for Threshold {
///     fn name(&self) -> String {
///         "threshold".into()
///     }
///     fn needs(&self) -> StatNeeds {
///         StatNeeds::none()
///     }
///     fn prepare<'s>(&'s self, _stats: &StatSet, _cx: &Context) -> Result<Box<dyn PreparedPruner + 's>> {
///         Ok(Box::new(Threshold(self.0)))
///     }
/// }
///
/// impl PreparedPruner for Threshold {
///     fn prune(&self, w: &dyn RowSource, _start: Option<&Pruned>, rows: Range<usize>, _cx: &Context) -> Result<Pruned> {
///         let (cols, values) = (w.shape()[1], read_finite(w, rows.clone())?);
///         let mask = Mask::from_fn([rows.len(), cols], |r, c| values[r * cols + c].abs() >= self.0)?;
///         Ok(Pruned { mask, values: None })
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let data = [0.1f32, -2.0, 3.0, 0.0];
/// let cx = Context::new();
/// let pruned = Threshold(1.0).prepare(&StatSet::none(), &cx)?.prune(&MatView::new(&data, [2, 2])?, None, 0..2, &cx)?;
/// assert_eq!(pruned.mask.sparsity(), 0.5);
/// # Ok(())
/// # }
/// ```
pub trait Pruner: Send + Sync {
    /// Returns a short name for reports, such as `wanda`.
    fn name(&self) -> String;
    /// Returns which statistics of the matrix's inputs [`prepare`](Self::prepare) needs; [`StatNeeds::none`] if it needs no data.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are pruned in independent blocks (the default) or all together, for example with one threshold for the whole
    /// matrix.
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Does the work that all matrices of a site (the linear layers that read the same input) share, from the statistics of their inputs.
    /// The caller passes statistics that meet [`needs`](Self::needs). Errors if they lack something that is needed.
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn PreparedPruner + 's>>;
}

/// A [`Pruner`] with the work done that all matrices of a [site](crate::Site) share (the linear layers that read the same input, such as q,
/// k and v). Made by [`Pruner::prepare`].
pub trait PreparedPruner: Send + Sync {
    /// Prunes the rows `rows` of `dense` `[out_features, in_features]`, and returns the result for these rows only. The caller passes all
    /// rows or, if [`Pruner::extent`] is [`Extent::Blocks`], a block that starts at a multiple of [`ROW_UNIT`](crate::method::ROW_UNIT).
    /// `start` is the result of another pruner for the same rows, which this one refines; None if there is none. Errors if a value is not
    /// finite, with its row and column in `dense`, if the range is invalid, or if `cx` is cancelled.
    fn prune(&self, dense: &dyn RowSource, start: Option<&Pruned>, rows: Range<usize>, cx: &Context) -> Result<Pruned>;
}

/// The result of pruning some rows of a matrix: the mask of the weights that are kept and, if the pruner changed kept weights (as SparseGPT
/// does), their new values.
#[derive(Clone, PartialEq, Debug)]
pub struct Pruned {
    /// Which weights are kept, for the rows `rows` that were passed to [`PreparedPruner::prune`]: `[rows.len(), cols]`, whose row 0 is row
    /// `rows.start` of the matrix.
    pub mask: Mask,
    /// The new weights of the same rows, `[rows.len(), cols]` row-major, if the pruner changed weights that it keeps. None if all kept
    /// weights have their original values. The values at pruned weights have no meaning: pruned weights are 0 in the compressed matrix.
    pub values: Option<Vec<f32>>,
}
