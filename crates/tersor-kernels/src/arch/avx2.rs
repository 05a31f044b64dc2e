//! AVX2 and FMA. Functions take slices of equal length (their safe callers cut them) and a processor with the named features (an
//! [`Isa`](crate::Isa) value proves it).

use std::arch::x86_64::*;

use crate::affine::{
    Affine, dequantize_scalar, dequantize_with_offset_scalar, min_max_scalar, quantize_scalar, round_each_scalar,
};

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Returns `round(v / scale)` as floats.
#[inline]
#[target_feature(enable = "avx2")]
fn divided(v: __m256, scale: __m256) -> __m256 {
    _mm256_round_ps::<NEAREST>(_mm256_div_ps(v, scale))
}

/// The distance from an integer up to which the product of a value with the inverse of the scale is known to round as the quotient; see
/// [`Coding::codes`].
pub(crate) const SURE: f32 = 0.5 - 1.0 / 8192.0;

/// Returns the factor that replaces a division by `scale`; NaN near the ends of the exponents, where the inverse is too inexact.
#[inline]
pub(crate) fn inverse(scale: f32) -> f32 {
    if (1e-30..1e30).contains(&scale) { 1.0 / scale } else { f32::NAN }
}

/// The mapping of rounded quotients to codes: `clamp(q + zero, low, high) ^ flip`.
#[derive(Clone, Copy)]
pub(crate) struct Coding {
    scale: __m256,
    /// The inverse of the scale; NaN if it is too inexact to replace the division.
    inverse: __m256,
    zero: __m256i,
    low: __m256i,
    high: __m256i,
    flip: __m256i,
}

impl Coding {
    /// Returns the mapping of a grid, with codes limited to `low..=high` and then combined with `flip` by exclusive or.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn new(grid: Affine, [low, high, flip]: [u8; 3]) -> Self {
        let [low, high, flip] = [low, high, flip].map(|b| _mm256_set1_epi8(b as i8));
        let zero = _mm256_set1_epi16(i16::from(grid.zero));
        Self { scale: _mm256_set1_ps(grid.scale), inverse: _mm256_set1_ps(inverse(grid.scale)), zero, low, high, flip }
    }

    /// Stores the 32 codes of rounded quotients.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&self, q: [__m256; 4], codes: &mut [u8; 32]) {
        let number = |i: usize| _mm256_cvtps_epi32(_mm256_min_ps(q[i], _mm256_set1_ps(512.0)));
        let a = _mm256_adds_epi16(_mm256_packs_epi32(number(0), number(1)), self.zero);
        let b = _mm256_adds_epi16(_mm256_packs_epi32(number(2), number(3)), self.zero);
        let bytes = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(a, b), self.low), self.high);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_xor_si256(bytes, self.flip), unpacked_order());
        // SAFETY: `codes` has 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
    }

    /// Stores the codes of 32 values.
    ///
    /// The product with the inverse is within `2^-22.9` of the quotient, that is `2^-13.9` up to 512, so both round to the same integer if
    /// the product is farther than `2^-13` from a half. For the few other values a division, at a fifth of the speed, decides.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn codes(&self, x: &[f32; 32], codes: &mut [u8; 32]) {
        // SAFETY: `x` has 32 elements, and the indices are below 4.
        let product =
            [0, 1, 2, 3].map(|i| unsafe { _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(8 * i)), self.inverse) });
        let rounded = product.map(|p| _mm256_round_ps::<NEAREST>(p));
        let sign = _mm256_set1_ps(-0.0);
        let rest = |i: usize| _mm256_castps_si256(_mm256_andnot_ps(sign, _mm256_sub_ps(product[i], rounded[i])));
        // The bits of positive floats are ordered as the floats are, and NaN, also of what was infinite, is above all.
        let max = _mm256_max_epi32(_mm256_max_epi32(rest(0), rest(1)), _mm256_max_epi32(rest(2), rest(3)));
        let sure = _mm256_castps_si256(_mm256_set1_ps(SURE));
        if _mm256_movemask_epi8(_mm256_cmpgt_epi32(max, sure)) == 0 {
            self.store(rounded, codes);
        } else {
            self.divide(x, codes);
        }
    }

    /// Stores the codes of 32 values, computed by division.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    pub(crate) fn divide(&self, x: &[f32; 32], codes: &mut [u8; 32]) {
        // SAFETY: `x` has 32 elements, and `i` is below 4. `max` gives its second operand for a NaN.
        let quotient = |i: usize| unsafe {
            let q = divided(_mm256_loadu_ps(x.as_ptr().add(8 * i)), self.scale);
            _mm256_max_ps(q, _mm256_set1_ps(i32::MIN as f32))
        };
        self.store([quotient(0), quotient(1), quotient(2), quotient(3)], codes);
    }
}

/// Returns the permutation of fours of codes that undoes the order in which packing, which works within halves of a register, leaves them:
/// 0, 2, 4, 6, 1, 3, 5, 7.
#[inline]
#[target_feature(enable = "avx2")]
fn unpacked_order() -> __m256i {
    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)
}

