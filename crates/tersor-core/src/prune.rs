//! [`Pruner`]: which weights of a matrix become zero.

use std::ops::Range;

use crate::{Context, Extent, Mask, Result, RowSource, StatNeeds, StatSet};

/// A way to choose the weights that become zero, with its parameters already checked.
pub trait Pruner: Send + Sync {
    /// Returns a short name for reports: `wanda`.
    fn name(&self) -> String;
    /// Returns the statistics of the inputs that the choice needs.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are pruned in blocks or all at once (a threshold for the whole matrix).
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Does the work that all matrices of a site share. Errors if the statistics lack what is needed.
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn PreparedPruner + 's>>;
}

/// A pruner that has seen the statistics of a site.
pub trait PreparedPruner: Send + Sync {
    /// Prunes rows of `dense`: all of them, or a block that starts at a multiple of [`ROW_UNIT`](crate::method::ROW_UNIT). `start` is what
    /// another pruner made of the same rows, for those that go on from there. Errors on values that are not finite, with row and column.
    fn prune(&self, dense: &dyn RowSource, start: Option<&Pruned>, rows: Range<usize>, cx: &Context) -> Result<Pruned>;
}

/// The outcome of pruning some rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Pruned {
    /// Which weights are kept, `[rows, cols]` of the rows that were pruned.
    pub mask: Mask,
    /// The weights, row-major, where those that are kept have changed; otherwise they are the original's.
    pub values: Option<Vec<f32>>,
}
