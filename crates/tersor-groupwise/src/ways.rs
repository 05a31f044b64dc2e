//! What a budget may choose among grids over groups: bits, group sizes, grids and range searches, by rounding or by GPTQ.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tersor_core::stages::{Measured, PreparedWays, StageSpec, ValuesOf, Way, Ways};
use tersor_core::view::elements;
use tersor_core::{
    Check, Context, Error, LinearOp, MatView, MemTensors, Method, Result, RowSlot, RowSource, StatNeeds, StatSet,
    read_finite,
};
use tersor_operators::{Clip, Grid, GroupedLinear};

use crate::gptq::HessianFactor;
use crate::{Gptq, Rtn};

/// Bits and group size at which the effect of a matrix is measured.
const PROBE: (u32, usize) = (3, 64);

/// Group sizes to choose from.
const GROUPS: [usize; 3] = [32, 64, 128];

/// Bits at which GPTQ is tried. For more bits its error is taken to fall like that of rounding, and ranges are not searched.
const GPTQ_BITS: RangeInclusive<u32> = 2..=4;

/// Maximum number of rows, evenly spaced, on which errors are computed.
const ROWS: usize = 512;

/// Values of a block of rows that is rounded at once.
const BLOCK: usize = 2 << 20;

/// The search of ranges, as with `mse` in a recipe.
const SEARCH: Clip = Clip::Search { norm: 2.4 };

/// A grid over groups.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Form {
    bits: u32,
    /// Features of a group; none for one group per row.
    group: Option<usize>,
    sym: bool,
    mse: bool,
}

impl Form {
    fn probe(mse: bool) -> Self {
        Self { bits: PROBE.0, group: Some(PROBE.1), sym: false, mse }
    }

    fn rtn(self) -> Rtn {
        let rtn = Rtn::new().bits(self.bits).clip(if self.mse { SEARCH } else { Clip::None });
        let rtn = if self.sym { rtn.symmetric() } else { rtn.grid(Grid::Asym) };
        self.group.map_or(rtn, |n| rtn.group(n))
    }

    fn gptq(self) -> Gptq {
        let gptq = Gptq::new().bits(self.bits).clip(if self.mse { SEARCH } else { Clip::None });
        let gptq = if self.sym { gptq.symmetric() } else { gptq.grid(Grid::Asym) };
        self.group.map_or(gptq, |n| gptq.group(n))
    }

    /// Returns the stored bytes of a matrix of shape `[rows, cols]`, which are those of GPTQ as well.
    fn bytes(self, shape: [usize; 2]) -> Result<u64> {
        Ok(self.rtn().check()?.layout(shape)?.bits()? / 8)
    }
}

/// Round-to-nearest as a choice: 3 to 8 bits, in groups of 32, 64, 128 or of a row, on the asymmetric or symmetric grid; ranges are searched where
/// this lowers the squared error of the weights.
pub(crate) struct RtnWays;

impl RtnWays {
    fn way(form: Form, shape: [usize; 2], error: f64) -> Result<Way> {
        let stages: Vec<Box<dyn StageSpec>> = vec![Box::new(form.rtn())];
        Ok(Way { stages, bytes: form.bytes(shape)?, error })
    }
}

impl Ways for RtnWays {
    fn needs(&self) -> StatNeeds {
        StatNeeds::default()
    }
    fn smallest(&self, shape: [usize; 2]) -> Result<u64> {
        Form { bits: 3, group: None, sym: true, mse: false }.bytes(shape)
    }
    fn prepare<'s>(&'s self, _: &'s StatSet, _: &Context) -> Result<Box<dyn PreparedWays + 's>> {
        Ok(Box::new(RtnWays))
    }
}

impl PreparedWays for RtnWays {
    fn measure(&self, w: &dyn RowSource, _: &Context) -> Result<Measured> {
        let (sample, shape) = (Sample::new(w)?, w.shape());
        let mut ways = Vec::new();
        for bits in 3..=8 {
            for group in [Some(GROUPS[0]), Some(GROUPS[1]), Some(GROUPS[2]), None] {
                for sym in [false, true] {
                    let form = Form { bits, group, sym, mse: false };
                    let (plain, searched) = (sample.error(form)?, sample.error(Form { mse: true, ..form })?);
                    ways.push(Self::way(Form { mse: searched < plain, ..form }, shape, plain.min(searched))?);
                }
            }
        }
        let probe = Form::probe(false);
        Ok(Measured { ways, probe: Self::way(probe, shape, sample.error(probe)?)? })
    }

