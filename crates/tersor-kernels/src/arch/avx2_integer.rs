//! Integer products with AVX2: `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits, which saturate.
//!
//! Codes of 2 to 4 bits are at most 3, 7 and 15, so a pair sum is at most `2 * 15 * 128 = 3840` in magnitude and 8 of them (30720), 18 of
//! 3 bits (1792 each) or 42 of 2 bits (768 each) stay below 32768: they are added in 16 bits before they are widened. Codes of 8 bits
//! are re-centred to -128..=127 and multiplied as 16-bit numbers: a pair sum of theirs would not fit.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::dense::Write;
use crate::integer::{Activations, Cells, LANES, Lane, Line, Panels};

/// # Safety
/// The processor has AVX2 and FMA. The cells of `panels` for all tokens may be written and are not touched by anyone else.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn product(
    x: &Activations,
    w: &Panels,
    panels: Range<usize>,
    write: Write,
    cells: Cells,
    sums: &mut Vec<f32>,
) {
    sums.resize(4 * LANES, 0.0);
    for panel in panels {
        let mut token = 0;
        while token < x.tokens() {
            let left = x.tokens() - token;
            // SAFETY: as for this function; the tokens of the tile exist.
            let done = unsafe {
                match (w.bits(), x.planes(), left) {
                    (8, 1, 4..) => tile::<8, 4, 1>(x, w, panel, token, sums),
                    (8, 1, _) => tile::<8, 1, 1>(x, w, panel, token, sums),
                    (8, _, _) => tile::<8, 3, 3>(x, w, panel, token, sums),
                    (4, 1, 4..) => tile::<4, 4, 1>(x, w, panel, token, sums),
                    (4, 1, _) => tile::<4, 1, 1>(x, w, panel, token, sums),
                    (4, _, _) => tile::<4, 3, 3>(x, w, panel, token, sums),
                    (3, 1, 4..) => tile::<3, 4, 1>(x, w, panel, token, sums),
                    (3, 1, _) => tile::<3, 1, 1>(x, w, panel, token, sums),
                    (3, _, _) => tile::<3, 3, 3>(x, w, panel, token, sums),
                    (_, 1, 4..) => tile::<2, 4, 1>(x, w, panel, token, sums),
                    (_, 1, _) => tile::<2, 1, 1>(x, w, panel, token, sums),
                    (_, _, _) => tile::<2, 3, 3>(x, w, panel, token, sums),
                }
            };
            for (t, sums) in sums.chunks_exact(LANES).take(done).enumerate() {
                let scale = x.scale(token + t);
                let values: [f32; LANES] = std::array::from_fn(|l| sums[l] * scale);
                // SAFETY: the caller vouches for the cells.
                unsafe { cells.put(token + t, panel * LANES, w.rows(), &values, write) };
            }
            token += done;
        }
    }
}

/// Half of the 64 bytes of a quad of columns: eight rows.
///
/// # Safety
/// `lines` points to the lines of a block: three for codes of 3 bits, else one.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad<const BITS: u32, const Q: usize>(lines: *const Line, half: usize) -> __m256i {
    // SAFETY: a line is 64 bytes at a multiple of 64, of which 32 are loaded from 0 or 32 on; the caller vouches for the lines.
    let load = |i: usize| unsafe { _mm256_load_si256(lines.add(i).cast::<__m256i>().add(half)) };
    let low = |v: __m256i, mask: i8| _mm256_and_si256(v, _mm256_set1_epi8(mask));
    match BITS {
        8 => _mm256_xor_si256(load(0), _mm256_set1_epi8(-128)),
        4 => low(shift(load(0), 4 * Q), 15),
        2 => low(shift(load(0), 2 * Q), 3),
        _ => {
            let high = low(shift(load(2), Q), 1);
            _mm256_or_si256(low(shift(load(Q / 4), 2 * (Q % 4)), 3), _mm256_slli_epi16::<2>(high))
        }
    }
}

/// By a number that is a constant where this is inlined.
#[inline(always)]
fn shift(v: __m256i, by: usize) -> __m256i {
    // SAFETY: only called where the instructions are there.
    unsafe {
        match by {
            0 => v,
            1 => _mm256_srli_epi16::<1>(v),
            2 => _mm256_srli_epi16::<2>(v),
            3 => _mm256_srli_epi16::<3>(v),
            4 => _mm256_srli_epi16::<4>(v),
            5 => _mm256_srli_epi16::<5>(v),
            6 => _mm256_srli_epi16::<6>(v),
            _ => _mm256_srli_epi16::<7>(v),
        }
    }
}

