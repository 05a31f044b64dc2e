//! AVX2: the loops of block-wise quantization.

use std::arch::x86_64::*;

/// Returns the bits of the largest magnitude, over whole 32s.
#[target_feature(enable = "avx2")]
pub(crate) fn abs_max(x: &[[f32; 32]]) -> u32 {
    let (mut max, magnitude) = ([_mm256_setzero_si256(); 4], _mm256_set1_epi32(i32::MAX));
    for x in x {
        for (i, max) in max.iter_mut().enumerate() {
            // SAFETY: 32 values, `i` is below 4.
            let v = unsafe { _mm256_loadu_si256(x.as_ptr().add(8 * i).cast()) };
            *max = _mm256_max_epu32(*max, _mm256_and_si256(v, magnitude));
        }
    }
    let four = _mm256_max_epu32(_mm256_max_epu32(max[0], max[1]), _mm256_max_epu32(max[2], max[3]));
    let mut lanes = [0u32; 8];
    // SAFETY: eight numbers.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), four) };
    lanes.into_iter().fold(0, u32::max)
}

/// Prefetches the memory of values.
pub(crate) fn fetch<T>(x: &[T]) {
    for line in x.chunks((64 / size_of::<T>().max(1)).max(1)) {
        // SAFETY: a hint, for which any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// Writes for each value, times `scale`, the number of midpoints below it. There are up to 15 midpoints; the rest are infinite.
#[target_feature(enable = "avx2")]
pub(crate) fn count(middles: &[f32], x: &[[f32; 32]], scale: f32, codes: &mut [[u8; 32]]) {
    let (factor, order) = (_mm256_set1_ps(scale), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    for (x, codes) in x.iter().zip(codes) {
        // SAFETY: 32 values, `i` is below 4.
        let values = [0, 1, 2, 3].map(|i| _mm256_mul_ps(unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) }, factor));
        let mut below = [_mm256_setzero_si256(); 4];
        for m in middles {
            let m = _mm256_set1_ps(*m);
            for i in 0..4 {
                let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(values[i], m));
                below[i] = _mm256_sub_epi32(below[i], above);
            }
        }
        let pairs = [_mm256_packs_epi32(below[0], below[1]), _mm256_packs_epi32(below[2], below[3])];
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(pairs[0], pairs[1]), order);
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
    }
}

/// Replaces codes below 16 by their entries in a table.
#[target_feature(enable = "avx2")]
pub(crate) fn relabel(labels: &[u8; 16], codes: &mut [[u8; 32]]) {
    // SAFETY: 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(labels.as_ptr().cast()) });
    for codes in codes {
        let at: *mut __m256i = codes.as_mut_ptr().cast();
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(at, _mm256_shuffle_epi8(table, _mm256_loadu_si256(at))) };
    }
}

/// Writes the values of codes of 4 bits, the first of two in the high half of a byte, times a scale for every `chunks` spans of 32 values.
#[target_feature(enable = "avx2")]
pub(crate) fn look_up_nibbles(
    values: &[f32; 16],
    packed: &[[u8; 16]],
    scales: &[f32],
    chunks: usize,
    out: &mut [[f32; 32]],
) {
    // SAFETY: eight of 16 values each.
    let tables = [0, 8].map(|i| unsafe { _mm256_loadu_ps(values.as_ptr().add(i)) });
    for ((packed, out), scale) in packed.chunks(chunks).zip(out.chunks_mut(chunks)).zip(scales) {
        block(tables, packed, *scale, out);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn block(tables: [__m256; 2], packed: &[[u8; 16]], scale: f32, out: &mut [[f32; 32]]) {
    let factor = _mm256_set1_ps(scale);
    let tables = tables.map(|t| _mm256_mul_ps(t, factor));
    let low = _mm_set1_epi8(15);
    for (packed, out) in packed.iter().zip(out) {
        // SAFETY: 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
        let (first, second) = (_mm_and_si128(_mm_srli_epi16::<4>(bytes), low), _mm_and_si128(bytes, low));
        let codes = [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)];
        for i in 0..4 {
            let eight = if i % 2 == 0 { codes[i / 2] } else { _mm_srli_si128::<8>(codes[i / 2]) };
            let code = _mm256_cvtepu8_epi32(eight);
            // Bit 3 selects the table; it is moved to the sign bit, which the blend reads.
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
            let [a, b] = tables.map(|t| _mm256_permutevar8x32_ps(t, code));
            // SAFETY: eight of 32 values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), _mm256_blendv_ps(a, b, upper)) };
        }
    }
}
