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

/// The quantization parameters of one group of values: code `c` stands for `scale * (c - zero)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Affine {
    /// The quantization step: the distance of the values of neighbouring codes; positive and finite.
    pub scale: f32,
    /// The zero point: the code that stands for the value 0.
    pub zero: u8,
}

/// Writes `codes[i] = clamp(round(x[i] / scale) + zero, range)`, rounding ties to even, over the shorter of `x` and `codes`.
///
/// Does not check values: a NaN becomes the start of `range`, an infinity its start or end.
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

/// Returns the code of one value, limited to `lo..=hi`, as [`quantize`] computes it.
#[must_use]
#[inline]
pub fn code(x: f32, grid: Affine, lo: u8, hi: u8) -> u8 {
    let q = (x / grid.scale).round_ties_even() + f32::from(grid.zero);
    // In this order of comparisons a NaN becomes `lo`, as with the vector `max`.
    let q = if q > f32::from(lo) { q } else { f32::from(lo) };
    if q < f32::from(hi) { q as u8 } else { hi }
}

/// Returns the value of one code, as [`dequantize`] computes it.
#[must_use]
#[inline]
pub fn value(code: u8, grid: Affine) -> f32 {
    (f32::from(code) - f32::from(grid.zero)) * grid.scale
}

pub(crate) fn quantize_scalar(x: &[f32], grid: Affine, lo: u8, hi: u8, codes: &mut [u8]) {
    codes.iter_mut().zip(x).for_each(|(c, &v)| *c = code(v, grid, lo, hi));
}

/// Writes `out[i] = scale * (codes[i] - zero)` over the shorter of `codes` and `out`.
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

/// Writes `out[i] = scale * codes[i] + offset` over the shorter of `codes` and `out`: an affine grid whose zero point is a float.
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

/// Quantizes each `x[i]` with quantization parameters of its own, `scales[i]` and `zeros[i]` (an integer from 0 to 255, stored as a float).
/// Writes the codes, limited to `range`, to `codes`, and the values that they stand for to `values`, as [`quantize`] and [`dequantize`]
/// compute them. Works over the shortest of the slices.
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

/// Returns the smallest and the largest value of `x`, passing over NaN; of an empty slice infinity and minus infinity.
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
