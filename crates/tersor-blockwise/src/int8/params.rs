//! [`LlmInt8`]: it has no parameters.

use tersor_core::stages::{Fields, Part, Segment, Slot, StageSpec, Target};
use tersor_core::{Context, Element, IntoMat, Report, Result};
use tersor_operators::RowwiseInt8;

/// The [`Method`](tersor_core::Method) that quantizes each row of a weight matrix to 8-bit integers by its largest magnitude: `code =
/// round(127 w / max|w|)` (LLM.int8, arXiv 2208.07339, section 2.2). The result is a [`RowwiseInt8`]. The method has no parameters and
/// needs no calibration data.
///
/// ```
/// use tersor_blockwise::{LlmInt8, MatView};
///
/// # fn main() -> tersor_blockwise::Result<()> {
/// let (op, report) = LlmInt8::new().quantize(&MatView::new(&[0.5f32, -2.0, 0.0, 1.0], [2, 2])?)?;
/// assert_eq!(op.codes(), [32, -127, 0, 127]);
/// assert_eq!(op.absmax(), [2.0, 1.0]);
/// assert!(report.relative_error() < 0.01);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LlmInt8;

impl LlmInt8 {
    /// Returns the method, which has no parameters.
    pub fn new() -> Self {
        Self
    }

    /// Quantizes `w`, `[out_features, in_features]`. Returns the matrix of i8 codes with the largest magnitude of each row, and a report
    /// with the squared error of the weights. If `127 / max|w|` of a row is not finite, because its weights are zero or extremely small,
    /// all its codes and its stored magnitude become 0. Errors if a weight is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(RowwiseInt8, Report)> {
        w.with_mat(|m| self.rows(&m, 0..m.shape()[0], &Context::new()))
    }
}

impl StageSpec for LlmInt8 {
    fn kind(&self) -> &'static str {
        "int8"
    }
    fn help(&self) -> &'static str {
        "Rounds to 8-bit integers with a scale for each row (arXiv 2208.07339)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 8..=8, &mut 8)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(*self))])
    }
    fn segments(&self) -> Vec<Segment> {
        vec![Segment::number("w", "bits")]
    }
}
