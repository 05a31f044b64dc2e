//! Parameters of dual-grained quantization.

use tersor_core::{Check, Context, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::DualLinear;

use crate::{CheckedRtn, Rtn};

/// Unchecked parameters of dual-grained quantization (DGQ, arXiv 2310.04836, section 3.2): 4-bit codes, by default in groups of 128 features.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Dgq::new().group(16).quantize(&MatView::new(&weights, [8, 32])?, &stats)?;
/// assert_eq!(op.group_scales().len(), 8 * 2);
/// assert!(report.data_error < report.data_energy);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dgq {
    group: usize,
}

impl Default for Dgq {
    fn default() -> Self {
        Self { group: 128 }
    }
}

impl Dgq {
    /// Returns the default parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of input features that share an integer scale, at least 1; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, for inputs with the statistics `stats`, which must have the Gram
    /// matrix. Errors if the group is 0, the Gram matrix is missing or has another number of features, or a weight is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(DualLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.dual(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of DGQ, and its [`Method`](tersor_core::Method): it needs the Gram matrix of the inputs and makes a [`DualLinear`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedDgq {
    pub(super) group: GroupSize,
    /// Round-to-nearest with the same groups: the data-free form.
    pub(super) rtn: CheckedRtn,
}

impl Check for Dgq {
    type Checked = CheckedDgq;
    fn check(self) -> Result<CheckedDgq, ParamError> {
        Ok(CheckedDgq { group: GroupSize::size(self.group)?, rtn: Rtn::new().group(self.group).check()? })
    }
}
