//! [`MatView`] and [`MatViewMut`]: matrices over memory that somebody else owns, a slice with a shape and strides.

use crate::{Element, Error, Isa, Result, RowSource};
use std::borrow::Cow;
use std::ops::Range;

/// A read-only matrix `[rows, cols]` over a borrowed slice of f32, f16 or bf16. Rows and columns have any strides (negative and zero too)
/// that stay inside of the slice.
///
/// ```
/// use tersor_core::{MatView, RowSource};
/// # fn main() -> tersor_core::Result<()> {
/// let data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let m = MatView::new(&data, [2, 3])?;
/// assert_eq!(*m.row(1), [4.0, 5.0, 6.0]);
/// // Views of the same memory: the transpose, and its last row only.
/// let t = m.transposed();
/// assert_eq!((t.shape(), &*t.to_f32()), ([3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0][..]));
/// assert_eq!(*m.columns(2..3)?.to_f32(), [3.0, 6.0]);
/// // Every view is a source of rows.
/// let mut rows = [0f32; 3];
/// m.read_rows(0..1, &mut rows)?;
/// assert_eq!(rows, [1.0, 2.0, 3.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MatView<'a, T> {
    data: &'a [T],
    first: usize,
    shape: [usize; 2],
    strides: [isize; 2],
}

impl<'a, T: Element> MatView<'a, T> {
    /// Returns the contiguous row-major matrix `[rows, cols]` over `data`. Errors if `data` does not have exactly `rows * cols` elements.
    pub fn new(data: &'a [T], shape: [usize; 2]) -> Result<Self> {
        let n = elements(shape)?;
        if data.len() != n {
            return Err(Error::shape("elements of a matrix", n, data.len()));
        }
        Ok(Self { data, first: 0, shape, strides: [shape[1] as isize, 1] })
    }

    /// Returns the matrix `[rows, cols]` over `data` whose element `(r, c)` is `data[first + r * strides[0] + c * strides[1]]`; offset and
    /// strides count elements. Errors if an element would lie outside of the slice.
    pub fn strided(data: &'a [T], first: usize, shape: [usize; 2], strides: [isize; 2]) -> Result<Self> {
        elements(shape)?;
        if shape[0] > 0 && shape[1] > 0 {
            // The extremes of an affine function lie in the corners.
            let extent = |n: usize, s: isize| (n as i128 - 1) * s as i128;
            let (dr, dc) = (extent(shape[0], strides[0]), extent(shape[1], strides[1]));
            let low = first as i128 + dr.min(0) + dc.min(0);
            let high = first as i128 + dr.max(0) + dc.max(0);
            if low < 0 || high >= data.len() as i128 {
                return Err(Error::shape("strided matrix", format!("offsets in 0..{}", data.len()), (low, high)));
            }
        }
        Ok(Self { data, first, shape, strides })
    }

    /// Returns the shape, `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Returns the transpose `[cols, rows]`, a view of the same memory.
    pub fn transposed(self) -> Self {
        let ([r, c], [a, b]) = (self.shape, self.strides);
        Self { shape: [c, r], strides: [b, a], ..self }
    }

    /// Returns the columns `range`, counted from 0, of all rows as a matrix `[rows, range.len()]`, a view of the same memory. Errors if the
    /// range is not inside of the columns.
    pub fn columns(self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.shape[1] {
            return Err(Error::shape("column range", format!("inside 0..{}", self.shape[1]), range));
        }
        let shape = [self.shape[0], range.len()];
        // An empty part may begin anywhere; keep the offset inside the slice.
        let first = if range.is_empty() {
            0
        } else {
            self.first.wrapping_add_signed((range.start as isize).wrapping_mul(self.strides[1]))
        };
        Ok(Self { first, shape, ..self })
    }

