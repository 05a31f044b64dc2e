//! [`Cast`]: weights stored in a float type.

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Compressed, Context, DType, Layout, LinearOp, Method, ParamError, Prepared, Report, Result, RowSource, StatNeeds,
    StatSet, read_finite, view,
};

use crate::Dense;

/// The [`Method`] that stores a matrix as f32, f16 or bf16, each value rounded to nearest even. It needs no calibration data, and its
/// result is a [`Dense`]. Compressing errors if a weight is not finite, or becomes infinite in the type.
///
/// ```
/// use tersor_operators::{Cast, DType, Method};
/// # fn main() -> tersor_operators::Result<()> {
/// assert_eq!(Cast::new(DType::BF16)?.layout([2, 3])?.bits()?, 6 * 16);
/// assert!(Cast::new(DType::U8).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast(DType);

impl Cast {
    /// Returns the method that stores weights as `dtype`. Errors unless `dtype` is f32, f16 or bf16.
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
    fn prepare<'s>(&'s self, _: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(*self))
    }
    fn plain(&self) -> Option<&dyn Method> {
        Some(self)
    }
}

impl Prepared for Cast {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let (cols, start) = (w.shape()[1], Instant::now());
        let values = read_finite(w, rows.clone())?;
        let op = Dense::new(values.clone(), [rows.len(), cols], self.0).map_err(|e| e.in_rows_from(rows.start))?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        Ok(Compressed { op: Box::new(op), report: Report::of(&values, &back, start.elapsed()) })
    }
}
