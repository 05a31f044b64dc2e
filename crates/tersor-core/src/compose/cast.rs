//! Storing weights in a float type, as a method among methods.

use std::ops::Range;
use std::time::Instant;

use crate::*;

/// Keeps a matrix as f32, f16 or bf16, each value rounded to the nearest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast(DType);

impl Cast {
    /// Error unless `dtype` is f32, f16 or bf16.
    pub fn new(dtype: DType) -> Result<Self, ParamError> {
        if dtype.is_weight() {
            Ok(Self(dtype))
        } else {
            Err(ParamError::new("dtype", dtype.name(), "must be F32, F16 or BF16"))
        }
    }
}

impl Method for Cast {
    fn name(&self) -> String {
        self.0.name().to_lowercase()
    }
    fn needs(&self) -> StatNeeds {
        StatNeeds::default()
    }
    fn layout(&self, [rows, cols]: [usize; 2]) -> Result<Layout> {
        view::elements([rows, cols])?;
        Ok(Layout::exact([("", self.0, vec![rows, cols])]))
    }
    fn prepare<'s>(&'s self, _: Option<&StatSet>, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(*self))
    }
}

impl Prepared for Cast {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let (cols, start) = (w.shape()[1], Instant::now());
        let values = read_finite(w, rows.clone())?;
        let energy = metrics::energy(&values);
        let op = compose::Dense::new(values.clone(), [rows.len(), cols], self.0).map_err(|e| match e {
            // Rows of the block, counted in the whole.
            Error::NonFinite { row, col, value } => Error::NonFinite { row: rows.start + row, col, value },
            other => other,
        })?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back)?;
        let squared_error = metrics::squared_error(&values, &back);
        let report = Report { squared_error, energy, seconds: start.elapsed().as_secs_f64(), ..Report::default() };
        Ok(Compressed { op: Box::new(op), report })
    }
}