    /// Returns all elements as one slice, `[rows, cols]` row-major; None if they are not contiguous in memory in that order.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        let [rows, cols] = self.shape;
        let row_major = (self.strides[1] == 1 || cols <= 1) && (self.strides[0] == cols as isize || rows <= 1);
        if rows == 0 || cols == 0 {
            return Some(&[]);
        }
        if row_major { self.data.get(self.first..self.first + rows * cols) } else { None }
    }

    /// Returns row `row`, counted from 0, in f32, `[cols]`: borrowed if its elements are contiguous f32, converted to a copy otherwise.
    /// Empty if there is no such row.
    pub fn row(&self, row: usize) -> Cow<'a, [f32]> {
        let [rows, cols] = self.shape;
        if row >= rows || cols == 0 {
            return Cow::Borrowed(&[]);
        }
        // Checked in `strided`: inside the slice.
        let start = (self.first as isize + row as isize * self.strides[0]) as usize;
        if self.strides[1] == 1
            && let Some(values) = self.data.get(start..start + cols).and_then(T::as_f32)
        {
            return Cow::Borrowed(values);
        }
        let mut out = vec![0f32; cols];
        self.widen_row(row, &mut out);
        Cow::Owned(out)
    }

    /// Writes row `row`, which must exist, into `out`, which must have `cols` elements.
    fn widen_row(&self, row: usize, out: &mut [f32]) {
        let start = self.first as isize + row as isize * self.strides[0];
        if self.strides[1] == 1 {
            let start = start as usize;
            if let Some(s) = self.data.get(start..start + out.len()) {
                T::widen(Isa::detect(), s, out);
            }
            return;
        }
        for (c, v) in out.iter_mut().enumerate() {
            // Checked in `strided`: inside the slice.
            *v = self.data[(start + c as isize * self.strides[1]) as usize].to_f32();
        }
    }

    /// Returns all elements in f32, `[rows, cols]` row-major: borrowed if they are f32 and contiguous in that order, converted to a copy
    /// otherwise.
    pub fn to_f32(&self) -> Cow<'a, [f32]> {
        if let Some(slice) = self.as_slice().and_then(T::as_f32) {
            return Cow::Borrowed(slice);
        }
        let [rows, cols] = self.shape;
        let mut out = vec![0f32; rows * cols];
        if cols > 0 {
            for (r, row) in out.chunks_exact_mut(cols).enumerate() {
                self.widen_row(r, row);
            }
        }
        Cow::Owned(out)
    }
}

impl<T: Element> RowSource for MatView<'_, T> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        crate::rows::check_range(self.shape, &rows, out.len())?;
        if self.shape[1] > 0 {
            for (r, row) in rows.zip(out.chunks_exact_mut(self.shape[1])) {
                self.widen_row(r, row);
            }
        }
        Ok(())
    }
}

/// A writable f32 matrix `[rows, cols]` over a borrowed slice. The elements of a row are contiguous; neighbouring rows begin `stride`
/// elements apart.
///
/// ```
/// use tersor_core::MatViewMut;
/// # fn main() -> tersor_core::Result<()> {
/// // A matrix [2, 2] whose rows begin at multiples of 3.
/// let mut data = [0f32; 6];
/// let mut y = MatViewMut::strided(&mut data, [2, 2], 3)?;
/// y.rows_mut().for_each(|row| row.fill(1.0));
/// assert_eq!(data, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MatViewMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 2],
    stride: usize,
}

impl<'a> MatViewMut<'a> {
    /// Returns the contiguous row-major matrix `[rows, cols]` over the first `rows * cols` elements of `data`. Errors if `data` has fewer.
    pub fn new(data: &'a mut [f32], shape: [usize; 2]) -> Result<Self> {
        Self::strided(data, shape, shape[1])
    }

    /// Returns the matrix `[rows, cols]` over `data` whose row `r` begins at element `r * stride`. Errors if rows would overlap (`stride`
    /// is less than `cols`, with more than one row) or the last one would end outside of the slice.
    pub fn strided(data: &'a mut [f32], shape: [usize; 2], stride: usize) -> Result<Self> {
        elements(shape)?;
        let [rows, cols] = shape;
        let end = if rows == 0 { Some(0) } else { (rows - 1).checked_mul(stride).and_then(|v| v.checked_add(cols)) };
        if (rows > 1 && stride < cols) || end.is_none_or(|e| e > data.len()) {
            return Err(Error::shape(
                "output",
                format!("{shape:?} inside {} elements", data.len()),
                format!("row stride {stride}"),
            ));
        }
        Ok(Self { data, shape, stride: stride.max(cols) })
    }

