//! Parameters of GPTQ.

use tersor_core::{Check, Context, DType, Element, IntoMat, LinearOp, ParamError, Prepared, Report, Result, StatSet};
use tersor_linalg::Damping;
use tersor_operators::{Clip, Grid, GroupSpec};

use crate::coder::Groups;
use crate::{CheckedRtn, Rtn};

/// What happens to a matrix whose Hessian cannot be factored with any damping that is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// It is rounded to nearest; the report says so.
    Rtn,
    /// An error, with the damping that was tried.
    Error,
}

/// What happens to the weights of an input feature that was always zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dead {
    /// They become zero.
    Zero,
    /// They are rounded like others.
    Keep,
}

/// Parameters of GPTQ, unchecked: 4 bits, one scale a row, asymmetric, f16 scales, no clip search, damping 0.01, blocks of
/// 128 columns, columns in their own order, dynamic groups, dead features zeroed, round-to-nearest where all damping fails.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { rtn: self.rtn.bits(bits), ..self }
    }

    /// A scale for every `group` input features; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { rtn: self.rtn.group(group), ..self }
    }

    /// One scale a row.
    pub fn per_channel(self) -> Self {
        Self { rtn: self.rtn.per_channel(), ..self }
    }

    /// The grid.
    pub fn grid(self, grid: Grid) -> Self {
        Self { rtn: self.rtn.grid(grid), ..self }
    }

    /// The symmetric grid of a recipe's `-sym`: narrow at 8 bits, full below.
    pub fn symmetric(self) -> Self {
        Self { rtn: self.rtn.symmetric(), ..self }
    }

    /// The stored type of the scales: f16, bf16 or f32.
    pub fn scales(self, dtype: DType) -> Self {
        Self { rtn: self.rtn.scales(dtype), ..self }
    }

    /// How the range of a group is chosen.
    pub fn clip(self, clip: Clip) -> Self {
        Self { rtn: self.rtn.clip(clip), ..self }
    }

    /// What is added to the diagonal of the Hessian, as a share of its mean; doubled up to 0.16 where that does not
    /// make it positive definite. Above 0, finite.
    pub fn damping(self, damping: f64) -> Self {
        Self { damping, ..self }
    }

    /// Columns between two products with the rest of the matrix: speed only, the result is the same but for rounding.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Takes columns by falling diagonal of the Hessian. With dynamic groups the matrix is stored in that order.
    pub fn act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// When the grids of groups are fitted.
    pub fn groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// What happens to dead features.
    pub fn dead(self, dead: Dead) -> Self {
        Self { dead, ..self }
    }

    /// What happens when all damping fails.
    pub fn on_failure(self, on_failure: OnFailure) -> Self {
        Self { on_failure, ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` for inputs with these statistics, which must have the Gram matrix.
    /// Errors on a wrong parameter, statistics that lack it or have other features, a value that is not finite, or a scale that its type cannot
    /// hold.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| {
            let done = checked.ready(stats)?.compress(&m, 0..m.shape()[0], &Context::new())?;
            Ok((done.op, done.report))
        })
    }
}

/// Checked parameters: the method.
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
    /// Returns bits, groups and grid.
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