/// See [`affine::quantize`](crate::affine::quantize).
#[target_feature(enable = "avx2")]
pub(crate) fn quantize(x: &[f32], grid: Affine, lo: u8, hi: u8, out: &mut [u8]) {
    quantize_groups([x, &[]], x.len(), &[grid], [lo, hi], out);
}

/// Writes the codes of `x`, each group of `group` values on its own grid, and prefetches as many values of `next`.
#[target_feature(enable = "avx2")]
pub(crate) fn quantize_groups(
    [x, next]: [&[f32]; 2],
    group: usize,
    grids: &[Affine],
    [lo, hi]: [u8; 2],
    out: &mut [u8],
) {
    let mut next = next.as_chunks::<32>().0.iter();
    for ((x, out), grid) in x.chunks(group.max(1)).zip(out.chunks_mut(group.max(1))).zip(grids) {
        let coding = Coding::new(*grid, [lo, hi, 0]);
        let ((body, rest), (codes, last)) = (x.as_chunks::<32>(), out.as_chunks_mut::<32>());
        for (x, codes) in body.iter().zip(codes) {
            if let Some(next) = next.next() {
                for line in [0, 16] {
                    // SAFETY: a hint, for which any address will do.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(next.as_ptr().add(line).cast()) };
                }
            }
            coding.codes(x, codes);
        }
        quantize_scalar(rest, *grid, lo, hi, last);
    }
}

#[target_feature(enable = "avx2")]
pub(crate) fn dequantize(codes: &[u8], grid: Affine, out: &mut [f32]) {
    let (scale, zero) = (_mm256_set1_ps(grid.scale), _mm256_set1_ps(f32::from(grid.zero)));
    let body = codes.len() / 8 * 8;
    for (c, y) in codes.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
        // SAFETY: `c` has 8 bytes, and 8 are loaded.
        let bytes = unsafe { _mm_loadl_epi64(c.as_ptr().cast()) };
        let v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let v = _mm256_mul_ps(_mm256_sub_ps(v, zero), scale);
        // SAFETY: `y` has 8 elements.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) };
    }
    dequantize_scalar(&codes[body..], grid, &mut out[body..]);
}

#[target_feature(enable = "avx2")]
pub(crate) fn dequantize_with_offset(codes: &[u8], [scale, offset]: [f32; 2], out: &mut [f32]) {
    let (a, b) = (_mm256_set1_ps(scale), _mm256_set1_ps(offset));
    let body = codes.len() / 8 * 8;
    for (c, y) in codes.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
        // SAFETY: `c` has 8 bytes, and 8 are loaded.
        let bytes = unsafe { _mm_loadl_epi64(c.as_ptr().cast()) };
        let v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let v = _mm256_add_ps(b, _mm256_mul_ps(a, v));
        // SAFETY: `y` has 8 elements.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) };
    }
    dequantize_with_offset_scalar(&codes[body..], [scale, offset], &mut out[body..]);
}

#[target_feature(enable = "avx2")]
pub(crate) fn round_each(
    x: &[f32],
    scales: &[f32],
    zeros: &[f32],
    lo: u8,
    hi: u8,
    codes: &mut [u8],
    values: &mut [f32],
) {
    let (low, high) = (_mm256_set1_ps(f32::from(lo)), _mm256_set1_ps(f32::from(hi)));
    let body = x.len() / 8 * 8;
    for i in (0..body).step_by(8) {
        // SAFETY: all slices are equally long, and `i + 8` is at most that.
        let (v, scale, zero) = unsafe {
            let load = |s: &[f32]| _mm256_loadu_ps(s.as_ptr().add(i));
            (load(x), load(scales), load(zeros))
        };
        let q = _mm256_max_ps(_mm256_add_ps(divided(v, scale), zero), low);
        let q = _mm256_cvttps_epi32(_mm256_min_ps(q, high));
        let value = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(q), zero), scale);
        let words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
        // SAFETY: as above.
        unsafe {
            _mm_storel_epi64(codes.as_mut_ptr().add(i).cast(), _mm_packus_epi16(words, words));
            _mm256_storeu_ps(values.as_mut_ptr().add(i), value);
        }
    }
    round_each_scalar(&x[body..], &scales[body..], &zeros[body..], lo, hi, &mut codes[body..], &mut values[body..]);
}

