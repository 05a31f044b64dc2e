//! Parameters of GPTQ.

use tersor_core::{Check, Context, DType, Element, IntoMat, LinearOp, ParamError, Prepared, Report, Result, StatSet};
use tersor_linalg::Damping;
use tersor_operators::{Clip, Grid, GroupSpec};

use crate::coder::Groups;
use crate::{CheckedRtn, Rtn};

/// Treatment of a matrix whose Hessian is not positive definite with any damping up to 0.16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// The matrix is rounded to nearest, and [`Report::fallbacks`] says so.
    Rtn,
    /// The matrix is refused with an error that names the largest damping tried.
    Error,
}

/// Treatment of the weights of dead input features: those that were zero for all tokens seen in calibration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dead {
    /// The weights are set to zero, as in the released code.
    Zero,
    /// The weights are rounded to nearest.
    Keep,
}

/// Unchecked parameters of GPTQ (arXiv 2210.17323). By default: 4 bits, one scale a row, asymmetric grid, f16 scales, no clip search, damping 0.01,
/// blocks of 128 columns in their natural order, dynamic groups, weights of dead features set to zero, round-to-nearest if no damping suffices.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let w = MatView::new(&weights, [8, 32])?;
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Gptq::new().bits(3).group(16).quantize(&w, &stats)?;
/// assert_eq!(op.shape(), [8, 32]);
/// assert!(report.data_error < report.data_energy);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gptq {
    rtn: Rtn,
    damping: f64,
    block: usize,
    act_order: bool,
    groups: Groups,
    dead: Dead,
    on_failure: OnFailure,
}

impl Default for Gptq {
    fn default() -> Self {
        Self {
            rtn: Rtn::new(),
            damping: 0.01,
            block: 128,
            act_order: false,
            groups: Groups::Dynamic,
            dead: Dead::Zero,
            on_failure: OnFailure::Rtn,
        }
    }
}

impl Gptq {
    /// Returns the default parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { rtn: self.rtn.bits(bits), ..self }
    }

    /// Sets the number of input features that share a scale, at least 1; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { rtn: self.rtn.group(group), ..self }
    }

    /// Gives each row one scale.
    pub fn per_channel(self) -> Self {
        Self { rtn: self.rtn.per_channel(), ..self }
    }

    /// Sets the grid of the codes: asymmetric or symmetric.
    pub fn grid(self, grid: Grid) -> Self {
        Self { rtn: self.rtn.grid(grid), ..self }
    }

    /// Sets the symmetric grid for the bits set so far, as [`Grid::symmetric`]: [`Grid::SymNarrow`] at 8 bits, [`Grid::SymFull`] below.
    pub fn symmetric(self) -> Self {
        Self { rtn: self.rtn.symmetric(), ..self }
    }

    /// Sets the stored type of the scales: f16, bf16, f32, or on [`Grid::SymNarrow`] powers of two ([`DType::E8M0`]).
    pub fn scales(self, dtype: DType) -> Self {
        Self { rtn: self.rtn.scales(dtype), ..self }
    }

    /// Sets how the range that the grid of a group covers is chosen: all values, or a clip search.
    pub fn clip(self, clip: Clip) -> Self {
        Self { rtn: self.rtn.clip(clip), ..self }
    }

    /// Sets the damping: the share of the mean diagonal of the Hessian that is added to its diagonal, finite and above 0. It is doubled, up to
    /// 0.16, until the Hessian is positive definite.
    pub fn damping(self, damping: f64) -> Self {
        Self { damping, ..self }
    }

    /// Sets the number of columns of a block of lazy batch updates, at least 1 (arXiv 2210.17323, section 3.3). It affects speed, and the result
    /// only by floating-point rounding.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets whether columns are rounded in the order of a falling Hessian diagonal (`act-order`). With dynamic groups the result is stored in that
    /// order, with a permutation of the inputs in front.
    pub fn act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// Sets when the scales and zero points of groups are computed.
    pub fn groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// Sets the treatment of dead input features.
    pub fn dead(self, dead: Dead) -> Self {
        Self { dead, ..self }
    }

    /// Sets the treatment of a Hessian that no damping makes positive definite.
    pub fn on_failure(self, on_failure: OnFailure) -> Self {
        Self { on_failure, ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, for inputs with the statistics `stats`, which must have the Gram
    /// matrix. Errors if a parameter is out of range, the Gram matrix is missing or has another number of features, a weight is not finite, a scale
    /// does not fit its stored type, or as [`CheckedGptq::factor`].
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| {
            let done = checked.ready(stats)?.compress(&m, 0..m.shape()[0], &Context::new())?;
            Ok((done.op, done.report))
        })
    }
}

/// Checked parameters of GPTQ, and its [`Method`](tersor_core::Method): it needs the Gram matrix of the inputs and makes a
/// [`GroupedLinear`](tersor_operators::GroupedLinear), with `act_order` and dynamic groups inside a [`Permuted`](tersor_operators::Permuted).
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedGptq {
    pub(super) rtn: CheckedRtn,
    pub(super) damping: Damping,
    pub(super) block: usize,
    pub(super) groups: Groups,
    pub(super) dead: Dead,
    pub(super) on_failure: OnFailure,
}

impl CheckedGptq {
    /// Returns the bits, group size, grid and scale type.
    pub fn spec(&self) -> &GroupSpec {
        self.rtn.spec()
    }
}

impl Check for Gptq {
    type Checked = CheckedGptq;
    fn check(self) -> Result<CheckedGptq, ParamError> {
        if self.block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1"));
        }
        Ok(CheckedGptq {
            rtn: self.rtn.check()?,
            damping: Damping::new(self.damping)?.by_importance(self.act_order),
            block: self.block,
            groups: self.groups,
            dead: self.dead,
            on_failure: self.on_failure,
        })
    }
}
