//! [`Pruner`]: the choice of the weights of a matrix that become zero.

use std::ops::Range;

use crate::{Context, Extent, Mask, Result, RowSource, StatNeeds, StatSet};

/// A way to choose the weights of a matrix that become zero, with its parameters already checked.
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
    /// Returns which statistics of the inputs the choice needs.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are pruned in independent blocks or all together (one threshold for the whole matrix).
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Does the work that all matrices of a site share, from the statistics of their inputs. Errors if the statistics lack something that
    /// is needed.
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn PreparedPruner + 's>>;
}

/// A [`Pruner`] after the work that all matrices of a [site](crate::Site) (those that read the same input) share; made by
/// [`Pruner::prepare`].
pub trait PreparedPruner: Send + Sync {
    /// Prunes the rows of a range of `dense`: all of them, or a block that starts at a multiple of [`ROW_UNIT`](crate::method::ROW_UNIT).
    /// `start` is the result of another pruner for the same rows, for pruners that refine one. Errors if a value is not finite, with its
    /// row and column, if the range is invalid, or if `cx` is cancelled.
    fn prune(&self, dense: &dyn RowSource, start: Option<&Pruned>, rows: Range<usize>, cx: &Context) -> Result<Pruned>;
}

/// The result of pruning some rows of a matrix: the mask, and the weights if kept ones changed.
#[derive(Clone, PartialEq, Debug)]
pub struct Pruned {
    /// The mask of the weights that are kept, `[rows, cols]` for the rows that were pruned.
    pub mask: Mask,
    /// The weights after pruning, `[rows, cols]` row-major, if the pruner changed weights that are kept; None if these are the original
    /// ones.
    pub values: Option<Vec<f32>>,
}