    /// Works on blocks of rows, since an embedding in f32 may be most of a model.
    fn store(&self, w: &dyn RowSource, way: &Way, _: &Context) -> Result<Arc<dyn LinearOp>> {
        let mut rtn = Rtn::new();
        rtn.fields(&mut ValuesOf(stage_of(way)?))?;
        let [total, cols] = w.shape();
        let (mut tensors, mut spec) = (MemTensors::new(), None);
        let step = (BLOCK / cols.max(1)).max(1);
        for first in (0..total).step_by(step) {
            let last = (first + step).min(total);
            let values = read_finite(w, first..last)?;
            let (op, _) = rtn.quantize(&MatView::new(&values, [last - first, cols])?)?;
            let at = RowSlot { first, total };
            op.save_block("w", at, &mut tensors)?;
            spec = Some(op.spec_block(at));
        }
        let spec = spec.ok_or_else(|| Error::shape("rows of a matrix", "at least one", 0))?;
        Ok(Arc::new(GroupedLinear::load(&spec, "w", &tensors)?))
    }
}

/// GPTQ as a choice: 2 to 8 bits in groups of 32, 64 and 128. At 2 to 4 bits GPTQ is run on the sampled rows in groups of 64, with and without searched
/// ranges; the error in other groups is taken to be proportional to that of rounding. At more bits its error is taken to fall like that of
/// rounding, and ranges are not searched. At few bits only the asymmetric grid is offered: its zero is worth the bits that it takes.
pub(crate) struct GptqWays;

/// [`GptqWays`] with the factor of a Hessian.
struct Prepared(HessianFactor);

impl Ways for GptqWays {
    fn needs(&self) -> StatNeeds {
        StatNeeds { gram: true, ..StatNeeds::default() }
    }
    fn smallest(&self, shape: [usize; 2]) -> Result<u64> {
        Form { bits: *GPTQ_BITS.start(), group: Some(GROUPS[2]), sym: false, mse: false }.bytes(shape)
    }
    fn prepare<'s>(&'s self, stats: &'s StatSet, cx: &Context) -> Result<Box<dyn PreparedWays + 's>> {
        let gram = stats.require_gram()?;
        Ok(Box::new(Prepared(cx.run(|| Gptq::new().check()?.factor(gram, stats.features()))?)))
    }
}

impl PreparedWays for Prepared {
    fn measure(&self, w: &dyn RowSource, cx: &Context) -> Result<Measured> {
        let (sample, shape) = (Sample::new(w)?, w.shape());
        let error = |form: Form| -> Result<f64> {
            let (_, report) = form.gptq().check()?.quantize_with(&sample.view()?, &self.0, cx)?;
            Ok(report.data_error.unwrap_or(report.squared_error))
        };
        // For each number of bits, in groups of 64: whether searched ranges are better, and the ratio of GPTQ's error in the norm of the inputs to
        // the error of rounding in the norm of the weights, with the better ranges and without search.
        let mut scales: BTreeMap<u32, (bool, f64, f64)> = BTreeMap::new();
        for bits in GPTQ_BITS {
            let form = Form { bits, ..Form::probe(false) };
            let (plain, searched) = (error(form)?, error(Form { mse: true, ..form })?);
            let rounding = sample.error(form)?;
            let scale = |error: f64| error / rounding.max(f64::MIN_POSITIVE);
            scales.insert(bits, (searched < plain, scale(plain.min(searched)), scale(plain)));
        }
        let way = |form: Form, error: f64| -> Result<Way> {
            let stages: Vec<Box<dyn StageSpec>> = vec![Box::new(form.gptq())];
            Ok(Way { stages, bytes: form.bytes(shape)?, error })
        };
        let (mut ways, mut probe) = (Vec::new(), None);
        for bits in *GPTQ_BITS.start()..=8 {
            let Some((at, &(search, best, plain))) = scales.range(..=bits).next_back() else { continue };
            let (mse, scale) = if *at == bits { (search, best) } else { (false, plain) };
            let grids: &[bool] = if *at == bits { &[false] } else { &[false, true] };
            for group in GROUPS {
                for &sym in grids {
                    let form = Form { bits, group: Some(group), sym, mse };
                    let found = way(form, sample.error(Form { mse: false, ..form })? * scale)?;
                    if form == Form::probe(mse) {
                        probe = Some(found.clone());
                    }
                    ways.push(found);
                }
            }
        }
        let probe = probe.ok_or_else(|| Error::missing("the probe", "the ways"))?;
        Ok(Measured { ways, probe })
    }

    fn store(&self, w: &dyn RowSource, way: &Way, cx: &Context) -> Result<Arc<dyn LinearOp>> {
        let mut gptq = Gptq::new();
        gptq.fields(&mut ValuesOf(stage_of(way)?))?;
        let values = read_finite(w, 0..w.shape()[0])?;
        let (op, _) = gptq.check()?.quantize_with(&MatView::new(&values, w.shape())?, &self.0, cx)?;
        Ok(op.into())
    }
}

/// Returns the only stage of a way.
fn stage_of(way: &Way) -> Result<&dyn StageSpec> {
    way.stages.first().map(|s| &**s).ok_or_else(|| Error::missing("a stage", "the way to store a matrix"))
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

    /// Returns the squared error of rounding to a grid.
    fn error(&self, form: Form) -> Result<f64> {
        Ok(form.rtn().quantize(&self.view()?)?.1.squared_error)
    }
}
