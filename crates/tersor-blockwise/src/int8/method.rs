//! Row-wise 8-bit integers as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::view::elements;
use tersor_core::{
    Compressed, Context, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet, read_finite,
};
use tersor_operators::RowwiseInt8;

use super::LlmInt8;
use super::algorithm::round_rows;

impl LlmInt8 {
    /// Quantizes `rows` of `w`. Errors if a weight is not finite.
    pub(super) fn rows(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<(RowwiseInt8, Report)> {
        cx.cancel.check()?;
        let start = Instant::now();
        let values = read_finite(w, rows.clone())?;
        let shape = [rows.len(), w.shape()[1]];
        let (codes, absmax) = round_rows(&values, shape);
        let op = RowwiseInt8::from_parts(codes, absmax, shape)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        Ok((op, Report::of(&values, &back, start.elapsed())))
    }
}

impl Method for LlmInt8 {
    fn name(&self) -> String {
        "int8".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds::default()
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        elements(shape)?;
        Ok(RowwiseInt8::layout(shape))
    }

    fn prepare<'s>(&'s self, _: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(*self))
    }

    fn plain(&self) -> Option<&dyn Method> {
        Some(self)
    }
}

impl Prepared for LlmInt8 {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.rows(w, rows, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
