//! From GPTQ's result to tables of bytes.

use std::ops::Range;

use tersor_core::{
    Check, Compressed, Context, GroupSize, Layout, LinearOp, Method, ParamError, Prepared, Report, Result, RowSource,
    StatNeeds, StatSet, metrics, read_finite,
};

use super::TableLinear;
use crate::gptq::{CheckedGptq, Groups};
use crate::{Clip, Gptq, Grid, GroupedLinear};

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

    /// How ranges are chosen before anything is rounded: the paper's code searches where the network was rotated, and not where it was smoothed.
    pub fn clip(self, clip: Clip) -> Self {
        Self { gptq: self.gptq.clip(clip), ..self }
    }

    /// Damping of the Hessian as a share of its mean diagonal.
    pub fn damping(self, damping: f64) -> Self {
        Self { gptq: self.gptq.damping(damping), ..self }
    }
}

/// Checked parameters: the method.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CheckedQqq {
    gptq: CheckedGptq,
    group: GroupSize,
}

impl Check for Qqq {
    type Checked = CheckedQqq;
    fn check(self) -> Result<CheckedQqq, ParamError> {
        Ok(CheckedQqq { gptq: self.gptq.group(self.group).check()?, group: GroupSize::size(self.group)? })
    }
}

impl Method for CheckedQqq {
    fn name(&self) -> String {
        "qqq".into()
    }

    fn needs(&self) -> StatNeeds {
        self.gptq.needs()
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        Ok(TableLinear::layout(self.group, shape))
    }

    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready(self.gptq.prepare_grouped(stats, cx)?)))
    }
}

struct Ready<'s>(crate::gptq::Ready<'s>);

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (grouped, report) = self.0.grouped(w, rows.clone(), cx)?;
        let op = TableLinear::of_grouped(&grouped)?;
        let values = read_finite(w, rows.clone())?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back)?;
        let report = Report { squared_error: metrics::squared_error(&values, &back), ..report };
        Ok(Compressed { op: Box::new(op), report })
    }
}

impl TableLinear {
    /// Of 4-bit codes on the grid [`Grid::SymFull`]. Error on another width or grid, or when a scale leaves f16 and f32.
    pub fn of_grouped(op: &GroupedLinear) -> Result<Self> {
        let spec = op.group_spec();
        if spec.bits.get() != 4 || spec.grid != Grid::SymFull {
            let found = format!("{} bits, {}", spec.bits.get(), spec.grid.name());
            return Err(tersor_core::Error::shape("grid of tables of bytes", "4 bits, sym_full", found));
        }
        let [rows, cols] = op.shape();
        let groups = spec.group.count(cols);
        let mut codes = Vec::with_capacity(rows * cols);
        let (mut shares, mut row_scales) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows));
        let mut row = vec![0f32; cols];
        for r in 0..rows {
            op.decompress_rows(r..r + 1, &mut row)?;
            // The second level covers what the first has made, not what it was made from.
            let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if most < f32::MIN_POSITIVE * 127.0 { 1.0 } else { most / 127.0 };
            row_scales.push(scale);
            for g in 0..groups {
                let fit = op.fit_of(r, g * spec.group.width(cols));
                shares.push(half::f16::from_f32(fit.map_or(1.0, |f| f.scale) / scale));
            }
            codes.extend(op.row_codes(r)?);
        }
        Self::new([rows, cols], spec.group, &codes, shares, row_scales)
    }
}
