//! [`Mask`]: which weights of a matrix are kept.

use std::ops::Range;

use crate::rows::check_range;
use crate::{Error, Result, RowSource, view::elements};

/// One bit for each weight of a matrix `[rows, cols]`: set if the weight is kept, clear if it is pruned, that is, zero in the compressed
/// matrix too. The default value is the mask of a matrix without elements.
///
/// ```
/// use tersor_core::{Mask, Masked, MatView, read_masked};
/// # fn main() -> tersor_core::Result<()> {
/// // Two of four weights of each row (2:4 sparsity).
/// let mask = Mask::from_fn([2, 4], |_row, col| col % 2 == 0)?;
/// assert_eq!((mask.count(), mask.sparsity()), (4, 0.5));
/// let data = [1.0f32; 8];
/// let weights = MatView::new(&data, [2, 4])?;
/// let pruned = Masked::new(&weights, &mask)?;
/// let (rows, kept) = read_masked(&pruned, 0..1)?;
/// assert_eq!(rows, [1.0, 0.0, 1.0, 0.0]);
/// assert!(kept.is_some_and(|m| m.keeps(0, 0) && !m.keeps(0, 1)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mask {
    shape: [usize; 2],
    /// `[rows, words]`; bits beyond the columns are clear.
    bits: Vec<u64>,
}

impl Mask {
    /// Returns a mask that keeps every weight of a matrix `[rows, cols]`. Errors if the matrix exceeds the address space.
    pub fn all(shape: [usize; 2]) -> Result<Self> {
        elements(shape)?;
        let words = shape[1].div_ceil(64);
        let mut mask = Self { shape, bits: vec![u64::MAX; shape[0] * words] };
        let rest = shape[1] % 64;
        if rest > 0 {
            mask.bits.iter_mut().skip(words - 1).step_by(words).for_each(|w| *w = (1 << rest) - 1);
        }
        Ok(mask)
    }

    /// Returns a mask of a matrix `[rows, cols]` that keeps the weight in row `row` and column `col`, both counted from 0, if
    /// `keep(row, col)` is true. Errors if the matrix exceeds the address space.
    pub fn from_fn(shape: [usize; 2], keep: impl Fn(usize, usize) -> bool) -> Result<Self> {
        let mut mask = Self::all(shape)?;
        for r in 0..shape[0] {
            (0..shape[1]).filter(|c| !keep(r, *c)).for_each(|c| mask.set(r, c, false));
        }
        Ok(mask)
    }

    /// Returns the shape `[rows, cols]` of the matrix whose weights the mask keeps or prunes.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Returns whether the weight in row `row` and column `col`, counted from 0, is kept; false outside of the matrix.
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        let [rows, cols] = self.shape;
        row < rows && col < cols && self.bits[row * cols.div_ceil(64) + col / 64] >> (col % 64) & 1 == 1
    }

    /// Marks the weight in row `row` and column `col`, counted from 0, as kept (`keep` is true) or pruned. Does nothing outside of the
    /// matrix.
    pub fn set(&mut self, row: usize, col: usize, keep: bool) {
        let [rows, cols] = self.shape;
        if row < rows && col < cols {
            let (word, bit) = (&mut self.bits[row * cols.div_ceil(64) + col / 64], 1u64 << (col % 64));
            *word = if keep { *word | bit } else { *word & !bit };
        }
    }

    /// Returns the number of kept weights.
    pub fn count(&self) -> usize {
        self.bits.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Returns the fraction of pruned weights, 0 to 1; 0 for an empty matrix.
    pub fn sparsity(&self) -> f64 {
        let n = self.shape[0] * self.shape[1];
        if n == 0 { 0.0 } else { 1.0 - self.count() as f64 / n as f64 }
    }

    /// Sets the pruned weights in `w` to zero. `w` holds the rows `rows` of the matrix, `[rows.len(), cols]` row-major. Errors, with `w`
    /// unchanged, if the range leaves the matrix or `w` has another length.
    pub fn apply(&self, rows: Range<usize>, w: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, w.len())?;
        let words = self.shape[1].div_ceil(64);
        for (row, w) in rows.zip(w.chunks_exact_mut(self.shape[1].max(1))) {
            for (bits, part) in self.bits[row * words..(row + 1) * words].iter().zip(w.chunks_mut(64)) {
                if *bits != u64::MAX {
                    let prune = |(i, v): (usize, &mut f32)| {
                        if bits >> i & 1 == 0 {
                            *v = 0.0
                        }
                    };
                    part.iter_mut().enumerate().for_each(prune);
                }
            }
        }
        Ok(())
    }

    /// Returns the part of the mask that belongs to the rows `rows`: a mask `[rows.len(), cols]`, whose row 0 is row `rows.start` of this
    /// one. Errors if the range leaves the matrix.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.shape[0] {
            return Err(Error::range("rows of a mask", 0..self.shape[0], rows));
        }
        let words = self.shape[1].div_ceil(64);
        let bits = self.bits[rows.start * words..rows.end * words].to_vec();
        Ok(Self { shape: [rows.len(), self.shape[1]], bits })
    }
}

