//! Codes of the 8-bit dynamic map, on AVX2 and on AVX-512 F, BW and DQ.

// As in the products, loops over registers are written with indices, so that they are unrolled.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::codebook::Codebook;
use crate::decades::{Decades, NEAR};

/// Writes the code of the value of `book` nearest to `x * scale`; `map` describes the values of `book`. `x` and `codes` are equally long.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn nearest(book: &Codebook, map: &Decades, x: &[f32], scale: f32, codes: &mut [u8]) {
    if map.signed {
        run::<true>(book, map, x, scale, codes);
    } else {
        run::<false>(book, map, x, scale, codes);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn run<const SIGNED: bool>(book: &Codebook, map: &Decades, x: &[f32], scale: f32, codes: &mut [u8]) {
    // SAFETY: eight numbers.
    let load = |v: &[f32; 8]| unsafe { _mm256_loadu_ps(v.as_ptr()) };
    let (slopes, offsets, tops) = (load(&map.slopes), load(&map.offsets), load(&map.tops));
    let edges = _mm256_castps_si256(load(&map.edges.map(|e| f32::from_bits(e as u32))));
    let [less, times] = map.log.map(|v| _mm256_set1_epi32(i32::from(v)));
    let (factor, magnitude, two) = (_mm256_set1_ps(scale), _mm256_set1_epi32(i32::MAX), _mm256_set1_ps(2.0));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let (body, rest) = x.as_chunks::<32>();
    let (whole, last) = codes.as_chunks_mut::<32>();
    for (x, codes) in body.iter().zip(whole.iter_mut()) {
        let (mut min, mut max) = (_mm256_set1_ps(0.5), _mm256_set1_ps(0.5));
        let mut numbers = [_mm256_setzero_si256(); 4];
        for (i, number) in numbers.iter_mut().enumerate() {
            // SAFETY: 32 values, `i` is below 4.
            let value = _mm256_mul_ps(unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) }, factor);
            let bits = _mm256_castps_si256(value);
            let size = if SIGNED {
                _mm256_castsi256_ps(_mm256_and_si256(bits, magnitude))
            } else {
                _mm256_max_ps(value, _mm256_setzero_ps())
            };
            let size = _mm256_min_ps(size, two);
            let key = _mm256_castps_si256(size);
            // The index of the piece or of the one below. (The other half of each factor is 0; `mulhi` would be split
            // by the compiler.)
            let rough = _mm256_srli_epi32::<16>(_mm256_madd_epi16(
                _mm256_subs_epu16(_mm256_srli_epi32::<16>(key), less),
                times,
            ));
            // A value on an edge gets the lower code, which for a negative value belongs to the next piece.
            let key = if SIGNED { _mm256_add_epi32(key, _mm256_srli_epi32::<31>(bits)) } else { key };
            let above = _mm256_cmpgt_epi32(key, _mm256_permutevar8x32_epi32(edges, rough));
            let piece = _mm256_sub_epi32(rough, above);
            let of = |v: __m256| _mm256_permutevar8x32_ps(v, piece);
            let line = _mm256_min_ps(_mm256_fmadd_ps(of(slopes), size, of(offsets)), of(tops));
            let floor = _mm256_floor_ps(line);
            let part = _mm256_sub_ps(line, floor);
            (min, max) = (_mm256_min_ps(min, part), _mm256_max_ps(max, part));
            let code = _mm256_cvttps_epi32(floor);
            *number = if SIGNED { _mm256_sign_epi32(code, bits) } else { code };
        }
        // -128, which is no code, becomes the lowest code, because packing limits it to 0.
        let zero = _mm256_set1_epi16(if SIGNED { 127 } else { 0 });
        let pair = |a: usize| _mm256_add_epi16(_mm256_packs_epi32(numbers[a], numbers[a + 1]), zero);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(pair(0), pair(2)), order);
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
        // After the store, so that the codes need no register here.
        let low = _mm256_cmp_ps::<_CMP_LT_OQ>(min, _mm256_set1_ps(NEAR));
        let high = _mm256_cmp_ps::<_CMP_GT_OQ>(max, _mm256_set1_ps(1.0 - NEAR));
        if _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0 {
            settle(book, x, scale, codes);
        }
    }
    search(book, rest, scale, last);
}

/// The operation of `range` that returns the float of smaller magnitude, without its sign.
const SMALLER_MAGNITUDE: i32 = 0b1010;