    /// Returns the shape, `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Returns a view of the same matrix that borrows this one, so that it can be passed on and this one used again afterwards.
    pub fn reborrow(&mut self) -> MatViewMut<'_> {
        MatViewMut { data: self.data, shape: self.shape, stride: self.stride }
    }

    /// Returns the rows from the first to the last, one slice of `cols` elements each. A matrix without columns may give fewer rows than it
    /// has.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let [rows, cols] = self.shape;
        self.data.chunks_mut(self.stride.max(1)).take(rows).map(move |r| {
            let n = cols.min(r.len());
            &mut r[..n]
        })
    }

    /// Returns the columns `range`, counted from 0, of all rows as a matrix `[rows, range.len()]`, a view of the same memory. Errors if the
    /// range is not inside of the columns.
    pub fn columns(self, range: Range<usize>) -> Result<MatViewMut<'a>> {
        if range.start > range.end || range.end > self.shape[1] {
            return Err(Error::shape("column range", format!("inside 0..{}", self.shape[1]), range));
        }
        let data = self.data.get_mut(range.start..).unwrap_or_default();
        Ok(MatViewMut { data, shape: [self.shape[0], range.len()], stride: self.stride })
    }

    /// Returns this matrix as the output argument of the kernels: its elements, and the row stride in elements. Row `r` begins at element
    /// `r * stride`.
    pub fn into_out(self) -> tersor_kernels::dense::Out<'a> {
        tersor_kernels::dense::Out { data: self.data, stride: self.stride }
    }
}

/// Returns `rows * cols`. Errors if that many values of 8 bytes exceed the address space (`isize::MAX` bytes); for this check, a length of
/// 0 counts as 1.
pub fn elements([rows, cols]: [usize; 2]) -> Result<usize> {
    let full = rows.max(1).checked_mul(cols.max(1)).and_then(|n| n.checked_mul(8));
    match full.filter(|&b| b <= isize::MAX as usize) {
        Some(_) => Ok(rows * cols),
        None => Err(Error::Overflow { what: format!("a matrix of {rows} by {cols}") }),
    }
}

