//! [`LlmInt8`]: rows of 8-bit integers with a scale each, as LLM.int8 (arXiv 2208.07339, section 2.2) stores weights.

use std::ops::Range;
use std::time::Instant;

use tersor_core::view::elements;
use tersor_core::{
    Compressed, Context, Element, IntoMat, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds,
    StatSet, read_finite,
};
use tersor_operators::RowwiseInt8;

/// The largest code.
const MAX_CODE: f32 = 127.0;

/// The method that makes [`RowwiseInt8`] of matrices: `code = round(127 w / max|w|)` in each row. It has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LlmInt8;

impl LlmInt8 {
    /// Returns the method.
    pub fn new() -> Self {
        Self
    }

    /// Quantizes a matrix `[out_features, in_features]`. Errors on a value that is not finite. A row whose largest magnitude is below 127 over the
    /// largest float counts as zeros.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(RowwiseInt8, Report)> {
        w.with_mat(|m| self.rows(&m, 0..m.shape()[0], &Context::new()))
    }

    fn rows(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<(RowwiseInt8, Report)> {
        cx.cancel.check()?;
        let start = Instant::now();
        let values = read_finite(w, rows.clone())?;
        let (shape, cols) = ([rows.len(), w.shape()[1]], w.shape()[1].max(1));
        let (mut codes, mut absmax) = (vec![0i8; values.len()], vec![0f32; shape[0]]);
        for ((row, out), absmax) in values.chunks(cols).zip(codes.chunks_mut(cols)).zip(&mut absmax) {
            let max = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = MAX_CODE / max;
            if scale.is_finite() {
                *absmax = max;
                out.iter_mut().zip(row).for_each(|(c, v)| *c = (v * scale).round_ties_even() as i8);
            }
        }
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
