//! AVX-512: values of codes by shuffles of registers, and largest magnitudes.

use std::arch::x86_64::*;

/// Writes `out = values[code] * scale`, where `planes` has the first, second, third and fourth bytes of the values.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn look_up(planes: &[[u8; 256]; 4], codes: &[[u8; 64]], scale: f32, out: &mut [[f32; 64]]) {
    // SAFETY: a quarter of 256 bytes each.
    let load = |p: usize, q: usize| unsafe { _mm512_loadu_si512(planes[p].as_ptr().add(64 * q).cast()) };
    let tables: [[__m512i; 4]; 4] = std::array::from_fn(|p| std::array::from_fn(|q| load(p, q)));
    let factor = _mm512_set1_ps(scale);
    // Four codes from each quarter side by side, so that the joined bytes are in order.
    let lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (codes, out) in codes.iter().zip(out) {
        // SAFETY: 64 bytes.
        let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        let codes = _mm512_permutexvar_epi32(lanes, codes);
        let upper = _mm512_movepi8_mask(codes);
        let byte = |t: &[__m512i; 4]| {
            let low = _mm512_permutex2var_epi8(t[0], codes, t[1]);
            let high = _mm512_permutex2var_epi8(t[2], codes, t[3]);
            _mm512_mask_blend_epi8(upper, low, high)
        };
        let [a, b, c, d] = [byte(&tables[0]), byte(&tables[1]), byte(&tables[2]), byte(&tables[3])];
        let [ab, cd] = [_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d)];
        let [ef, gh] = [_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)];
        let values = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ef, gh),
            _mm512_unpackhi_epi16(ef, gh),
        ];
        for (i, v) in values.into_iter().enumerate() {
            let v = _mm512_mul_ps(_mm512_castsi512_ps(v), factor);
            // SAFETY: 16 of 64 values.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), v) };
        }
    }
}

/// Writes `out = values[code] * scale` for codes of 4 bits, the first of two in the high half of a byte; a scale for every
/// `chunks` of 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx2")]
pub(crate) fn look_up_nibbles(
    values: &[f32; 16],
    packed: &[[u8; 16]],
    scales: &[f32],
    chunks: usize,
    out: &mut [[f32; 32]],
) {
    // SAFETY: 16 values.
    let table = unsafe { _mm512_loadu_ps(values.as_ptr()) };
    let low = _mm_set1_epi8(15);
    for ((packed, out), scale) in packed.chunks(chunks).zip(out.chunks_mut(chunks)).zip(scales) {
        let table = _mm512_mul_ps(table, _mm512_set1_ps(*scale));
        for (packed, out) in packed.iter().zip(out) {
            // SAFETY: 16 bytes.
            let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
            let (first, second) = (_mm_and_si128(_mm_srli_epi16::<4>(bytes), low), _mm_and_si128(bytes, low));
            let codes = [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)];
            for (i, codes) in codes.into_iter().enumerate() {
                let v = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table);
                // SAFETY: 16 of 32 values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), v) };
            }
        }
    }
}

/// Returns the bits of the largest magnitude, over whole 64s.
#[target_feature(enable = "avx512f")]
pub(crate) fn abs_max(x: &[[f32; 64]]) -> u32 {
    let (mut max, magnitude) = ([_mm512_setzero_si512(); 4], _mm512_set1_epi32(i32::MAX));
    for x in x {
        for (i, max) in max.iter_mut().enumerate() {
            // SAFETY: 64 values, `i` is below 4.
            let v = unsafe { _mm512_loadu_si512(x.as_ptr().add(16 * i).cast()) };
            *max = _mm512_max_epu32(*max, _mm512_and_si512(v, magnitude));
        }
    }
    let pairs = [_mm512_max_epu32(max[0], max[1]), _mm512_max_epu32(max[2], max[3])];
    _mm512_reduce_max_epu32(_mm512_max_epu32(pairs[0], pairs[1]))
}

/// Copies with stores that bypass the caches. Slices are equally long.
#[target_feature(enable = "avx512f")]
pub(crate) fn copy_past_caches(from: &[f32], to: &mut [f32]) {
    let head = to.as_ptr().align_offset(64).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let ((whole, rest), (wide, last)) = (from[head..].as_chunks::<16>(), to[head..].as_chunks_mut::<16>());
    for (from, to) in whole.iter().zip(wide) {
        // SAFETY: 16 values; `to` lies at a multiple of 64 bytes, as the first one does.
        unsafe { _mm512_stream_ps(to.as_mut_ptr(), _mm512_loadu_ps(from.as_ptr())) };
    }
    _mm_sfence();
    last.copy_from_slice(rest);
}
