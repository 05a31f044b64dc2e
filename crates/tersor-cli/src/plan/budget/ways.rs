//! In how many ways a matrix can be stored, and what each gets wrong.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tersor::core::{
    Check, Context, LinearOp, MatView, MemTensors, Method, Result, RowSlot, RowSource, read_finite, view::elements,
};
use tersor::groupwise::gptq::HessianFactor;
use tersor::groupwise::mixed::Choice;
use tersor::groupwise::{Clip, Gptq, Grid, Rtn};

/// Width and group at which the effect of a matrix is measured.
const MEASURED: (u32, usize) = (3, 64);

/// Groups of the body to choose from.
const GROUPS: [usize; 3] = [32, 64, 128];

/// Widths that GPTQ is tried at. Of larger ones the errors fall as rounding's, and ranges are not searched.
const SOLVED: RangeInclusive<u32> = 2..=4;

/// Errors are those of so many rows at most, evenly spread.
const ROWS: usize = 512;

/// The search of ranges, as `mse` in a rule.
const SEARCH: Clip = Clip::Search { norm: 2.4 };

/// A way to store a matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Way {
    pub bits: u32,
    /// 0 is the row.
    pub group: usize,
    /// Whether the grid is symmetric.
    pub sym: bool,
    /// Whether ranges are searched.
    pub mse: bool,
}

/// A matrix with its ways to be stored.
#[derive(Serialize, Deserialize)]
pub struct Item {
    pub name: String,
    /// The method of the rule, in all ways.
    pub method: String,
    pub ways: Vec<Way>,
    /// What each takes.
    pub bytes: Vec<u64>,
    /// Error of each, in one unit.
    errors: Vec<f64>,
    /// The same of what was measured.
    measured: f64,
    /// What that did to the predictions.
    pub effect: f64,
}

impl Item {
    /// A matrix that is rounded: the embedding, and a head of its own.
    pub fn rounded(name: &str, rows: &dyn RowSource) -> Result<Self> {
        let sample = Sample::new(rows)?;
        let mut item = Self::new(name, "rtn");
        for bits in 3..=8 {
            for group in [32, 64, 128, 0] {
                for sym in [false, true] {
                    let way = Way { bits, group, sym, mse: false };
                    let (plain, searched) = (sample.error(way)?, sample.error(Way { mse: true, ..way })?);
                    item.add(Way { mse: searched < plain, ..way }, plain.min(searched), rows.shape())?;
                }
            }
        }
        let (bits, group) = MEASURED;
        item.measured = sample.error(Way { bits, group, sym: false, mse: false })?;
        Ok(item)
    }

    /// A matrix that something flows into, which has the Hessian of `factor`, by GPTQ. Gives what is measured, too.
    pub fn solved(
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
        // In groups of 64: what GPTQ gets wrong, in the norm of the inputs, as ranges are or searched, whichever is better; and how many times
        // rounding's error, in the norm of the weights, that is.
        let mut scales: BTreeMap<u32, (bool, f64, f64)> = BTreeMap::new();
        for bits in SOLVED {
            let run = |mse: bool| -> Result<f64> {
                let (_, report) = gptq(bits, mse)?.quantize_with(&sample.view()?, factor, cx)?;
                Ok(report.data_error.unwrap_or(report.squared_error))
            };
            let (plain, searched) = (run(false)?, run(true)?);
            let rounding = sample.error(Way { bits, group: MEASURED.1, sym: false, mse: false })?;
            let scale = |error: f64| error / rounding.max(f64::MIN_POSITIVE);
            scales.insert(bits, (searched < plain, scale(plain.min(searched)), scale(plain)));
        }
        let mut item = Self::new(name, "gptq");
        for bits in *SOLVED.start()..=8 {
            let Some((at, &(search, best, plain))) = scales.range(..=bits).next_back() else { continue };
            let (mse, scale) = if *at == bits { (search, best) } else { (false, plain) };
            // Where so few codes are left, an offset is worth more than the bits it takes.
            let grids: &[bool] = if *at == bits { &[false] } else { &[false, true] };
            for group in GROUPS {
                for &sym in grids {
                    let rounding = sample.error(Way { bits, group, sym, mse: false })?;
                    item.add(Way { bits, group, sym, mse }, rounding * scale, rows.shape())?;
                }
            }
        }
        let is_measured = |way: &Way| (way.bits, way.group) == MEASURED && !way.sym;
        let at = item.ways.iter().position(is_measured);
        let (search, measured) = at.map_or((false, 0.0), |i| (item.ways[i].mse, item.errors[i]));
        item.measured = measured;
        let values = read_finite(rows, 0..rows.shape()[0])?;
        let whole = MatView::new(&values, rows.shape())?;
        let (op, _) = gptq(MEASURED.0, search)?.quantize_with(&whole, factor, cx)?;
        Ok((item, op.into()))
    }

