//! Rows on demand: what lets a matrix be larger than memory.

use crate::{DType, Error, Mask, Result, TensorSource, view::elements};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A matrix read a few rows at a time, from any thread.
pub trait RowSource: Sync {
    /// `[rows, cols]`.
    fn shape(&self) -> [usize; 2];
    /// Writes the rows of a range, in f32 and row-major, into `out` (`rows.len() * cols` long).
    /// Errors if the range leaves the matrix or `out` has another length.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
    /// Writes which weights of these rows are kept into `out`, `[rows.len(), cols]`, and returns true; returns false if all are. Weights that
    /// are not kept read as zero, and every quantizer leaves them at zero.
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        let _ = (rows, out);
        Ok(false)
    }
}

/// Reads rows and refuses NaN and infinities, naming where they are. Weights that the mask of the source does not keep are zero.
pub fn read_finite(source: &dyn RowSource, rows: Range<usize>) -> Result<Vec<f32>> {
    Ok(read_masked(source, rows)?.0)
}

/// Reads rows as [`read_finite`], and which of their weights are kept where not all are.
pub fn read_masked(source: &dyn RowSource, rows: Range<usize>) -> Result<(Vec<f32>, Option<Mask>)> {
    let [all, cols] = source.shape();
    if rows.start > rows.end || rows.end > all {
        return Err(Error::range("rows", 0..all, rows));
    }
    let mut out = vec![0f32; elements([rows.len(), cols])?];
    source.read_rows(rows.clone(), &mut out)?;
    let mut mask = Mask::default();
    let masked = source.read_mask(rows.clone(), &mut mask)?;
    if masked {
        mask.apply(0..rows.len(), &mut out)?;
    }
    check_finite(&out, cols, rows.start)?;
    Ok((out, masked.then_some(mask)))
}

/// Refuses NaN and infinities in a row-major matrix whose first row has the number `first_row`.
pub fn check_finite(x: &[f32], cols: usize, first_row: usize) -> Result<()> {
    // One pass without branches, then the search.
    const EXPONENT: u32 = 0x7f80_0000;
    let sound = |part: &[f32]| !part.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT));
    if x.chunks(4096).all(sound) {
        return Ok(());
    }
    match x.iter().position(|v| !v.is_finite()) {
        Some(i) => {
            let cols = cols.max(1);
            Err(Error::NonFinite { row: first_row + i / cols, col: i % cols, value: x[i] })
        }
        None => Ok(()),
    }
}

/// What happens to NaN and infinities in weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NonFinite {
    /// They are an error.
    #[default]
    Refuse,
    /// They become 0.
    Zero,
    /// Infinities become the largest finite magnitude of their row, NaN becomes 0.
    Clamp,
}

/// Rows whose values that are not finite are replaced, and counted.
pub struct Repaired<'a> {
    source: &'a dyn RowSource,
    policy: NonFinite,
    count: AtomicU64,
}

impl<'a> Repaired<'a> {
    /// Wraps a source; [`NonFinite::Refuse`] leaves it to the reader to find them.
    pub fn new(source: &'a dyn RowSource, policy: NonFinite) -> Self {
        Self { source, policy, count: AtomicU64::new(0) }
    }

    /// Values replaced so far, each as often as its row was read.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl RowSource for Repaired<'_> {
    fn shape(&self) -> [usize; 2] {
        self.source.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.source.read_rows(rows, out)?;
        if self.policy == NonFinite::Refuse {
            return Ok(());
        }
        for row in out.chunks_exact_mut(self.source.shape()[1].max(1)) {
            if check_finite(row, row.len(), 0).is_ok() {
                continue;
            }
            let finite = row.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
            for v in row.iter_mut().filter(|v| !v.is_finite()) {
                let clamp = self.policy == NonFinite::Clamp && !v.is_nan();
                *v = if clamp { finite.copysign(*v) } else { 0.0 };
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        self.source.read_mask(rows, out)
    }
}

/// Errors unless `rows` lies inside a matrix of `shape` and `out` is as long as those rows are.
pub fn check_range(shape: [usize; 2], rows: &Range<usize>, out: usize) -> Result<()> {
    if rows.start > rows.end || rows.end > shape[0] {
        return Err(Error::range("rows", 0..shape[0], rows.clone()));
    }
    if rows.len() * shape[1] != out {
        return Err(Error::shape("output of a row range", rows.len() * shape[1], out));
    }
    Ok(())
}

/// A tensor of any number of axes as rows and columns: the last axis is the row. Error on overflow.
pub fn rows_and_columns(axes: &[usize]) -> Result<[usize; 2]> {
    let (last, leading) = axes.split_last().map_or((1, axes), |(l, r)| (*l, r));
    let rows = leading.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let shape = [rows.ok_or_else(|| Error::Overflow { what: format!("a tensor of shape {axes:?}") })?, last];
    elements(shape)?;
    Ok(shape)
}

/// The rows of a stored f32, f16 or bf16 matrix.
pub struct StoredRows<'a> {
    source: &'a dyn TensorSource,
    name: &'a str,
    dtype: DType,
    shape: [usize; 2],
}

impl<'a> StoredRows<'a> {
    /// Looks the tensor up. A vector counts as one row; of more than two axes, the last one is the row. Error when it is
    /// missing or not a float type.
    pub fn new(source: &'a dyn TensorSource, name: &'a str) -> Result<Self> {
        let info = source.info(name)?;
        let shape = rows_and_columns(&info.shape).map_err(|e| e.in_tensor(name))?;
        if !info.dtype.is_weight() {
            let value = format!("{} (weights are F32, F16 or BF16)", info.dtype.name());
            return Err(Error::Unsupported { what: "type of a weight", value }.in_tensor(name));
        }
        Ok(Self { source, name, dtype: info.dtype, shape })
    }
}

impl RowSource for StoredRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let width = self.shape[1] * self.dtype.size();
        let mut bytes = vec![0u8; out.len() * self.dtype.size()];
        self.source.read_at(self.name, (rows.start * width) as u64, &mut bytes)?;
        self.dtype.widen_bytes(&bytes, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatView;

    #[test]
    fn what_is_not_finite_is_refused_or_replaced_and_counted() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let w = [1.0, nan, -3.0, 2.0, inf, -inf, nan, nan, nan];
        let m = MatView::new(&w, [3, 3]).unwrap();
        let read = |policy| {
            let source = Repaired::new(&m, policy);
            let rows = read_finite(&source, 0..3);
            (rows, source.count())
        };
        assert!(matches!(read(NonFinite::Refuse).0, Err(Error::NonFinite { row: 0, col: 1, .. })));
        let (rows, count) = read(NonFinite::Zero);
        assert_eq!((rows.unwrap(), count), (vec![1.0, 0.0, -3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6));
        let (rows, count) = read(NonFinite::Clamp);
        assert_eq!((rows.unwrap(), count), (vec![1.0, 0.0, -3.0, 2.0, 2.0, -2.0, 0.0, 0.0, 0.0], 6));
    }
}
