//! The clip search as a [`Method`] in front of another.

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::{
    Compressed, Context, Error, Extent, Layout, Mask, Method, Prepared, Result, RowSource, StatNeeds, StatSet, metrics,
    read_masked,
};
use tersor_operators::GroupSpec;

use super::CheckedOutputClip;
use super::algorithm::clip;
use crate::search::GramBlocks;

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

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let shape = w.shape();
        if shape[1] != self.gram.features() {
            return Err(Error::shape("features of the statistics", shape[1], self.gram.features()));
        }
        let (original, mask) = read_masked(w, rows.clone())?;
        let mut values = original.clone();
        cx.run(|| clip(&self.spec, &self.gram, &mut values, cx.isa()))?;
        let clipped = Clipped { shape, first: rows.start, values, mask };
        let mut done = self.next.compress(&clipped, rows.clone(), cx)?;
        let mut back = vec![0f32; original.len()];
        done.op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        done.report.squared_error = metrics::squared_error(&original, &back);
        done.report.energy = metrics::energy(&original);
        // The wrapped method measured them against the clipped weights.
        done.report.data_error = None;
        done.report.data_energy = None;
        Ok(done)
    }
}

/// A block of clipped rows, as the source that the wrapped method reads.
struct Clipped {
    /// Shape of the whole matrix.
    shape: [usize; 2],
    /// Index of the block's first row in the matrix.
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
