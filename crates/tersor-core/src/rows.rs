//! [`RowSource`]: matrices that are read a few rows at a time, so that they may be larger than memory.

use crate::{DType, Error, Mask, Result, TensorSource, view::elements};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A matrix `[rows, cols]` that returns some of its rows at a time, in f32, to any thread, so that it may be larger than memory. Methods
/// read the weights that they compress from it. Views of slices ([`MatView`](crate::MatView)), stored tensors ([`StoredRows`]), and
/// matrices with a mask or with other changes are sources.
///
/// ```
/// use std::ops::Range;
/// use tersor_core::{RowSource, Result, read_finite, rows};
///
/// /// The identity matrix, without storing it.
/// struct Identity(usize);
///
/// impl RowSource for Identity {
///     fn shape(&self) -> [usize; 2] {
///         [self.0; 2]
///     }
///     fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
///         rows::check_range(self.shape(), &rows, out.len())?;
///         out.fill(0.0);
///         rows.zip(out.chunks_exact_mut(self.0)).for_each(|(r, row)| row[r] = 1.0);
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// assert_eq!(read_finite(&Identity(3), 1..2)?, [0.0, 1.0, 0.0]);
/// assert!(read_finite(&Identity(3), 2..4).is_err(), "there are three rows");
/// # Ok(())
/// # }
/// ```
pub trait RowSource: Sync {
    /// Returns the shape, `[rows, cols]`.
    fn shape(&self) -> [usize; 2];
    /// Writes the rows `rows` in f32 into `out`, `[rows.len(), cols]` row-major. Errors if the range leaves the matrix, `out` has another
    /// length, or the rows cannot be read.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
    /// Replaces `out` by the mask of the rows `rows`, `[rows.len(), cols]`, and returns true. Returns false, with `out` unchanged, if the
    /// matrix has no mask (the default): every weight is kept. Pruned weights read as zero, and quantizers leave them at zero. Errors if
    /// the range leaves the matrix.
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        let _ = (rows, out);
        Ok(false)
    }
}

/// Returns the rows `rows` of `source`, `[rows.len(), cols]` row-major. Weights that the mask of `source` prunes are zero, even if they are
/// stored as NaN or infinity. Errors if the range leaves the matrix or the rows cannot be read. Errors with [`Error::NonFinite`] at the
/// first NaN or infinity of the result, with its row and column in the whole matrix.
pub fn read_finite(source: &dyn RowSource, rows: Range<usize>) -> Result<Vec<f32>> {
    Ok(read_masked(source, rows)?.0)
}

/// Returns the rows `rows` of `source`, `[rows.len(), cols]` row-major, and the mask of these rows, or None in place of the mask if
/// `source` has none. Weights that the mask prunes are zero, even if they are stored as NaN or infinity. Errors if the range leaves the
/// matrix or the rows cannot be read. Errors with [`Error::NonFinite`] at the first NaN or infinity of the result, with its row and column
/// in the whole matrix.
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

/// Errors with [`Error::NonFinite`] at the first NaN or infinity of `x`, a row-major matrix of `cols` columns (0 counts as 1). The error
/// has the row and the column, counted from 0; `first_row` is added to the row, for an `x` that begins at this row of a larger matrix.
pub fn check_finite(x: &[f32], cols: usize, first_row: usize) -> Result<()> {
    // One pass without branches; the search for the index follows only if a value is not finite.
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

/// What [`Repaired`], a source of weights, does with NaN and infinite weights. `Refuse`, the default, leaves them in place, so that readers
/// error on them. `Zero` replaces them by 0. `Clamp` replaces an infinity by the largest finite magnitude in its row (0 if no weight of the
/// row is finite), with the sign of the infinity, and NaN by 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NonFinite {
    /// NaN and infinities are left in place, and the readers of the weights error on them.
    #[default]
    Refuse,
    /// NaN and infinities are replaced by 0.
    Zero,
    /// Infinities are replaced by the largest finite magnitude of their row (0 if no value is finite), with their sign; NaN by 0.
    Clamp,
}

