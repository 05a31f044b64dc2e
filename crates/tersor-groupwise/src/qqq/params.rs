//! Parameters of QQQ.

use tersor_core::{Check, Context, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::{Clip, Grid, TableLinear};

use crate::Gptq;
use crate::gptq::{CheckedGptq, Groups};

/// Unchecked parameters of QQQ with groups (arXiv 2406.09904, section 3.2). Codes have 4 bits on the grid [`Grid::SymFull`]; by default groups have
/// 128 features, and GPTQ orders columns by the Hessian's diagonal with static groups, damping 0.01 and no clip search.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Qqq::new().group(16).quantize(&MatView::new(&weights, [8, 32])?, &stats)?;
/// assert_eq!(op.shape(), [8, 32]);
/// assert!(report.relative_error() < 0.2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Qqq {
    gptq: Gptq,
    group: usize,
}

impl Default for Qqq {
    fn default() -> Self {
        let gptq = Gptq::new().grid(Grid::SymFull).act_order(true).groups(Groups::Static);
        Self { gptq, group: 128 }
    }
}

impl Qqq {
    /// Returns the default parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of input features that share a group scale, at least 1; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Sets how the range that the grid of a group covers is chosen. The released code uses a clip search for rotated networks and none for
    /// smoothed ones.
    pub fn clip(self, clip: Clip) -> Self {
        Self { gptq: self.gptq.clip(clip), ..self }
    }

    /// Sets the damping of GPTQ's Hessian as a share of its mean diagonal: see [`Gptq::damping`].
    pub fn damping(self, damping: f64) -> Self {
        Self { gptq: self.gptq.damping(damping), ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, for inputs with the statistics `stats`, which must have the Gram
    /// matrix. Errors as [`Gptq::quantize`], or if a group scale does not fit f16 or a row scale f32.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(TableLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.table(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of QQQ, and its [`Method`](tersor_core::Method): it needs the Gram matrix of the inputs and makes a [`TableLinear`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedQqq {
    pub(super) gptq: CheckedGptq,
    pub(super) group: GroupSize,
}

impl Check for Qqq {
    type Checked = CheckedQqq;
    fn check(self) -> Result<CheckedQqq, ParamError> {
        Ok(CheckedQqq { gptq: self.gptq.group(self.group).check()?, group: GroupSize::size(self.group)? })
    }
}