/// One panel by `V` planes, `D` of them a token. Leaves the sums at `[token, 16]`; gives the number of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const BITS: u32, const V: usize, const D: usize>(
    x: &Activations,
    w: &Panels,
    panel: usize,
    token: usize,
    sums: &mut [f32],
) -> usize {
    let padding = w.padding();
    let (quads, lines_of_block) = match BITS {
        8 => (1, 1),
        4 => (2, 1),
        2 => (4, 1),
        _ => (8, 3),
    };
    // Quads whose pair sums are added in 16 bits: see the head of this file.
    let narrow: usize = match BITS {
        2 => 42,
        3 => 18,
        4 => 8,
        _ => 1,
    };
    // Of re-centred codes the zero moves with them.
    let centre = if BITS == 8 { 128 } else { 0 };
    let ones = _mm256_set1_epi16(1);
    let tokens = V / D;
    let lines = w.lines(panel).as_ptr();
    // The planes of neighbouring tokens follow each other.
    let (base, width) = (x.row(token, 0).as_ptr(), padding.width());
    debug_assert!(x.row(token + tokens - 1, D - 1).as_ptr() == base.wrapping_add((V - 1) * width));
    let mut totals = [[_mm256_setzero_ps(); 2]; V];
    let mut first = 0;
    for group in 0..padding.groups() {
        let (scales, zeros) = w.grid(panel, group);
        let mut wide = [[_mm256_setzero_si256(); 2]; V];
        for half in 0..2 {
            // SAFETY: 16 bytes, 8 from 0 or 8 on.
            let zeros = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(zeros.as_ptr().add(8 * half).cast()) });
            let zeros = _mm256_sub_epi32(zeros, _mm256_set1_epi32(centre));
            for (v, wide) in wide.iter_mut().enumerate() {
                let sum = _mm256_set1_epi32(x.sum(token + v / D, v % D, group).wrapping_neg());
                wide[half] = _mm256_mullo_epi32(zeros, sum);
            }
        }
        let blocks = first..first + padding.blocks(group);
        let (mut short, mut pending) = ([[_mm256_setzero_si256(); 2]; V], 0);
        for block in blocks.clone() {
            // A step for each quad of the block, its number a constant: shifts by it are immediate ones.
            macro_rules! step {
                ($($q:literal)*) => {{$({
                    // SAFETY: a panel has this many lines for every block, and a plane four codes for every quad of it.
                    let (codes, at) = unsafe {
                        let here = lines.add(block * lines_of_block);
                        let codes = [quad::<BITS, $q>(here, 0), quad::<BITS, $q>(here, 1)];
                        (codes, base.add((block * quads + $q) * 4))
                    };
                    for v in 0..V {
                        // SAFETY: as above; there are `V` planes.
                        let four = _mm256_set1_epi32(unsafe { at.add(v * width).cast::<i32>().read_unaligned() });
                        for half in 0..2 {
                            if BITS == 8 {
                                wide[v][half] = _mm256_add_epi32(wide[v][half], wide_pair(codes[half], four));
                            } else {
                                let pair = _mm256_maddubs_epi16(codes[half], four);
                                short[v][half] = _mm256_add_epi16(short[v][half], pair);
                            }
                        }
                    }
                    pending += 1;
                    if BITS != 8 && pending == narrow {
                        for (wide, short) in wide.iter_mut().flatten().zip(short.iter_mut().flatten()) {
                            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*short, ones));
                            *short = _mm256_setzero_si256();
                        }
                        pending = 0;
                    }
                })*}};
            }
            match BITS {
                8 => step!(0),
                4 => step!(0 1),
                2 => step!(0 1 2 3),
                _ => step!(0 1 2 3 4 5 6 7),
            }
        }
        if BITS != 8 && pending > 0 {
            for (wide, short) in wide.iter_mut().flatten().zip(short.iter().flatten()) {
                *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*short, ones));
            }
        }
        first = blocks.end;
        for half in 0..2 {
            // SAFETY: 16 floats of either width, 8 from 0 or 8 on.
            let scales = unsafe {
                match scales {
                    Lane::Half(s) => _mm256_cvtph_ps(_mm_loadu_si128(s.as_ptr().add(8 * half).cast())),
                    Lane::Single(s) => _mm256_loadu_ps(s.as_ptr().add(8 * half)),
                }
            };
            for t in 0..tokens {
                let mut value = _mm256_cvtepi32_ps(wide[t * D + D - 1][half]);
                for d in (0..D - 1).rev() {
                    let next = _mm256_cvtepi32_ps(wide[t * D + d][half]);
                    value = _mm256_fmadd_ps(value, _mm256_set1_ps(256.0), next);
                }
                totals[t][half] = _mm256_fmadd_ps(scales, value, totals[t][half]);
            }
        }
    }
    for t in 0..tokens {
        for half in 0..2 {
            let out = &mut sums[t * LANES + 8 * half..][..8];
            // SAFETY: 8 floats.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), totals[t][half]) };
        }
    }
    tokens
}

/// Sums of four products of signed bytes, in 32 bits.
#[target_feature(enable = "avx2")]
fn wide_pair(w: __m256i, x: __m256i) -> __m256i {
    // The even and the odd bytes, each sign-extended in place: products of 16 bits, pairs summed in 32.
    let even = |v: __m256i| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
    let odd = |v: __m256i| _mm256_srai_epi16::<8>(v);
    _mm256_add_epi32(_mm256_madd_epi16(even(w), even(x)), _mm256_madd_epi16(odd(w), odd(x)))
}
