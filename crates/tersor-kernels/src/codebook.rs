//! Quantization to the nearest of a sorted list of values, and the look-up of values by code.
//!
//! ```
//! use tersor_kernels::{Isa, codebook::{Codebook, Table}};
//! let book = Codebook::new(&[-1.0, 0.0, 0.5, 2.0]).unwrap();
//! let mut codes = [0u8; 4];
//! book.nearest(Isa::detect(), &[-9.0, 0.1, 0.3, 1.2], 1.0, &mut codes);
//! assert_eq!(codes, [0, 1, 2, 2]);
//! let table = Table::new(std::array::from_fn(|i| book.values().get(i).copied().unwrap_or(0.0)));
//! let mut values = [0f32; 4];
//! table.look_up(Isa::detect(), &codes, 10.0, &mut values);
//! assert_eq!(values, [-10.0, 0.0, 5.0, 5.0]);
//! ```

use crate::decades::Decades;
use crate::isa::versions;
use crate::{Fault, Isa, fault};

/// A codebook of 1 to 256 finite values in strictly ascending order, prepared for the search of the nearest value. The code of a value is
/// its index, counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    values: Vec<f32>,
    /// `middles[i]` is the midpoint of values `i` and `i + 1`; the last one is infinity.
    middles: Vec<f32>,
    starts: Starts,
    decades: Option<Decades>,
}

/// Codebooks of up to so many values are searched by comparison with every midpoint, larger ones through [`Starts`].
const FEW: usize = 16;

/// An index into the midpoints by the leading bits of a float: floats of equal sign, exponent and first bits of the fraction share an
/// entry.
#[derive(Clone, Debug, PartialEq, Default)]
struct Starts {
    /// Number of midpoints below all floats of an entry; the entries of positive floats first, then as many of negative ones.
    below: Vec<u8>,
    /// Number of low bits of a float that the index leaves out.
    shift: u32,
    /// Shifted bits of the first entry of a sign; smaller floats belong to it as well.
    first: u32,
    /// The largest number of midpoints inside of one entry.
    steps: usize,
}

impl Starts {
    /// Chooses the smallest number of bits of the fraction, 3 to 8, with which no entry has more than one midpoint; 8 if there is none.
    fn new(middles: &[f32]) -> Self {
        (3..=8).map(|bits| Self::of(middles, 23 - bits)).find(|s| s.steps <= 1).unwrap_or_else(|| Self::of(middles, 15))
    }

    fn of(middles: &[f32], shift: u32) -> Self {
        let sizes = || middles.iter().filter(|m| m.is_finite() && **m != 0.0).map(|m| m.abs().to_bits() >> shift);
        let first = sizes().min().unwrap_or(0).saturating_sub(1);
        // A book may go over all exponents: then the small ones share the first entry.
        let last = sizes().max().unwrap_or(0) + 1;
        let first = first.max(last.saturating_sub(1 << 13));
        let (mut below, mut steps) = (Vec::new(), 0);
        for negative in [false, true] {
            for size in first..=last {
                let near = if size == first { 0.0 } else { f32::from_bits(size << shift) };
                let far = if size == last { f32::INFINITY } else { f32::from_bits(((size + 1) << shift) - 1) };
                let (low, high) = if negative { (-far, -near) } else { (near, far) };
                let count = |x: f32| middles.iter().filter(|m| **m < x).count();
                steps = steps.max(count(high) - count(low));
                below.push(count(low) as u8);
            }
        }
        Self { below, shift, first, steps }
    }

    #[inline(always)]
    fn at(&self, x: f32) -> usize {
        let (bits, half) = (x.to_bits(), self.below.len() / 2);
        let size = ((bits & (u32::MAX >> 1)) >> self.shift).max(self.first) - self.first;
        let size = (size as usize).min(half - 1);
        usize::from(self.below[size + half * (bits >> 31) as usize])
    }
}

impl Codebook {
    /// Prepares a codebook; the code of `values[i]` is `i`. Fails with `Fault::Range` unless there are 1 to 256 values, with
    /// `Fault::NonFinite` if a value is NaN or infinite, and with `Fault::Order` if a value is not greater than the one before it.
    pub fn new(values: &[f32]) -> Result<Self, Fault> {
        if !(1..=256).contains(&values.len()) {
            return Err(Fault::Range { what: "values of a codebook", limit: 256, found: values.len() });
        }
        fault::finite(values)?;
        if let Some(i) = values.windows(2).position(|w| w[0] >= w[1]) {
            return Err(Fault::Order { what: "codebook", index: i + 1 });
        }
        // In f64, as the sum of two f32 may be rounded. The middle of neighbours among the floats is one of them: the
        // lower.
        let middle = |w: &[f32]| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32;
        let middle = |w: &[f32]| if middle(w) < w[1] { middle(w) } else { w[0] };
        let mut middles: Vec<f32> = values.windows(2).map(middle).collect();
        let starts = if values.len() > FEW { Starts::new(&middles) } else { Starts::default() };
        middles.push(f32::INFINITY);
        let decades = Decades::of(values, &middles);
        Ok(Self { values: values.to_vec(), middles, starts, decades })
    }