    fn new(name: &str, method: &str) -> Self {
        let (ways, bytes, errors) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: name.into(), method: method.into(), ways, bytes, errors, measured: 0.0, effect: 0.0 }
    }

    fn add(&mut self, way: Way, error: f64, shape: [usize; 2]) -> Result<()> {
        self.bytes.push(way.bytes(shape)?);
        self.ways.push(way);
        self.errors.push(error);
        Ok(())
    }

    /// Whether every way has its figures.
    pub fn is_whole(&self) -> bool {
        [self.bytes.len(), self.errors.len()].iter().all(|n| *n == self.ways.len())
    }

    /// Costs and losses.
    pub fn choices(&self) -> Vec<Choice> {
        let scale = self.effect / self.measured.max(f64::MIN_POSITIVE);
        self.bytes.iter().zip(&self.errors).map(|(cost, e)| Choice { cost: *cost, loss: e * scale }).collect()
    }
}

impl Way {
    /// The smallest, of a matrix that something flows into or of another.
    pub fn min(fed: bool) -> Self {
        let (bits, group) = if fed { (*SOLVED.start(), GROUPS[2]) } else { (3, 0) };
        Self { bits, group, sym: !fed, mse: false }
    }

    /// What a matrix takes.
    pub fn bytes(self, shape: [usize; 2]) -> Result<u64> {
        Ok(self.rtn().check()?.layout(shape)?.bits()? / 8)
    }

    /// Rounding in this way.
    fn rtn(self) -> Rtn {
        let rtn = Rtn::new().bits(self.bits).clip(if self.mse { SEARCH } else { Clip::None });
        let rtn = if self.sym { rtn.symmetric() } else { rtn.grid(Grid::Asym) };
        if self.group == 0 { rtn.per_channel() } else { rtn.group(self.group) }
    }
}

/// Some rows of a matrix.
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

    /// Squared error of rounding.
    fn error(&self, way: Way) -> Result<f64> {
        Ok(way.rtn().quantize(&self.view()?)?.1.squared_error)
    }
}

/// What is measured of a matrix that is rounded. Blocks of rows at a time: an embedding in f32 may be most of a model.
pub fn coarse(rows: &dyn RowSource) -> Result<Arc<dyn LinearOp>> {
    let (bits, group) = MEASURED;
    let method = Way { bits, group, sym: false, mse: false }.rtn();
    let [total, cols] = rows.shape();
    let (mut tensors, mut spec) = (MemTensors::new(), None);
    let step = crate::compress::block_rows(cols);
    for first in (0..total).step_by(step) {
        let last = (first + step).min(total);
        let values = read_finite(rows, first..last)?;
        let (op, _) = method.quantize(&MatView::new(&values, [last - first, cols])?)?;
        let at = RowSlot { first, total };
        op.save_block("w", at, &mut tensors)?;
        spec = Some(op.spec_block(at));
    }
    let spec = spec.ok_or_else(|| tersor::core::Error::shape("rows of a matrix", "at least one", 0))?;
    Ok(tersor::registry().load(&spec, "w", &tensors)?.into())
}
