//! [`Tensor`]: an input of a differentiable function.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use tersor_kernels::Real;

use super::elements;
use crate::{Element, Error, Isa, Result};

/// A borrowed row-major tensor of any number of axes, an input of a function that is computed in `T` (f32 or f64). Its values are of the
/// type `T`, f16 or bf16; f16 and bf16 are converted to `T` as they are read, which is exact.
///
/// ```
/// use half::f16;
/// use tersor_core::gradients::Tensor;
/// # fn main() -> tersor_core::Result<()> {
/// let x: Tensor<'_, f32> = Tensor::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
/// assert_eq!(x.matrix(), [2, 3]);
/// let half = [f16::ONE; 2];
/// let y: Tensor<'_, f32> = Tensor::f16(&half, &[2])?;
/// assert_eq!(*y.values(), [1.0, 1.0]);
/// assert!(Tensor::new(&[1.0f32], &[2]).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a, T: Real = f32> {
    data: Data<'a, T>,
    shape: &'a [usize],
}

#[derive(Clone, Copy, Debug)]
enum Data<'a, T> {
    Own(&'a [T]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a, T: Real> Tensor<'a, T> {
    /// Borrows values of the type `T`, row-major, as a tensor of the shape `shape`; `[]` is the shape of a single value. Errors if the
    /// number of values is not the product of the shape, or the product overflows.
    pub fn new(values: &'a [T], shape: &'a [usize]) -> Result<Self> {
        Self::of(Data::Own(values), values.len(), shape)
    }

    /// Borrows f16 values, row-major, as a tensor of the shape `shape`; `[]` is the shape of a single value. Errors if the number of values
    /// is not the product of the shape, or the product overflows.
    pub fn f16(values: &'a [f16], shape: &'a [usize]) -> Result<Self> {
        Self::of(Data::F16(values), values.len(), shape)
    }

    /// Borrows bf16 values, row-major, as a tensor of the shape `shape`; `[]` is the shape of a single value. Errors if the number of
    /// values is not the product of the shape, or the product overflows.
    pub fn bf16(values: &'a [bf16], shape: &'a [usize]) -> Result<Self> {
        Self::of(Data::BF16(values), values.len(), shape)
    }

    fn of(data: Data<'a, T>, len: usize, shape: &'a [usize]) -> Result<Self> {
        let n = elements(shape)?;
        if n == len { Ok(Self { data, shape }) } else { Err(Error::shape("elements of a tensor", n, len)) }
    }

    /// Returns the lengths of the axes, slowest first; `[]` for a single value.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Returns the number of elements, the product of the shape; 1 for the shape `[]`.
    pub fn len(&self) -> usize {
        match self.data {
            Data::Own(v) => v.len(),
            Data::F16(v) => v.len(),
            Data::BF16(v) => v.len(),
        }
    }

    /// Returns whether the tensor has no elements, that is whether an axis has length 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the tensor's shape as that of a matrix `[rows, cols]`: `cols` is the length of the last axis, `rows` the product of all
    /// other axes (1 if there are none). `[1, 1]` for the shape `[]`; `[0, 0]` if the last axis has length 0.
    pub fn matrix(&self) -> [usize; 2] {
        let cols = self.shape.last().copied().unwrap_or(1);
        [self.len().checked_div(cols).unwrap_or(0), cols]
    }

    /// Returns all values as `T`, row-major: borrowed if they are stored as `T`, otherwise converted from f16 or bf16, which is exact.
    pub fn values(&self) -> Cow<'a, [T]> {
        if let Data::Own(values) = self.data {
            return Cow::Borrowed(values);
        }
        let mut out = vec![T::zero(); self.len()];
        self.read_into(0..self.len(), Isa::detect(), &mut out);
        Cow::Owned(out)
    }

    /// Writes the elements with the flat, row-major indices `range` into `out`, as `T`; conversion from f16 or bf16 is exact and uses the
    /// instruction set `isa`. Errors if the range is reversed or leaves the tensor, or `out` has another length than the range.
    pub fn read(&self, range: Range<usize>, isa: Isa, out: &mut [T]) -> Result<()> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::range("elements of a tensor", 0..self.len(), range));
        }
        if out.len() != range.len() {
            return Err(Error::shape("elements to read", range.len(), out.len()));
        }
        self.read_into(range, isa, out);
        Ok(())
    }

    fn read_into(&self, range: Range<usize>, isa: Isa, out: &mut [T]) {
        fn widen<E: Element, T: Real>(isa: Isa, from: &[E], to: &mut [T]) {
            match T::as_f32_mut(to) {
                Some(to) => E::widen(isa, from, to),
                None => to.iter_mut().zip(from).for_each(|(t, f)| *t = T::rounded(f64::from(f.to_f32()))),
            }
        }
        match self.data {
            Data::Own(v) => out.copy_from_slice(&v[range]),
            Data::F16(v) => widen(isa, &v[range], out),
            Data::BF16(v) => widen(isa, &v[range], out),
        }
    }

    /// Errors with [`Error::NonFinite`] at the first value that is NaN or infinite. The error has its row and column, counted from 0 in the
    /// matrix `[rows, cols]` that [`Tensor::matrix`] describes.
    pub fn check_finite(&self) -> Result<()> {
        let cols = self.matrix()[1].max(1);
        match self.values().iter().position(|v| !v.is_finite()) {
            Some(i) => Err(Error::NonFinite { row: i / cols, col: i % cols, value: self.values()[i].widened() as f32 }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type() {
        let (own, half, brain) = ([1.5f64, -2.0], [1.5, -2.0].map(f16::from_f64), [1.5, -2.0].map(bf16::from_f64));
        for x in [Tensor::new(&own, &[1, 2]), Tensor::f16(&half, &[1, 2]), Tensor::bf16(&brain, &[1, 2])] {
            let x = x.unwrap();
            assert_eq!((&x.values()[..], x.matrix(), x.shape()), (&own[..], [1, 2], &[1usize, 2][..]));
            let mut one = [0.0];
            x.read(1..2, Isa::SCALAR, &mut one).unwrap();
            assert_eq!(one, [-2.0]);
            assert!(x.read(1..3, Isa::SCALAR, &mut [0.0; 2]).is_err() && x.read(0..2, Isa::SCALAR, &mut one).is_err());
        }
        assert_eq!(Tensor::<f32>::bf16(&brain, &[2]).unwrap().values()[..], [1.5, -2.0]);
        assert!(Tensor::new(&own, &[3]).is_err() && Tensor::new(&own, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn shapes_and_values_that_are_not_finite() {
        assert_eq!(Tensor::new(&[1f32], &[]).unwrap().matrix(), [1, 1]);
        assert_eq!(Tensor::<f32>::new(&[], &[2, 0]).unwrap().matrix(), [0, 0]);
        let x = [0.0, 1.0, 2.0, f32::NAN];
        let found = Tensor::new(&x, &[2, 2]).unwrap().check_finite();
        assert!(matches!(found, Err(Error::NonFinite { row: 1, col: 1, .. })));
    }
}