/// A [`RowSource`] (a matrix that is read some rows at a time) that reads another one, replaces its NaN and infinities, and counts the
/// replaced values. A [`NonFinite`] selects the replacement: 0 for NaN and for infinities; or 0 for NaN and, for an infinity, the largest
/// finite magnitude in its row with the sign of the infinity; or none.
///
/// ```
/// use tersor_core::{MatView, NonFinite, Repaired, read_finite};
/// # fn main() -> tersor_core::Result<()> {
/// let data = [f32::NAN, 2.0, f32::NEG_INFINITY];
/// let weights = MatView::new(&data, [1, 3])?;
/// assert!(read_finite(&weights, 0..1).is_err());
/// let repaired = Repaired::new(&weights, NonFinite::Clamp);
/// assert_eq!(read_finite(&repaired, 0..1)?, [0.0, 2.0, -2.0]);
/// assert_eq!(repaired.count(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Repaired<'a> {
    source: &'a dyn RowSource,
    policy: NonFinite,
    count: AtomicU64,
}

impl<'a> Repaired<'a> {
    /// Returns the matrix `source` with NaN and infinities replaced when rows are read. With [`NonFinite::Zero`], NaN and infinities become
    /// 0. With [`NonFinite::Clamp`], NaN becomes 0, and an infinity becomes the largest finite magnitude in its row (0 if there is none)
    /// with the sign of the infinity. With [`NonFinite::Refuse`], nothing is replaced or counted.
    pub fn new(source: &'a dyn RowSource, policy: NonFinite) -> Self {
        Self { source, policy, count: AtomicU64::new(0) }
    }

    /// Returns the number of values that were replaced so far; a value that was read twice counts twice.
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

/// Errors with [`Error::Range`] unless the range `rows` is inside of a matrix of the shape `shape`, `[rows, cols]`, and with
/// [`Error::Shape`] unless `out`, the length of a slice for these rows in elements, is `rows.len() * cols`; with [`Error::Overflow`] if
/// that exceeds the address space. Implementations of [`RowSource::read_rows`] check their arguments with it.
pub fn check_range(shape: [usize; 2], rows: &Range<usize>, out: usize) -> Result<()> {
    if rows.start > rows.end || rows.end > shape[0] {
        return Err(Error::range("rows", 0..shape[0], rows.clone()));
    }
    let expected = elements([rows.len(), shape[1]])?;
    if expected != out {
        return Err(Error::shape("output of a row range", expected, out));
    }
    Ok(())
}

/// Returns the shape `[rows, cols]` of a tensor as a matrix, from the lengths of its axes: `cols` is the last axis, `rows` the product of
/// all others. A vector `[n]` is `[1, n]`; a tensor without axes is `[1, 1]`. Errors if the matrix exceeds the address space.
pub fn rows_and_columns(axes: &[usize]) -> Result<[usize; 2]> {
    let (last, leading) = axes.split_last().map_or((1, axes), |(l, r)| (*l, r));
    let rows = leading.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let shape = [rows.ok_or_else(|| Error::Overflow { what: format!("a tensor of shape {axes:?}") })?, last];
    elements(shape)?;
    Ok(shape)
}

/// A [`RowSource`] (a matrix that is read some rows at a time) of a stored F32, F16 or BF16 tensor, whose values are converted to f32 as
/// they are read.
///
/// ```
/// use tersor_core::{MemTensors, RowSource, StoredRows, tensors};
/// # fn main() -> tersor_core::Result<()> {
/// let mut file = MemTensors::new();
/// tensors::write_floats(&mut file, "w.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0])?;
/// let rows = StoredRows::new(&file, "w.weight")?;
/// let mut out = [0f32; 2];
/// rows.read_rows(1..2, &mut out)?;
/// assert_eq!((rows.shape(), out), ([2, 2], [3.0, 4.0]));
/// assert!(StoredRows::new(&file, "v.weight").is_err());
/// # Ok(())
/// # }
/// ```
pub struct StoredRows<'a> {
    source: &'a dyn TensorSource,
    name: &'a str,
    dtype: DType,
    shape: [usize; 2],
}

impl<'a> StoredRows<'a> {
    /// Opens the tensor `name` of `source` as a matrix: its columns are the last axis, its rows all other axes together. A vector is one
    /// row. Errors if the tensor is missing, its type is not F32, F16 or BF16, or its size exceeds the address space.
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
        self.dtype.widen_bytes(&bytes, out)?;
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
