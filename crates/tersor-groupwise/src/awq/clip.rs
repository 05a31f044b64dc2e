//! The search of ranges, as a method around another.

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::{
    Check, Compressed, Context, DType, Error, GroupSize, Isa, Layout, Method, ParamError, Prepared, Result, RowSource,
    StatNeeds, StatSet, metrics, read_finite,
};
use tersor_kernels::affine;

use crate::search::GramBlocks;
use crate::{Clip, Grid, GroupSpec};

/// Shares of the largest magnitude that are tried: `1 - i / 20`.
const STEPS: usize = 10;

/// Cuts the values of each group of a row at `max|w| * (1 - i / 20)`, `i` in `0..10`, whichever loses least in the outputs of the group under the
/// Gram matrix of the inputs, and hands the matrix on. 4 bits, groups of 128, asymmetric, f16 scales, unless told otherwise: the grid that the matrix will be
/// rounded to.
pub struct OutputClip {
    bits: u32,
    group: Option<usize>,
    grid: Grid,
    scales: DType,
    method: Box<dyn Method>,
}

impl OutputClip {
    /// Before a method.
    pub fn before(method: Box<dyn Method>) -> Self {
        Self { bits: 4, group: Some(128), grid: Grid::Asym, scales: DType::F16, method }
    }

    /// Bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Features of a group; none: the row.
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

    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let gram = GramBlocks::of(stats, |features| self.spec.group.width(features))?;
        Ok(Box::new(Ready { spec: self.spec, gram, next: self.method.prepare(stats, cx)? }))
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
        let (shape, isa) = (w.shape(), Isa::detect());
        let cols = shape[1];
        if cols != self.gram.features {
            return Err(Error::shape("features of the statistics", cols, self.gram.features));
        }
        let mut values = read_finite(w, rows.clone())?;
        let (spec, codes) = (&self.spec, self.spec.grid.codes(self.spec.bits));
        let chosen = cx.run(|| {
            self.gram.best_of(&values, STEPS, |step, _, _, w, out| {
                let most = limit(w, step);
                w.iter().zip(&mut *out).for_each(|(w, o)| *o = w.clamp(-most, most));
                // A group whose scale leaves its type is refused by the method that follows.
                if let Ok(fit) = spec.fit(isa, out) {
                    out.iter_mut()
                        .for_each(|v| *v = affine::value(affine::code(*v, fit, *codes.start(), *codes.end()), fit));
                }
            })
        });
        let (width, groups) = (spec.group.width(cols).max(1), spec.group.count(cols));
        let original = values.clone();
        for (r, row) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            for (g, group) in row.chunks_mut(width).enumerate() {
                let most = limit(group, usize::from(chosen[r * groups + g]));
                group.iter_mut().for_each(|v| *v = v.clamp(-most, most));
            }
        }
        let clipped = Clipped { shape, first: rows.start, values };
        let mut done = self.next.compress(&clipped, rows.clone(), cx)?;
        let mut back = vec![0f32; original.len()];
        done.op.decompress_rows(0..rows.len(), &mut back)?;
        done.report.squared_error = metrics::squared_error(&original, &back);
        done.report.energy = metrics::energy(&original);
        // What follows measured against clipped weights.
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
        let here = here.ok_or_else(|| Error::shape("rows of a block", self.first, rows))?;
        out.copy_from_slice(here);
        Ok(())
    }
}
