//! AVX-512 F and BW: the loops of [`avx2`] that are bound by arithmetic, on twice as many values at once.

use std::arch::x86_64::*;

use super::avx2::{self, Coding};
use crate::affine::{Affine, quantize_scalar};

/// Writes the codes of `x`, each group of `group` values on its own grid, and prefetches as many values of `next`. With `PACKED`, codes of
/// 4 bits are written two to a byte, and groups are multiples of 64.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
pub(crate) fn quantize_groups<const PACKED: bool>(
    [x, next]: [&[f32]; 2],
    group: usize,
    grids: &[Affine],
    [lo, hi]: [u8; 2],
    out: &mut [u8],
) {
    let mut next = next.as_chunks::<64>().0.iter();
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (sign, sure) = (_mm512_set1_ps(-0.0), _mm512_castps_si512(_mm512_set1_ps(avx2::SURE)));
    let (low, high) = (_mm512_set1_epi8(lo as i8), _mm512_set1_epi8(hi as i8));
    let (group, block) = (group.clamp(1, x.len().max(1)), if PACKED { 32 } else { 64 });
    for ((x, out), grid) in x.chunks(group).zip(out.chunks_mut((group * block / 64).max(1))).zip(grids) {
        let inverse = _mm512_set1_ps(avx2::inverse(grid.scale));
        let zero = _mm512_set1_epi16(i16::from(grid.zero));
        let (body, rest) = x.as_chunks::<64>();
        let (codes, last) = out.split_at_mut((body.len() * block).min(out.len()));
        for (x, codes) in body.iter().zip(codes.chunks_exact_mut(block)) {
            if let Some(next) = next.next() {
                for line in [0, 16, 32, 48] {
                    // SAFETY: a hint, for which any address will do.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(next.as_ptr().add(line).cast()) };
                }
            }
            // SAFETY: `x` has 64 elements, and the indices are below 4.
            let product =
                [0, 1, 2, 3].map(|i| unsafe { _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(16 * i)), inverse) });
            let rounded = product.map(|p| _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(p));
            let rest = |i: usize| {
                _mm512_andnot_si512(
                    _mm512_castps_si512(sign),
                    _mm512_castps_si512(_mm512_sub_ps(product[i], rounded[i])),
                )
            };
            let max = _mm512_max_epi32(_mm512_max_epi32(rest(0), rest(1)), _mm512_max_epi32(rest(2), rest(3)));
            if _mm512_cmpgt_epi32_mask(max, sure) != 0 {
                divide::<PACKED>(x, *grid, [lo, hi], codes);
                continue;
            }
            let number = |i: usize| _mm512_cvtps_epi32(_mm512_min_ps(rounded[i], _mm512_set1_ps(512.0)));
            let a = _mm512_adds_epi16(_mm512_packs_epi32(number(0), number(1)), zero);
            let b = _mm512_adds_epi16(_mm512_packs_epi32(number(2), number(3)), zero);
            let bytes = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), low), high);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            if PACKED {
                // One times the even code and 16 times the odd one.
                let pairs = _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001)));
                // SAFETY: `codes` has 32 bytes.
                unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), pairs) };
            } else {
                // SAFETY: `codes` has 64 bytes.
                unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), bytes) };
            }
        }
        quantize_scalar(rest, *grid, lo, hi, last);
    }
}

/// Writes the codes of 64 values, computed by division, packed or not.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn divide<const PACKED: bool>(x: &[f32; 64], grid: Affine, [lo, hi]: [u8; 2], out: &mut [u8]) {
    let mut codes = [0u8; 64];
    let coding = Coding::new(grid, [lo, hi, 0]);
    for (x, codes) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
        coding.divide(x, codes);
    }
    if PACKED {
        avx2::pack4(&codes, out);
    } else {
        out.copy_from_slice(&codes);
    }
}