#[target_feature(enable = "avx2")]
pub(crate) fn min_max(x: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([_mm256_set1_ps(f32::INFINITY); 4], [_mm256_set1_ps(f32::NEG_INFINITY); 4]);
    let chunks = x.chunks_exact(32);
    let tail = chunks.remainder();
    for c in chunks {
        for i in 0..4 {
            // SAFETY: `c` has 32 elements, and `i` is below 4.
            let v = unsafe { _mm256_loadu_ps(c.as_ptr().add(8 * i)) };
            // `min` and `max` return the second operand on NaN: NaN is passed over, as in the twin.
            lo[i] = _mm256_min_ps(v, lo[i]);
            hi[i] = _mm256_max_ps(v, hi[i]);
        }
    }
    let (lo, hi) = (
        _mm256_min_ps(_mm256_min_ps(lo[0], lo[1]), _mm256_min_ps(lo[2], lo[3])),
        _mm256_max_ps(_mm256_max_ps(hi[0], hi[1]), _mm256_max_ps(hi[2], hi[3])),
    );
    // Halves against halves: four, two, one.
    let narrow = |v: __m256, f: fn(__m128, __m128) -> __m128| {
        let v = f(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = f(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(f(v, _mm_movehdup_ps(v)))
    };
    let a = (narrow(lo, |a, b| _mm_min_ps(a, b)), narrow(hi, |a, b| _mm_max_ps(a, b)));
    if tail.is_empty() {
        return a;
    }
    let t = min_max_scalar(tail);
    (a.0.min(t.0), a.1.max(t.1))
}

/// Packs codes below 16, two to a byte, in whole 64s. Returns the number of codes packed.
#[target_feature(enable = "avx2")]
pub(crate) fn pack4(codes: &[u8], out: &mut [u8]) -> usize {
    let (mask, weights) = (_mm256_set1_epi8(15), _mm256_set1_epi16(0x1001));
    for (codes, out) in codes.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        let words = |half: usize| {
            // SAFETY: `codes` has 64 bytes, and `half` is below 2.
            let v = unsafe { _mm256_loadu_si256(codes.as_ptr().add(32 * half).cast()) };
            // One times the even code and 16 times the odd one.
            _mm256_maddubs_epi16(_mm256_and_si256(v, mask), weights)
        };
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(words(0), words(1)));
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
    codes.len().min(2 * out.len()) / 64 * 64
}

/// Packs codes below 4, four to a byte, in whole 128s. Returns the number of codes packed.
#[target_feature(enable = "avx2")]
pub(crate) fn pack2(codes: &[u8], out: &mut [u8]) -> usize {
    let (mask, pairs, fours) = (_mm256_set1_epi8(3), _mm256_set1_epi16(0x0401), _mm256_set1_epi32(0x0010_0001));
    let order = unpacked_order();
    for (codes, out) in codes.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        let numbers = |part: usize| {
            // SAFETY: `codes` has 128 bytes, and `part` is below 4.
            let v = unsafe { _mm256_loadu_si256(codes.as_ptr().add(32 * part).cast()) };
            _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(v, mask), pairs), fours)
        };
        let (a, b) = (_mm256_packus_epi32(numbers(0), numbers(1)), _mm256_packus_epi32(numbers(2), numbers(3)));
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
    codes.len().min(4 * out.len()) / 128 * 128
}

/// Writes codes `clamp(round(x / scale), -max - 1, max)` in whole 32s. Returns the number of codes written.
#[target_feature(enable = "avx2")]
pub(crate) fn quantize_signed(x: &[f32], scale: f32, max: i8, out: &mut [i8]) -> usize {
    // With 128 added, codes are unsigned bytes; flipping the highest bit makes them signed again.
    let coding = Coding::new(Affine { scale, zero: 128 }, [127 - max as u8, 128 + max as u8, 128]);
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    let (x, codes) = (x.as_chunks::<32>().0, out.as_chunks_mut::<32>().0);
    x.iter().zip(&mut *codes).for_each(|(x, codes)| coding.codes(x, codes));
    32 * x.len().min(codes.len())
}

/// Writes `round(x * inverse)` as three digits of base 256 in -128..=127, in whole 32s. Returns the number of values converted.
#[target_feature(enable = "avx2")]
pub(crate) fn digits(x: &[f32], inverse: f32, [low, middle, high]: [&mut [i8]; 3]) -> usize {
    let (inverse, bias) = (_mm256_set1_ps(inverse), _mm256_set1_epi32(0x80_8080));
    let order = unpacked_order();
    let (byte, centre) = (_mm256_set1_epi32(255), _mm256_set1_epi8(-128));
    let planes = low.chunks_exact_mut(32).zip(middle.chunks_exact_mut(32)).zip(high.chunks_exact_mut(32));
    for (x, ((low, middle), high)) in x.chunks_exact(32).zip(planes) {
        let numbers: [__m256i; 4] = std::array::from_fn(|i| {
            // SAFETY: `x` has 32 elements, and `i` is below 4.
            let v = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
            _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)), bias)
        });
        let store = |n: [__m256i; 4], out: &mut [i8]| {
            let n = n.map(|n| _mm256_and_si256(n, byte));
            let words = _mm256_packus_epi16(_mm256_packus_epi32(n[0], n[1]), _mm256_packus_epi32(n[2], n[3]));
            let bytes = _mm256_xor_si256(_mm256_permutevar8x32_epi32(words, order), centre);
            // SAFETY: `out` has 32 bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
        };
        store(numbers, low);
        store(numbers.map(|n| _mm256_srli_epi32::<8>(n)), middle);
        store(numbers.map(|n| _mm256_srli_epi32::<16>(n)), high);
    }
    x.len() / 32 * 32
}