    /// Returns the values of the codebook in ascending order; the index of a value is its code.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Returns whether the values are those of an 8-bit dynamic map (arXiv 2110.02861), for which [`nearest`](Self::nearest) computes codes
    /// arithmetically at the AVX2 level and above, instead of searching for them. The codes are the same either way.
    #[must_use]
    pub fn is_computed(&self) -> bool {
        self.decades.is_some()
    }

    /// Quantizes `x`: writes to `codes[i]` the index of the codebook value nearest to `x[i] * scale`, one code a byte. The limit between
    /// two neighbouring values is their midpoint, rounded to f32; a product that is equal to this limit gets the lower index. Minus
    /// infinity gets the first index and plus infinity the last. A NaN gets a valid index, but which one is unspecified. Works on as many
    /// values as the shorter of `x` and `codes` has; later codes are unchanged.
    pub fn nearest(&self, isa: Isa, x: &[f32], scale: f32, codes: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let (Some(decades), true) = (&self.decades, isa.has_avx2()) {
            let n = x.len().min(codes.len());
            // SAFETY: `isa` proves the instructions.
            unsafe {
                match isa.has_avx512_vnni() {
                    true => {
                        let block = n.max(1);
                        crate::arch::decades::nearest_wide(self, decades, &x[..n], &[scale], block, &mut codes[..n]);
                    }
                    false => crate::arch::decades::nearest(self, decades, &x[..n], scale, &mut codes[..n]),
                }
            }
            return;
        }
        if self.values.len() > FEW {
            search(isa, self, x, scale, codes);
            return;
        }
        let (mut x, mut codes) = (x, codes);
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            let ((values, _), (whole, _)) = (x.as_chunks::<32>(), codes.as_chunks_mut::<32>());
            let done = 32 * values.len().min(whole.len());
            // SAFETY: `isa` proves the instructions.
            unsafe { crate::arch::blockwise::count(&self.middles, values, scale, whole) };
            (x, codes) = (&x[done..], &mut codes[done..]);
        }
        let below = |x: f32| self.middles.iter().map(|m| u8::from(x > *m)).sum();
        codes.iter_mut().zip(x).for_each(|(c, x)| *c = below(x * scale));
    }

    /// Quantizes `x` with a scale for each block of `block` values: writes to `codes[i]` the index of the codebook value nearest to
    /// `x[i] * scales[i / block]`, one code a byte. A `block` of 0 counts as 1. The limit between two neighbouring values is their
    /// midpoint, rounded to f32; a product that is equal to this limit gets the lower index. Minus infinity gets the first index and plus
    /// infinity the last. A NaN gets a valid index, but which one is unspecified. Works on as many values as the shorter of `x` and `codes`
    /// has; later codes, and codes whose block has no scale, are unchanged.
    pub fn nearest_blocks(&self, isa: Isa, x: &[f32], scales: &[f32], block: usize, codes: &mut [u8]) {
        let block = block.max(1);
        #[cfg(target_arch = "x86_64")]
        if let (Some(decades), true) = (&self.decades, isa.has_avx512_vnni()) {
            let n = x.len().min(codes.len());
            // SAFETY: `isa` proves the instructions.
            unsafe { crate::arch::decades::nearest_wide(self, decades, &x[..n], scales, block, &mut codes[..n]) };
            return;
        }
        for ((x, codes), scale) in x.chunks(block).zip(codes.chunks_mut(block)).zip(scales) {
            self.nearest(isa, x, *scale, codes);
        }
    }

    /// Corrects `near`, a code that is off by one at most, to that of the value nearest to `x`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn settle(&self, x: f32, near: u8) -> u8 {
        let at = usize::from(near);
        let over = u8::from(at > 0 && x <= self.middles[at.saturating_sub(1)]);
        near + u8::from(x > self.middles[at]) - over
    }

    /// Returns the index of the value nearest to `x`.
    #[inline(always)]
    pub(crate) fn code(&self, x: f32) -> u8 {
        let mut at = self.starts.at(x);
        for _ in 0..self.starts.steps {
            // Infinity, the last of the middles, is not passed.
            at += usize::from(x > self.middles[at]);
        }
        at as u8
    }
}

versions! {
    fn search(isa: Isa, book: &Codebook, x: &[f32], scale: f32, codes: &mut [u8]) {
        codes.iter_mut().zip(x).for_each(|(c, x)| *c = book.code(x * scale));
    }

    fn gather(isa: Isa, values: &[f32; 256], codes: &[u8], scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(codes).for_each(|(o, c)| *o = values[usize::from(*c)] * scale);
    }
}