/// As [`nearest`], with AVX-512 and with a scale for every `block` values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma")]
pub(crate) fn nearest_wide(book: &Codebook, map: &Decades, x: &[f32], scales: &[f32], block: usize, codes: &mut [u8]) {
    if map.signed {
        run_wide::<true>(book, map, x, scales, block, codes);
    } else {
        run_wide::<false>(book, map, x, scales, block, codes);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma")]
fn run_wide<const SIGNED: bool>(
    book: &Codebook,
    map: &Decades,
    x: &[f32],
    scales: &[f32],
    block: usize,
    codes: &mut [u8],
) {
    // SAFETY: eight numbers; the upper half is not looked up.
    let load = |v: &[f32; 8]| _mm512_castps256_ps512(unsafe { _mm256_loadu_ps(v.as_ptr()) });
    let (slopes, offsets, tops) = (load(&map.slopes), load(&map.offsets), load(&map.tops));
    // Doubled; the last piece has no upper edge.
    let edges = map.edges.map(|e| f32::from_bits(if e == i32::MAX { u32::MAX } else { 2 * e as u32 }));
    let edges = _mm512_castps_si512(load(&edges));
    let [less, times] = map.log.map(|v| i32::from(v) << 16);
    let (less, times) = (_mm512_set1_epi32(less | 0xffff), _mm512_set1_epi32(times));
    let (one, none) = (_mm512_set1_epi32(1), _mm512_setzero_si512());
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (two, sign) = (_mm512_set1_ps(2.0), _mm512_set1_epi32(i32::MIN));
    for ((x, codes), &scale) in x.chunks(block).zip(codes.chunks_mut(block)).zip(scales) {
        let factor = _mm512_set1_ps(scale);
        let (body, rest) = x.as_chunks::<64>();
        let (whole, last) = codes.as_chunks_mut::<64>();
        for (x, codes) in body.iter().zip(whole.iter_mut()) {
            // Each step for all four registers before the next step: whole chains one after the other would fill the scheduler.
            let mut value = [_mm512_setzero_ps(); 4];
            let (mut size, mut piece) = (value, [none; 4]);
            for i in 0..4 {
                // SAFETY: 64 values, `i` is below 4.
                value[i] = _mm512_mul_ps(unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * i)) }, factor);
            }
            for i in 0..4 {
                size[i] = match SIGNED {
                    true => _mm512_range_ps::<SMALLER_MAGNITUDE>(value[i], two),
                    false => _mm512_min_ps(_mm512_max_ps(value[i], _mm512_setzero_ps()), two),
                };
            }
            for i in 0..4 {
                // The index of the piece or of the one below, from the upper half of each factor; the lower half becomes
                // 0.
                let high = _mm512_subs_epu16(_mm512_castps_si512(size[i]), less);
                piece[i] = _mm512_srli_epi32::<16>(_mm512_madd_epi16(high, times));
            }
            for i in 0..4 {
                // Twice the magnitude, plus one for negative values: on an edge these belong to the next piece.
                let key = match SIGNED {
                    true => _mm512_rol_epi32::<1>(_mm512_castps_si512(value[i])),
                    false => _mm512_slli_epi32::<1>(_mm512_castps_si512(size[i])),
                };
                let above = _mm512_cmpgt_epu32_mask(key, _mm512_permutexvar_epi32(piece[i], edges));
                piece[i] = _mm512_mask_add_epi32(piece[i], above, piece[i], one);
            }
            let mut line = size;
            for i in 0..4 {
                let of = |v: __m512| _mm512_permutexvar_ps(piece[i], v);
                line[i] = _mm512_min_ps(_mm512_fmadd_ps(of(slopes), size[i], of(offsets)), of(tops));
            }
            // The smallest distance of a line from an integer.
            let mut part = line;
            for i in 0..4 {
                part[i] = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(line[i]);
            }
            let nearer = |a: __m512, b: __m512| _mm512_range_ps::<SMALLER_MAGNITUDE>(a, b);
            let min = nearer(nearer(part[0], part[1]), nearer(part[2], part[3]));
            let mut numbers = [none; 4];
            for i in 0..4 {
                // The sign of the value with the magnitude of the line.
                let bits = _mm512_castps_si512(line[i]);
                let signed = _mm512_ternarylogic_epi32::<0b1110_0010>(_mm512_castps_si512(value[i]), sign, bits);
                numbers[i] = _mm512_cvttps_epi32(_mm512_castsi512_ps(if SIGNED { signed } else { bits }));
            }
            let zero = _mm512_set1_epi16(if SIGNED { 127 } else { 0 });
            let pair = |a: usize| _mm512_add_epi16(_mm512_packs_epi32(numbers[a], numbers[a + 1]), zero);
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(pair(0), pair(2)));
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), bytes) };
            if _mm512_cmp_ps_mask::<_CMP_LT_OQ>(min, _mm512_set1_ps(NEAR)) != 0 {
                settle(book, x, scale, codes);
            }
        }
        search(book, rest, scale, last);
    }
}

/// Corrects codes that may be off by one, by comparison with the midpoints around them.
#[cold]
fn settle(book: &Codebook, x: &[f32], scale: f32, codes: &mut [u8]) {
    codes.iter_mut().zip(x).for_each(|(c, x)| *c = book.settle(x * scale, *c));
}

/// Writes the codes of values by a search among the midpoints.
fn search(book: &Codebook, x: &[f32], scale: f32, codes: &mut [u8]) {
    codes.iter_mut().zip(x).for_each(|(c, x)| *c = book.code(x * scale));
}
