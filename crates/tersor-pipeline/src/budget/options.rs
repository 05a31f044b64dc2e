//! The storage options of a matrix, with size and error of each.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tersor_core::stages::{StageSpec, Stages, set};
use tersor_core::{
    Check, Context, LinearOp, MatView, MemTensors, Method, Result, RowSlot, RowSource, Value, read_finite,
    view::elements,
};
use tersor_groupwise::gptq::HessianFactor;
use tersor_groupwise::mixed::Choice;
use tersor_groupwise::{Clip, Gptq, Grid, Rtn};

use crate::kinds::Kinds;
use crate::rows::block_rows;

/// Bits and group size at which the effect of a matrix is measured.
const MEASURED: (u32, usize) = (3, 64);

/// Group sizes to choose from, for matrices of layers.
const GROUPS: [usize; 3] = [32, 64, 128];

/// Bits at which GPTQ is tried. For more bits its error is taken to fall like that of rounding, and ranges are not searched.
const GPTQ_BITS: RangeInclusive<u32> = 2..=4;

/// Maximum number of rows, evenly spaced, on which errors are computed.
const ROWS: usize = 512;

/// The search of ranges, as with `mse` in a rule.
const SEARCH: Clip = Clip::Search { norm: 2.4 };

/// One option of storing a matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StorageOption {
    pub bits: u32,
    /// Features of a group; 0 for one group per row.
    pub group: usize,
    /// Whether the grid is symmetric.
    pub sym: bool,
    /// Whether ranges are searched.
    pub mse: bool,
}

/// A matrix with its storage options.
#[derive(Serialize, Deserialize)]
pub struct Item {
    pub name: String,
    /// Name of the method, the same for all options.
    pub method: String,
    #[serde(rename = "ways")]
    pub options: Vec<StorageOption>,
    /// Stored bytes of each option.
    pub bytes: Vec<u64>,
    /// Squared error of each option.
    errors: Vec<f64>,
    /// Squared error of the option whose effect was measured, in the same unit.
    measured: f64,
    /// Measured divergence of the predictions with that option.
    pub effect: f64,
}

impl Item {
    /// Returns the options of a matrix that is rounded to nearest: the embedding, or an output head of its own.
    pub fn by_rounding(name: &str, rows: &dyn RowSource) -> Result<Self> {
        let sample = Sample::new(rows)?;
        let mut item = Self::new(name, "rtn");
        for bits in 3..=8 {
            for group in [32, 64, 128, 0] {
                for sym in [false, true] {
                    let option = StorageOption { bits, group, sym, mse: false };
                    let (plain, searched) =
                        (sample.error(option)?, sample.error(StorageOption { mse: true, ..option })?);
                    item.add(StorageOption { mse: searched < plain, ..option }, plain.min(searched), rows.shape())?;
                }
            }
        }
        let (bits, group) = MEASURED;
        item.measured = sample.error(StorageOption { bits, group, sym: false, mse: false })?;
        Ok(item)
    }

    /// Returns the options of a matrix that GPTQ compresses with the Hessian factor of its site, and the operator whose effect is to be measured.
    pub fn by_gptq(
        name: &str,
        rows: &dyn RowSource,
        factor: &HessianFactor,
        cx: &Context,
    ) -> Result<(Self, Arc<dyn LinearOp>)> {
        let sample = Sample::new(rows)?;
        let gptq = |bits: u32, mse: bool| {
            let clip = if mse { SEARCH } else { Clip::None };
            Gptq::new().bits(bits).group(MEASURED.1).clip(clip).check()
        };
        // For each number of bits, in groups of 64: whether searched ranges are better, and the ratio of GPTQ's error in the norm of the inputs to
        // the error of rounding in the norm of the weights, with the better ranges and without search.
        let mut scales: BTreeMap<u32, (bool, f64, f64)> = BTreeMap::new();
        for bits in GPTQ_BITS {
            let run = |mse: bool| -> Result<f64> {
                let (_, report) = gptq(bits, mse)?.quantize_with(&sample.view()?, factor, cx)?;
                Ok(report.data_error.unwrap_or(report.squared_error))
            };
            let (plain, searched) = (run(false)?, run(true)?);
            let rounding = sample.error(StorageOption { bits, group: MEASURED.1, sym: false, mse: false })?;
            let scale = |error: f64| error / rounding.max(f64::MIN_POSITIVE);
            scales.insert(bits, (searched < plain, scale(plain.min(searched)), scale(plain)));
        }
        let mut item = Self::new(name, "gptq");
        for bits in *GPTQ_BITS.start()..=8 {
            let Some((at, &(search, best, plain))) = scales.range(..=bits).next_back() else { continue };
            let (mse, scale) = if *at == bits { (search, best) } else { (false, plain) };
            // At few bits only the asymmetric grid is offered: its zero is worth the bits that it takes.
            let grids: &[bool] = if *at == bits { &[false] } else { &[false, true] };
            for group in GROUPS {
                for &sym in grids {
                    let rounding = sample.error(StorageOption { bits, group, sym, mse: false })?;
                    item.add(StorageOption { bits, group, sym, mse }, rounding * scale, rows.shape())?;
                }
            }
        }
        let is_measured = |o: &StorageOption| (o.bits, o.group) == MEASURED && !o.sym;
        let at = item.options.iter().position(is_measured);
        let (search, measured) = at.map_or((false, 0.0), |i| (item.options[i].mse, item.errors[i]));
        item.measured = measured;
        let values = read_finite(rows, 0..rows.shape()[0])?;
        let whole = MatView::new(&values, rows.shape())?;
        let (op, _) = gptq(MEASURED.0, search)?.quantize_with(&whole, factor, cx)?;
        Ok((item, op.into()))
    }

