//! Quantization to codes on an affine grid, `value = scale * (code - zero)`, and back.
//!
//! ```
//! use tersor_kernels::{Isa, affine::{self, Affine}};
//! let (isa, grid) = (Isa::detect(), Affine { scale: 0.5, zero: 8 });
//! let mut codes = [0u8; 4];
//! affine::quantize(isa, &[-1.0, 0.0, 0.6, 100.0], grid, 0..=15, &mut codes);
//! assert_eq!(codes, [6, 8, 9, 15]);
//! let mut values = [0f32; 4];
//! affine::dequantize(isa, &codes, grid, &mut values);
//! assert_eq!(values, [-1.0, 0.0, 0.5, 3.5]);
//! ```

use std::ops::RangeInclusive;

use crate::Isa;

/// The parameters of an affine (asymmetric) quantization grid, shared by one group of values: code `c`, an integer from 0 to 255, stands
/// for `scale * (c - zero)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Affine {
    /// The quantization step, that is the difference between the values of neighbouring codes. Should be positive and finite. Other values
    /// are not refused: the functions of this crate evaluate their formulas with them, and the results are of no use.
    pub scale: f32,
    /// The zero point, 0 to 255: the code that stands for the value 0.
    pub zero: u8,
}

/// Quantizes `x` on one grid: writes `codes[i] = clamp(round(x[i] / scale) + zero, start, end)`, one code a byte, with the first and the
/// last code of `range` as limits and ties rounded to even. Works on as many values as the shorter of `x` and `codes` has; later codes are
/// unchanged.
///
/// Never fails. A NaN and minus infinity become the first code of `range`, plus infinity becomes the last. If `range` starts after its end,
/// every value becomes the end of `range`.
pub fn quantize(isa: Isa, x: &[f32], grid: Affine, range: RangeInclusive<u8>, codes: &mut [u8]) {
    let n = x.len().min(codes.len());
    let (x, codes) = (&x[..n], &mut codes[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2.
        unsafe { crate::arch::avx2::quantize(x, grid, *range.start(), *range.end(), codes) };
        return;
    }
    let _ = isa;
    quantize_scalar(x, grid, *range.start(), *range.end(), codes);
}

/// Returns the code of the value `x`: `clamp(round(x / scale) + zero, lo, hi)`, with ties rounded to even. [`quantize`] computes the same
/// for each value of a slice. A NaN becomes `lo`. If `lo` is greater than `hi`, every value becomes `hi`.
#[must_use]
#[inline]
pub fn code(x: f32, grid: Affine, lo: u8, hi: u8) -> u8 {
    let q = (x / grid.scale).round_ties_even() + f32::from(grid.zero);
    // In this order of comparisons a NaN becomes `lo`, as with the vector `max`.
    let q = if q > f32::from(lo) { q } else { f32::from(lo) };
    if q < f32::from(hi) { q as u8 } else { hi }
}

/// Returns the value of a code, `scale * (code - zero)`. This is the computation of [`dequantize`] for one code.
#[must_use]
#[inline]
pub fn value(code: u8, grid: Affine) -> f32 {
    (f32::from(code) - f32::from(grid.zero)) * grid.scale
}

pub(crate) fn quantize_scalar(x: &[f32], grid: Affine, lo: u8, hi: u8, codes: &mut [u8]) {
    codes.iter_mut().zip(x).for_each(|(c, &v)| *c = code(v, grid, lo, hi));
}

/// Dequantizes codes, one a byte: writes `out[i] = scale * (codes[i] - zero)`. Works on as many values as the shorter of `codes` and `out`
/// has; later elements of `out` are unchanged.
pub fn dequantize(isa: Isa, codes: &[u8], grid: Affine, out: &mut [f32]) {
    let n = codes.len().min(out.len());
    let (codes, out) = (&codes[..n], &mut out[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2.
        unsafe { crate::arch::avx2::dequantize(codes, grid, out) };
        return;
    }
    let _ = isa;
    dequantize_scalar(codes, grid, out);
}

pub(crate) fn dequantize_scalar(codes: &[u8], grid: Affine, out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(v, &c)| *v = value(c, grid));
}

/// Dequantizes codes, one a byte, on a grid with a float offset instead of an integer zero point: writes
/// `out[i] = scale * codes[i] + offset`. Works on as many values as the shorter of `codes` and `out` has; later elements of `out` are
/// unchanged.
pub fn dequantize_with_offset(isa: Isa, codes: &[u8], [scale, offset]: [f32; 2], out: &mut [f32]) {
    let n = codes.len().min(out.len());
    let (codes, out) = (&codes[..n], &mut out[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2.
        unsafe { crate::arch::avx2::dequantize_with_offset(codes, [scale, offset], out) };
        return;
    }
    let _ = isa;
    dequantize_with_offset_scalar(codes, [scale, offset], out);
}

pub(crate) fn dequantize_with_offset_scalar(codes: &[u8], [scale, offset]: [f32; 2], out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(v, c)| *v = offset + scale * f32::from(*c));
}

/// Quantizes each value `x[i]` on a grid of its own, with the scale `scales[i]` and the zero point `zeros[i]`. Writes two results:
///
/// - to `codes[i]` the code `clamp(round(x[i] / scales[i]) + zeros[i], start, end)`, with ties rounded to even, where `start` and `end` are
///   the first and the last code of `range`;
/// - to `values[i]` the value of that code, `scales[i] * (codes[i] - zeros[i])`.
///
/// A NaN in `x` becomes the first code of `range`. If `range` starts after its end, every code becomes the end of `range`. A zero point
/// should be an integer from 0 to 255, stored as a float. With any other zero point the code and its value are unspecified and can differ
/// between instruction sets; nothing panics.
///
/// The slices should be equally long. Otherwise the shortest length counts, and later elements of `codes` and `values` are unchanged.
pub fn round_each(
    isa: Isa,
    x: &[f32],
    [scales, zeros]: [&[f32]; 2],
    range: RangeInclusive<u8>,
    codes: &mut [u8],
    values: &mut [f32],
) {
    let n = [x.len(), scales.len(), zeros.len(), codes.len(), values.len()].into_iter().min().unwrap_or(0);
    let (x, scales, zeros, codes, values) = (&x[..n], &scales[..n], &zeros[..n], &mut codes[..n], &mut values[..n]);
    let (lo, hi) = range.into_inner();
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2.
        unsafe { crate::arch::avx2::round_each(x, scales, zeros, lo, hi, codes, values) };
        return;
    }
    let _ = isa;
    round_each_scalar(x, scales, zeros, lo, hi, codes, values);
}

