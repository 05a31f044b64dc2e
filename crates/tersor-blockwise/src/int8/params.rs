//! [`LlmInt8`]: it has no parameters.

use tersor_core::{Context, Element, IntoMat, Report, Result};
use tersor_operators::RowwiseInt8;

/// The [`Method`](tersor_core::Method) that quantizes each row to 8-bit integers by its largest magnitude: `code = round(127 w / max|w|)` (LLM.int8,
/// arXiv 2208.07339, section 2.2). It has no parameters and needs no data.
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
    /// Returns the method.
    pub fn new() -> Self {
        Self
    }

    /// Quantizes `w`, `[out_features, in_features]`. Errors if a weight is not finite. Rows whose largest magnitude is so small that `127 / max|w|`
    /// is not finite become zeros.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(RowwiseInt8, Report)> {
        w.with_mat(|m| self.rows(&m, 0..m.shape()[0], &Context::new()))
    }
}