    fn new(name: &str, method: &str) -> Self {
        let (options, bytes, errors) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: name.into(), method: method.into(), options, bytes, errors, measured: 0.0, effect: 0.0 }
    }

    fn add(&mut self, option: StorageOption, error: f64, shape: [usize; 2]) -> Result<()> {
        self.bytes.push(option.bytes(shape)?);
        self.options.push(option);
        self.errors.push(error);
        Ok(())
    }

    /// Returns whether every option has a size and an error.
    pub fn is_complete(&self) -> bool {
        [self.bytes.len(), self.errors.len()].iter().all(|n| *n == self.options.len())
    }

    /// Returns cost and predicted loss of each option.
    pub fn choices(&self) -> Vec<Choice> {
        let scale = self.effect / self.measured.max(f64::MIN_POSITIVE);
        self.bytes.iter().zip(&self.errors).map(|(cost, e)| Choice { cost: *cost, loss: e * scale }).collect()
    }
}

impl StorageOption {
    /// Returns the smallest option of a matrix, which GPTQ compresses or not.
    pub fn smallest(gptq: bool) -> Self {
        let (bits, group) = if gptq { (*GPTQ_BITS.start(), GROUPS[2]) } else { (3, 0) };
        Self { bits, group, sym: !gptq, mse: false }
    }

    /// Returns the stored bytes of a matrix of shape `[rows, cols]`.
    pub fn bytes(self, shape: [usize; 2]) -> Result<u64> {
        Ok(self.rtn().check()?.layout(shape)?.bits()? / 8)
    }

    /// Returns the stage of the kind `kind` with this option. Errors if there is no such kind, or it has other parameters.
    pub fn stage(self, kind: &str, kinds: &Stages) -> Result<Box<dyn StageSpec>> {
        let mut stage = kinds.make(kind)?;
        set(&mut *stage, "bits", Value::Int(self.bits.into()))?;
        if self.group > 0 {
            set(&mut *stage, "group", Value::Int(self.group.try_into().unwrap_or(i64::MAX)))?;
        }
        if self.sym {
            set(&mut *stage, "grid", Value::Text("sym".into()))?;
        }
        set(&mut *stage, "mse", Value::Bool(self.mse))?;
        Ok(stage)
    }

    /// Returns round-to-nearest with this option.
    fn rtn(self) -> Rtn {
        let rtn = Rtn::new().bits(self.bits).clip(if self.mse { SEARCH } else { Clip::None });
        let rtn = if self.sym { rtn.symmetric() } else { rtn.grid(Grid::Asym) };
        if self.group == 0 { rtn.per_channel() } else { rtn.group(self.group) }
    }
}

/// Evenly spaced rows of a matrix.
struct Sample {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl Sample {
    fn new(source: &dyn RowSource) -> Result<Self> {
        let [rows, cols] = source.shape();
        let count = rows.min(ROWS);
        let mut values = Vec::with_capacity(elements([count, cols])?);
        for i in 0..count {
            let row = i * rows / count;
            values.extend(read_finite(source, row..row + 1)?);
        }
        Ok(Self { values, shape: [count, cols] })
    }

    fn view(&self) -> Result<MatView<'_, f32>> {
        MatView::new(&self.values, self.shape)
    }

    /// Returns the squared error of rounding with an option.
    fn error(&self, option: StorageOption) -> Result<f64> {
        Ok(option.rtn().quantize(&self.view()?)?.1.squared_error)
    }
}

/// Returns the rounded operator whose effect is measured for the embedding or the head. Works on blocks of rows, since an embedding in f32 may be most
/// of a model.
pub fn probe(rows: &dyn RowSource, kinds: &Kinds) -> Result<Arc<dyn LinearOp>> {
    let (bits, group) = MEASURED;
    let method = StorageOption { bits, group, sym: false, mse: false }.rtn();
    let [total, cols] = rows.shape();
    let (mut tensors, mut spec) = (MemTensors::new(), None);
    let step = block_rows(cols);
    for first in (0..total).step_by(step) {
        let last = (first + step).min(total);
        let values = read_finite(rows, first..last)?;
        let (op, _) = method.quantize(&MatView::new(&values, [last - first, cols])?)?;
        let at = RowSlot { first, total };
        op.save_block("w", at, &mut tensors)?;
        spec = Some(op.spec_block(at));
    }
    let spec = spec.ok_or_else(|| tersor_core::Error::shape("rows of a matrix", "at least one", 0))?;
    Ok(kinds.operators.load(&spec, "w", &tensors)?.into())
}
