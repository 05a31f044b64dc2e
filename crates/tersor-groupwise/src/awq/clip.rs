//! [`OutputClip`]: the search of ranges, as a method around another.

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::{
    Check, Compressed, Context, DType, Error, Extent, GroupSize, Layout, Mask, Method, ParamError, Prepared, Result,
    RowSource, StatNeeds, StatSet, metrics, read_masked,
};
use tersor_kernels::affine;
use tersor_operators::{Clip, Grid, GroupSpec};

use crate::search::GramBlocks;

/// Shares of the largest magnitude that are tried: `1 - i / 20`.
const STEPS: usize = 10;

/// Clips the weights of each group of a row at `max|w| * (1 - i / 20)`, with the `i` in `0..10` that has the smallest error in the outputs of the
/// group under the Gram matrix of the inputs, and hands the matrix on to another method. The grid that this method rounds to is 4 bits, groups of
/// 128, asymmetric, with f16 scales, unless set otherwise.
pub struct OutputClip {
    bits: u32,
    group: Option<usize>,
    grid: Grid,
    scales: DType,
    method: Box<dyn Method>,
}

impl OutputClip {
    /// Returns the search in front of a method.
    pub fn before(method: Box<dyn Method>) -> Self {
        Self { bits: 4, group: Some(128), grid: Grid::Asym, scales: DType::F16, method }
    }

    /// Bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Features of a group; none for whole rows.
    pub fn group(self, group: Option<usize>) -> Self {
        Self { group, ..self }
    }

    /// Codes in use.
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// Stored type of the scales.
    pub fn scales(self, scales: DType) -> Self {
        Self { scales, ..self }
    }
}

/// Checked parameters: the method.
pub struct CheckedOutputClip {
    spec: GroupSpec,
    method: Box<dyn Method>,
}

impl Check for OutputClip {
    type Checked = CheckedOutputClip;
    fn check(self) -> Result<CheckedOutputClip, ParamError> {
        let group = self.group.map_or(Ok(GroupSize::Channel), GroupSize::size)?;
        let spec = GroupSpec::new(self.bits, group, self.grid, self.scales, Clip::None)?;
        Ok(CheckedOutputClip { spec, method: self.method })
    }
}

impl Method for CheckedOutputClip {
    fn name(&self) -> String {
        self.method.name()
    }

    fn needs(&self) -> StatNeeds {
        self.method.needs().union(StatNeeds { gram: true, ..StatNeeds::default() })
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        self.method.layout(shape)
    }

    fn extent(&self) -> Extent {
        self.method.extent()
    }

    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let gram = GramBlocks::of(stats, |features| self.spec.group().width(features))?;
        Ok(Box::new(Ready { spec: self.spec, gram, next: self.method.prepare(stats, cx)? }))
    }

    fn plain(&self) -> Option<&dyn Method> {
        self.method.plain()
    }
}

struct Ready<'s> {
    spec: GroupSpec,
    gram: GramBlocks,
    next: Box<dyn Prepared + 's>,
}

fn limit(w: &[f32], step: usize) -> f32 {
    w.iter().fold(0f32, |m, v| m.max(v.abs())) * (1.0 - step as f32 / (2 * STEPS) as f32)
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let (shape, isa) = (w.shape(), cx.isa());
        let cols = shape[1];
        if cols != self.gram.features() {
            return Err(Error::shape("features of the statistics", cols, self.gram.features()));
        }
        let (mut values, mask) = read_masked(w, rows.clone())?;
        let (spec, codes) = (&self.spec, self.spec.grid().codes(self.spec.bits()));
        let chosen = cx.run(|| {
            self.gram.best_of(&values, STEPS, |step, _, _, w, out| {
                let max = limit(w, step);
                w.iter().zip(&mut *out).for_each(|(w, o)| *o = w.clamp(-max, max));
                // A group whose scale leaves its type is refused by the method that follows.
                if let Ok(fit) = spec.fit(isa, out) {
                    out.iter_mut()
                        .for_each(|v| *v = affine::value(affine::code(*v, fit, *codes.start(), *codes.end()), fit));
                }
            })
        })?;
        let (width, groups) = (spec.group().width(cols).max(1), spec.group().count(cols));
        let original = values.clone();
        for (r, row) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            for (g, group) in row.chunks_mut(width).enumerate() {
                let max = limit(group, usize::from(chosen[r * groups + g]));
                group.iter_mut().for_each(|v| *v = v.clamp(-max, max));
            }
        }
        let clipped = Clipped { shape, first: rows.start, values, mask };
        let mut done = self.next.compress(&clipped, rows.clone(), cx)?;
        let mut back = vec![0f32; original.len()];
        done.op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        done.report.squared_error = metrics::squared_error(&original, &back);
        done.report.energy = metrics::energy(&original);
        // The method that follows measured against clipped weights.
        done.report.data_error = None;
        done.report.data_energy = None;
        Ok(done)
    }
}

/// Some rows of a matrix, in memory.
struct Clipped {
    shape: [usize; 2],
    first: usize,
    values: Vec<f32>,
    mask: Option<Mask>,
}

impl RowSource for Clipped {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let cols = self.shape[1];
        let start = rows.start.checked_sub(self.first).map(|r| r * cols);
        let here = start.and_then(|s| self.values.get(s..s + rows.len() * cols));
        let here = here.ok_or_else(|| Error::range("rows of a block", self.first..self.shape[0], rows))?;
        out.copy_from_slice(here);
        Ok(())
    }
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        let Some(mask) = &self.mask else { return Ok(false) };
        let start = rows.start.checked_sub(self.first);
        let start = start.ok_or_else(|| Error::range("rows of a block", self.first..self.shape[0], rows.clone()))?;
        *out = mask.rows(start..start + rows.len())?;
        Ok(true)
    }
}