/// A [`RowSource`] (a matrix that is read some rows at a time) of a weight matrix with a [`Mask`]: pruned weights read as zero, and
/// quantizers leave them at zero. If the source has a mask of its own, a weight is pruned if either mask prunes it.
pub struct Masked<'a> {
    source: &'a dyn RowSource,
    mask: &'a Mask,
}

impl<'a> Masked<'a> {
    /// Returns the matrix `source` with zeros in place of the weights that `mask` prunes. If `source` has a mask of its own, a weight is
    /// pruned if either mask prunes it. Errors if `mask` has another shape than the matrix.
    pub fn new(source: &'a dyn RowSource, mask: &'a Mask) -> Result<Self> {
        if source.shape() != mask.shape() {
            return Err(Error::shape("shape of a mask", source.shape(), mask.shape()));
        }
        Ok(Self { source, mask })
    }
}

impl RowSource for Masked<'_> {
    fn shape(&self) -> [usize; 2] {
        self.source.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.source.read_rows(rows.clone(), out)?;
        self.mask.apply(rows, out)
    }
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        let mut inner = Mask::default();
        let own = self.mask.rows(rows.clone())?;
        *out = match self.source.read_mask(rows, &mut inner)? {
            true => Mask::from_fn(own.shape(), |r, c| own.keeps(r, c) && inner.keeps(r, c))?,
            false => own,
        };
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatView;

    #[test]
    fn bits_count_and_apply() {
        let mut mask = Mask::from_fn([3, 70], |r, c| (r + c) % 3 != 0).unwrap();
        assert_eq!(mask.count(), (0..3).map(|r| (0..70).filter(|c| (r + c) % 3 != 0).count()).sum::<usize>());
        assert!(mask.keeps(0, 1) && !mask.keeps(0, 69) && !mask.keeps(3, 0) && !mask.keeps(0, 70));
        mask.set(0, 69, true);
        assert!(mask.keeps(0, 69));
        let full = Mask::all([3, 70]).unwrap();
        assert_eq!((full.count(), full.sparsity()), (210, 0.0));
        let w = vec![1f32; 210];
        let m = MatView::new(&w, [3, 70]).unwrap();
        let masked = Masked::new(&m, &mask).unwrap();
        let rows = crate::read_finite(&masked, 1..3).unwrap();
        assert!(rows.iter().enumerate().all(|(i, v)| (*v == 1.0) == mask.keeps(1 + i / 70, i % 70)));
        let mut part = Mask::default();
        assert!(masked.read_mask(1..3, &mut part).unwrap());
        assert_eq!(part, mask.rows(1..3).unwrap());
        assert!(Masked::new(&m, &Mask::all([3, 71]).unwrap()).is_err() && mask.rows(2..4).is_err());
        assert_eq!(Mask::all([2, 0]).unwrap().count(), 0);
        // A masked source with a mask of its own is pruned by both.
        let other = Mask::from_fn([3, 70], |r, c| (r * c) % 2 == 0).unwrap();
        let both = Masked::new(&masked, &other).unwrap();
        assert!(both.read_mask(0..3, &mut part).unwrap());
        assert_eq!(part, Mask::from_fn([3, 70], |r, c| mask.keeps(r, c) && other.keeps(r, c)).unwrap());
    }
}
