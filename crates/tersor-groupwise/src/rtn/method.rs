//! Round-to-nearest as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    ColumnCoder, Compressed, Context, Error, Extent, GroupSize, Layout, LinearOp, Method, Prepared, Report, Result,
    RowSource, StatNeeds, StatSet, read_finite,
};
use tersor_operators::GroupedLinear;
use tersor_operators::packing::check_group;

use super::CheckedRtn;
use super::algorithm::round;
use crate::coder::{GroupCoder, Groups};

impl Method for CheckedRtn {
    fn name(&self) -> String {
        "rtn".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { squares: self.importance, ..StatNeeds::default() }
    }

    fn extent(&self) -> Extent {
        if self.spec.group() == GroupSize::Tensor { Extent::Whole } else { Extent::Blocks }
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        check_group(self.spec.group(), shape[1])?;
        Ok(GroupedLinear::layout(&self.spec, shape))
    }

    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(self.ready(stats)?))
    }

    fn plain(&self) -> Option<&dyn Method> {
        Some(self.plain.as_deref().unwrap_or(self))
    }

    fn coder<'s>(
        &'s self,
        w: &'s dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Option<Result<Box<dyn ColumnCoder + 's>>> {
        let made = || -> Result<Box<dyn ColumnCoder + 's>> {
            self.extent().check(&rows, w.shape()[0])?;
            let values = read_finite(w, rows.clone())?;
            let coder = GroupCoder::new(self.spec, Groups::Dynamic, &values, w.shape()[1], rows.start, cx.isa())?;
            Ok(Box::new(coder))
        };
        (self.spec.group() != GroupSize::Tensor).then(made)
    }
}

impl CheckedRtn {
    /// Returns the method with the importance of each input feature, if the clip search is weighted by it. Errors if the statistics lack mean
    /// squares.
    pub(super) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        let mut importance = Vec::new();
        if self.importance {
            let squares = stats.require_squares()?;
            // Normalized to the mean 1: only ratios matter, so f32 suffices.
            let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
            importance.extend(squares.iter().map(|v| if mean > 0.0 { (v / mean) as f32 } else { 1.0 }));
        }
        Ok(Ready { method: self, importance })
    }
}

/// Round-to-nearest prepared for a site.
pub(super) struct Ready<'m> {
    method: &'m CheckedRtn,
    /// Weight of each input feature, `[features]`; empty if all are equal.
    importance: Vec<f32>,
}

impl Ready<'_> {
    /// Rounds `rows` of `w`. Errors as [`Prepared::compress`].
    pub(super) fn grouped(
        &self,
        w: &dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Result<(GroupedLinear, Report)> {
        cx.cancel.check()?;
        let ([all, cols], start) = (w.shape(), Instant::now());
        if self.method.importance && self.importance.len() != cols {
            return Err(Error::shape("features of the statistics", cols, self.importance.len()));
        }
        self.method.extent().check(&rows, all)?;
        let values = read_finite(w, rows.clone())?;
        let shape = [rows.len(), cols];
        let op = cx.run(|| round(&self.method.spec, &values, shape, &self.importance, cx.isa()));
        let op = op.map_err(|e| e.in_rows_from(rows.start))?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        Ok((op, Report::of(&values, &back, start.elapsed())))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.grouped(w, rows, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
