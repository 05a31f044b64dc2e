//! AVX2 and FMA. Every function asks for slices of equal length (its safe front cuts them) and for a
//! processor with the named features (an [`Isa`](crate::Isa) value proves it).

use std::arch::x86_64::*;

use crate::affine::{Affine, dequantize_scalar, min_max_scalar, quantize_scalar, round_each_scalar};

/// Eight codes in 32 bits each.
#[inline]
#[target_feature(enable = "avx2")]
fn codes([v, scale, zero]: [__m256; 3], [low, high]: [__m256; 2]) -> __m256i {
    let q = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_div_ps(v, scale));
    // `max` returns its second operand when the first is NaN, so a NaN becomes `low`.
    _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_add_ps(q, zero), low), high))
}

#[target_feature(enable = "avx2")]
pub(crate) fn quantize(x: &[f32], grid: Affine, lo: u8, hi: u8, out: &mut [u8]) {
    let (scale, zero) = (_mm256_set1_ps(grid.scale), _mm256_set1_ps(f32::from(grid.zero)));
    let range = [_mm256_set1_ps(f32::from(lo)), _mm256_set1_ps(f32::from(hi))];
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let body = x.len() / 32 * 32;
    for (x, c) in x.chunks_exact(32).zip(out.chunks_exact_mut(32)) {
        let part = |i: usize| {
            // SAFETY: `x` has 32 elements, and `i` is below 4.
            let v = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
            codes([v, scale, zero], range)
        };
        let (a, b) = (_mm256_packus_epi32(part(0), part(1)), _mm256_packus_epi32(part(2), part(3)));
        // Packing works within halves of a register: fours of codes come out as 0, 2, 4, 6, 1, 3, 5, 7.
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
        // SAFETY: `c` has 32 bytes.
        unsafe { _mm256_storeu_si256(c.as_mut_ptr().cast(), bytes) };
    }
    quantize_scalar(&x[body..], grid, lo, hi, &mut out[body..]);
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
        let q = self::codes([v, scale, zero], [low, high]);
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
    let (mut los, mut his) = ([0f32; 8], [0f32; 8]);
    // SAFETY: both arrays have 8 elements.
    unsafe {
        _mm256_storeu_ps(los.as_mut_ptr(), lo);
        _mm256_storeu_ps(his.as_mut_ptr(), hi);
    }
    let (a, b) = (min_max_scalar(&los), min_max_scalar(&his));
    let t = min_max_scalar(tail);
    (a.0.min(t.0), b.1.max(t.1))
}

/// Packs codes below 16 in pairs; works on whole 64s and gives their number.
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

/// Packs codes below 4 in fours; works on whole 128s and gives their number.
#[target_feature(enable = "avx2")]
pub(crate) fn pack2(codes: &[u8], out: &mut [u8]) -> usize {
    let (mask, pairs, fours) = (_mm256_set1_epi8(3), _mm256_set1_epi16(0x0401), _mm256_set1_epi32(0x0010_0001));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
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

/// Codes `clamp(round(x / scale), -most - 1, most)`; works on whole 32s and gives their number.
#[target_feature(enable = "avx2")]
pub(crate) fn quantize_signed(x: &[f32], scale: f32, most: i8, out: &mut [i8]) -> usize {
    let (scale, high) = (_mm256_set1_ps(scale), _mm256_set1_ps(f32::from(most)));
    let low = _mm256_set1_ps(-f32::from(most) - 1.0);
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (x, out) in x.chunks_exact(32).zip(out.chunks_exact_mut(32)) {
        let part = |i: usize| {
            // SAFETY: `x` has 32 elements, and `i` is below 4.
            let v = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
            // Rounds to even; `max` gives its second operand for a NaN.
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_div_ps(v, scale), low), high))
        };
        let (a, b) = (_mm256_packs_epi32(part(0), part(1)), _mm256_packs_epi32(part(2), part(3)));
        // As in `quantize`.
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
    x.len().min(out.len()) / 32 * 32
}

/// `round(x * inverse)` as three digits of base 256 around 0; works on whole 32s and gives their number.
#[target_feature(enable = "avx2")]
pub(crate) fn digits(x: &[f32], inverse: f32, [low, middle, high]: [&mut [i8]; 3]) -> usize {
    let (inverse, bias) = (_mm256_set1_ps(inverse), _mm256_set1_epi32(0x80_8080));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
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