/// Types that can be read as a matrix `[rows, cols]` of elements `T`: [`MatView`], pairs of a row-major slice and `[rows, cols]`, and, with
/// the feature `ndarray`, ndarray's two-dimensional arrays.
///
/// ```
/// use tersor_core::IntoMat;
/// # fn main() -> tersor_core::Result<()> {
/// let sum = (&[1.0f32, 2.0, 3.0][..], [1, 3]).with_mat(|m| Ok(m.to_f32().iter().sum::<f32>()))?;
/// assert_eq!(sum, 6.0);
/// # Ok(())
/// # }
/// ```
pub trait IntoMat<T: Element> {
    /// Calls `f` once with a view of the matrix `[rows, cols]` and returns its result. An ndarray whose memory is not one slice is copied
    /// first. Errors if the shape does not match the slice, or `f` errors.
    fn with_mat<R>(&self, f: impl FnOnce(MatView<'_, T>) -> Result<R>) -> Result<R>;
}

impl<T: Element> IntoMat<T> for MatView<'_, T> {
    fn with_mat<R>(&self, f: impl FnOnce(MatView<'_, T>) -> Result<R>) -> Result<R> {
        f(*self)
    }
}

impl<T: Element> IntoMat<T> for (&[T], [usize; 2]) {
    fn with_mat<R>(&self, f: impl FnOnce(MatView<'_, T>) -> Result<R>) -> Result<R> {
        f(MatView::new(self.0, self.1)?)
    }
}

#[cfg(feature = "ndarray")]
impl<T: Element, S: ndarray::Data<Elem = T>> IntoMat<T> for ndarray::ArrayBase<S, ndarray::Ix2> {
    fn with_mat<R>(&self, f: impl FnOnce(MatView<'_, T>) -> Result<R>) -> Result<R> {
        let shape = [self.nrows(), self.ncols()];
        if let Some(slice) = self.as_slice_memory_order() {
            // The memory is one slice; negative strides put the first logical element behind its start.
            let strides = [self.strides()[0], self.strides()[1]];
            let back = |n: usize, s: isize| if s < 0 { (n.max(1) - 1) * s.unsigned_abs() } else { 0 };
            return f(MatView::strided(
                slice,
                back(shape[0], strides[0]) + back(shape[1], strides[1]),
                shape,
                strides,
            )?);
        }
        let copy: Vec<T> = self.iter().copied().collect();
        f(MatView::new(&copy, shape)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_strides_read_as_the_copy_does(rows in 0usize..6, cols in 0usize..6, flip in any::<[bool; 2]>(), swap in any::<bool>(), from in 0usize..3) {
            let (full, pad) = (cols + 3, 2usize);
            let data: Vec<f32> = (0..(rows + pad) * full).map(|i| i as f32 - 7.0).collect();
            let sign = |f: bool| if f { -1isize } else { 1 };
            let strides = [full as isize * sign(flip[0]), sign(flip[1])];
            let first = from + if flip[0] { rows.saturating_sub(1) * full } else { 0 } + if flip[1] { cols.saturating_sub(1) } else { 0 };
            let mut view = MatView::strided(&data, first, [rows, cols], strides).unwrap();
            let at = |r: usize, c: usize| data[(first as isize + r as isize * strides[0] + c as isize * strides[1]) as usize];
            let mut want: Vec<f32> = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect();
            if swap {
                view = view.transposed();
                want = (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| at(r, c)).collect();
            }
            let flat = view.to_f32();
            prop_assert_eq!(&flat[..], &want[..]);
            let n = view.shape()[0];
            let mut read = vec![0f32; want.len()];
            view.read_rows(0..n, &mut read).unwrap();
            prop_assert_eq!(&read, &want);
            let half: Vec<f16> = want.iter().map(|&v| f16::from_f32(v)).collect();
            let brain: Vec<bf16> = want.iter().map(|&v| bf16::from_f32(v)).collect();
            let half = MatView::new(&half, view.shape()).unwrap().to_f32().into_owned();
            let brain = MatView::new(&brain, view.shape()).unwrap().to_f32().into_owned();
            prop_assert_eq!(&half, &want);
            prop_assert_eq!(&brain, &want);
        }
    }

    #[test]
    fn views_outside_their_slice_are_refused() {
        let data = [0f32; 12];
        assert!(MatView::strided(&data, 0, [3, 4], [4, 1]).is_ok());
        assert!(MatView::strided(&data, 1, [3, 4], [4, 1]).is_err());
        assert!(MatView::strided(&data, 0, [3, 4], [-4, 1]).is_err());
        assert!(MatView::strided(&data, 0, [usize::MAX, 4], [0, 0]).is_err());
        assert!(MatView::strided(&data, 0, [3, 4], [isize::MAX, 1]).is_err());
        assert!(MatView::strided(&data, 11, [5, 7], [0, 0]).is_ok(), "a broadcast of one element");
        assert!(MatView::new(&data, [3, 5]).is_err());
        assert!(MatView::new(&data, [3, 4]).unwrap().columns(3..5).is_err());
        let mut out = [0f32; 12];
        assert!(MatViewMut::strided(&mut out, [3, 4], 0).is_err(), "a mutable broadcast");
        assert!(MatViewMut::strided(&mut out, [3, 4], 5).is_err());
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn ndarray_enters_however_it_lies_in_memory() {
        use ndarray::{Array2, s};
        let a = Array2::from_shape_fn((5, 6), |(r, c)| (r * 6 + c) as f32);
        for v in [
            a.view(),
            a.t(),
            a.slice(s![..;-1, ..]),
            a.slice(s![.., ..;-1]),
            a.slice(s![1..4;2, 1..5;3]),
            a.slice(s![..;-2, ..;-1]),
        ] {
            let want: Vec<f32> = v.iter().copied().collect();
            let got = v.with_mat(|m| Ok((m.shape(), m.to_f32().into_owned()))).unwrap();
            assert_eq!(got, ([v.nrows(), v.ncols()], want));
        }
        let b = ndarray::arr1(&[1f32, 2.0]);
        let wide = b.broadcast((3, 2)).unwrap();
        assert_eq!(wide.with_mat(|m| Ok(m.to_f32().into_owned())).unwrap(), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    }
}