/// A look-up table that dequantizes 8-bit codes: one f32 value for each of the 256 codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    values: [f32; 256],
    /// The first bytes of all values, then the second ones, and so on: the operands of byte shuffles.
    planes: [[u8; 256]; 4],
}

impl Table {
    /// Prepares a table in which `values[c]` is the value of code `c`. Any values are allowed, NaN included.
    #[must_use]
    pub fn new(values: [f32; 256]) -> Self {
        Self { planes: std::array::from_fn(|p| values.map(|v| v.to_le_bytes()[p])), values }
    }

    /// Dequantizes codes, one a byte: writes `out[i] = values[codes[i]] * scale`, where `values` are the 256 values of the table. Works on
    /// as many codes as the shorter of `codes` and `out` has; later elements of `out` are unchanged.
    pub fn look_up(&self, isa: Isa, codes: &[u8], scale: f32, out: &mut [f32]) {
        let n = codes.len().min(out.len());
        let (mut codes, mut out) = (&codes[..n], &mut out[..n]);
        #[cfg(target_arch = "x86_64")]
        if isa.shuffles_bytes() {
            let ((whole, rest), (wide, last)) = (codes.as_chunks::<64>(), out.as_chunks_mut::<64>());
            // SAFETY: `isa` proves the instructions.
            unsafe { crate::arch::shuffle::look_up(&self.planes, whole, scale, wide) };
            (codes, out) = (rest, last);
        }
        gather(isa, &self.values, codes, scale, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides the largest sizes, for Miri.
    const PART: usize = if cfg!(miri) { 8 } else { 1 };

    proptest! {
        #[test]
        fn it_is_the_nearest_on_every_level(
            mut values in prop::collection::vec(-100f32..100.0, 1..=256 / PART), x in prop::collection::vec(-120f32..120.0, 0..300 / PART)
        ) {
            values.sort_by(f32::total_cmp);
            values.dedup();
            let book = Codebook::new(&values).unwrap();
            let mut want = vec![0u8; x.len()];
            book.nearest(Isa::SCALAR, &x, 1.0, &mut want);
            for isa in Isa::available() {
                let mut got = vec![0u8; x.len()];
                book.nearest(isa, &x, 1.0, &mut got);
                prop_assert_eq!(&got, &want);
                let scales: Vec<f32> = (0..x.len()).map(|i| 1.0 / (1.0 + i as f32)).collect();
                for block in [1, 64, 70] {
                    book.nearest_blocks(isa, &x, &scales, block, &mut got);
                    for ((x, got), scale) in x.chunks(block).zip(got.chunks(block)).zip(&scales) {
                        let mut want = vec![0u8; x.len()];
                        book.nearest(Isa::SCALAR, x, *scale, &mut want);
                        prop_assert_eq!(got, &want[..]);
                    }
                }
            }
            let mut back = vec![0f32; x.len()];
            let all = std::array::from_fn(|i| values.get(i).copied().unwrap_or(f32::NAN));
            gather(Isa::SCALAR, &all, &want, 1.0, &mut back);
            for isa in Isa::available() {
                let mut again = vec![0f32; want.len()];
                Table::new(all).look_up(isa, &want, 1.0, &mut again);
                prop_assert_eq!(&again, &back);
            }
            for (x, found) in x.iter().zip(&back) {
                let min = values.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((found - x).abs() <= min + 1e-5);
            }
            // Each value is its own nearest.
            let mut own = vec![0u8; values.len()];
            book.nearest(Isa::detect(), &values, 1.0, &mut own);
            prop_assert!(own.iter().enumerate().all(|(i, c)| i == usize::from(*c)));
        }
    }

    #[test]
    fn ties_extremes_and_refusals() {
        // The table of more than 16 values takes Miri minutes.
        for n in [2, 4, 16, 17, 256].into_iter().take(if cfg!(miri) { 3 } else { 5 }) {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let book = Codebook::new(&values).unwrap();
            let mut codes = [9u8; 5];
            book.nearest(Isa::detect(), &[0.5, -1e30, 1e30, -0.0, f32::INFINITY], 1.0, &mut codes);
            let last = (n - 1) as u8;
            assert_eq!(codes, [0, 0, last, 0, last]);
        }
        let count = |found: usize| Err(Fault::Range { what: "values of a codebook", limit: 256, found });
        assert!(Codebook::new(&[]) == count(0) && Codebook::new(&[0.0; 257]) == count(257));
        assert_eq!(Codebook::new(&[1.0, 2.0, 2.0]), Err(Fault::Order { what: "codebook", index: 2 }));
        assert!(matches!(Codebook::new(&[0.0, f32::NAN]), Err(Fault::NonFinite { index: 1, .. })));
        let mut codes = [7u8; 2];
        Codebook::new(&[3.0]).unwrap().nearest(Isa::detect(), &[1.0, 5.0], 1.0, &mut codes);
        assert_eq!(codes, [0, 0]);
    }
}