pub(crate) fn round_each_scalar(
    x: &[f32],
    scales: &[f32],
    zeros: &[f32],
    lo: u8,
    hi: u8,
    codes: &mut [u8],
    values: &mut [f32],
) {
    for (i, &v) in x.iter().enumerate() {
        let grid = Affine { scale: scales[i], zero: zeros[i] as u8 };
        codes[i] = code(v, grid, lo, hi);
        values[i] = value(codes[i], grid);
    }
}

/// Returns the smallest and the largest value of `x`, in this order, ignoring NaN. If `x` has no other values, the result is `(∞, -∞)`.
#[must_use]
pub fn min_max(isa: Isa, x: &[f32]) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2.
        return unsafe { crate::arch::avx2::min_max(x) };
    }
    let _ = isa;
    min_max_scalar(x)
}

pub(crate) fn min_max_scalar(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| {
        (if v < lo { v } else { lo }, if v > hi { v } else { hi })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vector_equals_scalar(x in prop::collection::vec(-1e3f32..1e3, 0..300), scale in 1e-3f32..10.0, zero in 0u8..=255, hi in 1u8..=255) {
            let grid = Affine { scale, zero };
            let isa = Isa::detect();
            let (mut a, mut b) = (vec![0u8; x.len()], vec![0u8; x.len()]);
            quantize(isa, &x, grid, 0..=hi, &mut a);
            quantize(Isa::SCALAR, &x, grid, 0..=hi, &mut b);
            prop_assert_eq!(&a, &b);
            let (mut u, mut v) = (vec![0f32; x.len()], vec![0f32; x.len()]);
            dequantize(isa, &a, grid, &mut u);
            dequantize(Isa::SCALAR, &a, grid, &mut v);
            prop_assert_eq!(&u, &v);
            prop_assert_eq!(min_max(isa, &x), min_max(Isa::SCALAR, &x));
            let offset = x.first().copied().unwrap_or(0.0);
            dequantize_with_offset(isa, &a, [scale, offset], &mut u);
            dequantize_with_offset(Isa::SCALAR, &a, [scale, offset], &mut v);
            prop_assert_eq!(&u, &v);
            prop_assert!(v.iter().zip(&a).all(|(v, c)| *v == offset + scale * f32::from(*c)));
        }

        #[test]
        fn each_on_its_own_grid_equals_one_at_a_time(
            x in prop::collection::vec((-1e3f32..1e3, 1e-3f32..10.0, 0u8..=255), 0..100), hi in 1u8..=255
        ) {
            let n = x.len();
            let values: Vec<f32> = x.iter().map(|v| v.0).collect();
            let (scales, zeros): (Vec<f32>, Vec<f32>) = x.iter().map(|v| (v.1, f32::from(v.2))).unzip();
            for isa in [Isa::SCALAR, Isa::detect()] {
                let (mut codes, mut back) = (vec![0u8; n], vec![0f32; n]);
                round_each(isa, &values, [&scales, &zeros], 0..=hi, &mut codes, &mut back);
                for (i, &(v, scale, zero)) in x.iter().enumerate() {
                    let grid = Affine { scale, zero };
                    prop_assert_eq!(codes[i], code(v, grid, 0, hi));
                    prop_assert_eq!(back[i].to_bits(), value(codes[i], grid).to_bits());
                }
            }
        }
    }

    proptest! {
        // Near a half, a multiplication by the inverse and the division may fall on two sides of it.
        #[test]
        fn quotients_near_halves_and_scales_of_any_size(exponent in -149i32..127, mantissa in 1f32..2.0, at in prop::collection::vec((-300i32..300, -3i32..=3), 64)) {
            let scale = (f64::from(mantissa) * 2f64.powi(exponent)) as f32;
            let x: Vec<f32> = at.iter().map(|&(k, units)| {
                let half = ((f64::from(k) + 0.5) * f64::from(scale)) as f32;
                f32::from_bits((half.to_bits() as i32 + units) as u32)
            }).collect();
            let grid = Affine { scale, zero: 128 };
            let (mut a, mut b) = ([0u8; 64], [0u8; 64]);
            quantize(Isa::detect(), &x, grid, 0..=255, &mut a);
            quantize(Isa::SCALAR, &x, grid, 0..=255, &mut b);
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn ties_go_to_even_and_extremes_clamp() {
        let mut c = [0u8; 6];
        let grid = Affine { scale: 1.0, zero: 2 };
        quantize(Isa::detect(), &[0.5, 1.5, -0.5, 1e30, -1e30, f32::NAN], grid, 0..=7, &mut c);
        assert_eq!(c, [2, 4, 2, 7, 0, 0]);
    }
}
