//! What GPTQ can be told.

use tersor_core::{Check, DType, GroupSize, ParamError};

use crate::{Clip, Grid, GroupSpec};

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

/// When the grid of a group is fitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// As the group is reached, to the weights that earlier columns have left there.
    Dynamic,
    /// Before anything is rounded, to the original weights.
    Static,
}

/// Parameters of GPTQ, unchecked: 4 bits, one scale a row, asymmetric, f16 scales, no clip search, damping 0.01, blocks of
/// 128 columns, columns in their own order, dynamic groups, dead features zeroed, round-to-nearest where all damping fails.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gptq {
    bits: u32,
    group: Option<usize>,
    grid: Grid,
    scales: DType,
    clip: Clip,
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
            bits: 4,
            group: None,
            grid: Grid::Asym,
            scales: DType::F16,
            clip: Clip::None,
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
        Self { bits, ..self }
    }

    /// A scale for every `group` input features; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group: Some(group), ..self }
    }

    /// One scale a row.
    pub fn per_channel(self) -> Self {
        Self { group: None, ..self }
    }

    /// The grid.
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// The symmetric grid of a recipe's `-sym`: narrow at 8 bits, full below.
    pub fn symmetric(self) -> Self {
        Self { grid: if self.bits == 8 { Grid::SymNarrow } else { Grid::SymFull }, ..self }
    }

    /// The stored type of the scales: f16, bf16 or f32.
    pub fn scales(self, dtype: DType) -> Self {
        Self { scales: dtype, ..self }
    }

    /// How the range of a group is chosen.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
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
}

/// Checked parameters: the method.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CheckedGptq {
    pub(crate) spec: GroupSpec,
    pub(crate) damping: f64,
    pub(crate) block: usize,
    pub(crate) act_order: bool,
    pub(crate) groups: Groups,
    pub(crate) dead: Dead,
    pub(crate) on_failure: OnFailure,
}

impl CheckedGptq {
    /// Grid, groups and widths.
    pub fn spec(&self) -> &GroupSpec {
        &self.spec
    }

    /// Whether the result is stored in the order of the columns' importance.
    pub(crate) fn permutes(&self) -> bool {
        self.act_order && self.groups == Groups::Dynamic && matches!(self.spec.group, GroupSize::Size(_))
    }
}

impl Check for Gptq {
    type Checked = CheckedGptq;
    fn check(self) -> Result<CheckedGptq, ParamError> {
        let group = self.group.map_or(Ok(GroupSize::Channel), GroupSize::size)?;
        if !self.damping.is_finite() || self.damping <= 0.0 {
            return Err(ParamError::new("damping", self.damping, "must be finite and above 0"));
        }
        if self.block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1"));
        }
        Ok(CheckedGptq {
            spec: GroupSpec::new(self.bits, group, self.grid, self.scales, self.clip)?,
            damping: self.damping,
            block: self.block,
            act_order: self.act_order,
            groups: self.groups,
            dead: self.dead,
            on_failure: self.on_failure,
        })
    }
}
