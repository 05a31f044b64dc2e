//! Parameters of QQQ.

use tersor_core::{Check, Context, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::{Clip, Grid, TableLinear};

use crate::Gptq;
use crate::gptq::{CheckedGptq, Groups};

/// Parameters, unchecked: 4 bits, groups of 128, act-order with static groups, damping 0.01, no clip search.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scale for every `group` input features; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// How ranges are chosen before anything is rounded: the authors' code searches them in rotated networks, and not in smoothed ones.
    pub fn clip(self, clip: Clip) -> Self {
        Self { gptq: self.gptq.clip(clip), ..self }
    }

    /// Damping of the Hessian as a share of its mean diagonal.
    pub fn damping(self, damping: f64) -> Self {
        Self { gptq: self.gptq.damping(damping), ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` for inputs with these statistics, which must have the Gram matrix.
    /// Errors as [`Gptq::quantize`], or if a scale leaves the range of f16 or f32.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(TableLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.table(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters: the method.
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
