//! Integer products with AVX2: `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits, which
//! saturate.
//!
//! Codes of 2 to 4 bits are at most 3, 7 and 15, so a pair sum is at most `2 * 15 * 128 = 3840` in magnitude (1792 at 3
//! bits, 768 at 2), and the sum of 8 of them at most 30720: so many are added in 16 bits before they are widened. Codes
//! of 8 bits would not fit: they are multiplied as 16-bit numbers by `vpmaddwd`, which adds pairs in 32 bits.

// Iterators over arrays of sums are not always unrolled; the sums would then be in memory.
#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::gemm_task::{Cells, Write};
use crate::integer::{LANES, Line, PanelScales, Panels, TokenBlock, TokenView};

/// The largest number of token planes of a block.
const WIDE: usize = 6;

/// The distance of prefetched lines, where memory is slower than the arithmetic.
const AHEAD: usize = 96;

/// The results of a block, `[token, 16]`, each token in a cache line of its own.
#[repr(align(64))]
struct Values([[f32; LANES]; WIDE]);

type Kernel = unsafe fn(&TokenView<'_>, &Panels, usize, TokenBlock, &mut Values);

/// Returns the numbers of tokens that a block may have, the largest first; with `pairs` for weights of 8 bits.
pub(crate) fn token_blocks(pairs: bool, planes: usize) -> &'static [usize] {
    match (pairs, planes) {
        (true, 1) => &[4, 2, 1],
        (true, _) => &[1],
        (_, 1) => &[6, 4, 2, 1],
        (_, _) => &[2, 1],
    }
}

/// Computes the product with some panels of the weights.
///
/// # Safety
/// The processor has AVX2, FMA and F16C. The cells of `panels` up to `cells.end` for all tokens may be written and are not accessed by
/// anyone else.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn product(x: &TokenView<'_>, w: &Panels, panels: Range<usize>, write: Write, cells: Cells) {
    let mut values = Values([[0f32; LANES]; WIDE]);
    for panel in panels {
        for &block in x.blocks {
            let kernel: Kernel = match (w.bits(), x.x.planes(), block.tokens) {
                (8, 1, 4) => multiply::<8, 4, 1>,
                (8, 1, 2) => multiply::<8, 2, 1>,
                (8, 1, _) => multiply::<8, 1, 1>,
                (8, _, _) => multiply::<8, 3, 3>,
                (4, planes, tokens) => kernels::<4>(planes, tokens),
                (3, planes, tokens) => kernels::<3>(planes, tokens),
                (_, planes, tokens) => kernels::<2>(planes, tokens),
            };
            // SAFETY: as for this function; the block exists, and the kernel is for blocks of this size.
            unsafe { kernel(x, w, panel, block, &mut values) };
            for (t, values) in (block.first..).zip(values.0.iter().take(block.tokens)) {
                let scaled = values.map(|v| v * x.x.scale(t));
                // SAFETY: the caller vouches for the cells.
                unsafe { cells.put(t, panel * LANES, &scaled, write) };
            }
        }
    }
}

/// Returns the kernel for blocks of `tokens` tokens of `planes` planes.
fn kernels<const BITS: u32>(planes: usize, tokens: usize) -> Kernel {
    match (planes, tokens) {
        (1, 6) => multiply::<BITS, 6, 1>,
        (1, 4) => multiply::<BITS, 4, 1>,
        (1, 2) => multiply::<BITS, 2, 1>,
        (1, _) => multiply::<BITS, 1, 1>,
        (_, 2) => multiply::<BITS, 6, 3>,
        (_, _) => multiply::<BITS, 3, 3>,
    }
}

/// Returns the codes of the four columns of quad `Q` for eight of the 16 rows, 32 bytes.
///
/// # Safety
/// `lines` points to the lines of a block: three for codes of 3 bits, else one.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad<const BITS: u32, const Q: usize>(lines: *const Line, half: usize) -> __m256i {
    // SAFETY: a line is 64 bytes at a multiple of 64, of which 32 are loaded from 0 or 32 on; the caller vouches for
    // the lines.
    let load = |i: usize| unsafe { _mm256_load_si256(lines.add(i).cast::<__m256i>().add(half)) };
    let low = |v: __m256i, mask: i8| _mm256_and_si256(v, _mm256_set1_epi8(mask));
    match BITS {
        4 => low(shift::<Q, 4>(load(0)), 15),
        2 => low(shift::<Q, 2>(load(0)), 3),
        _ => {
            let high = low(shift::<Q, 1>(load(2)), 1);
            let two = if Q < 4 { shift::<Q, 2>(load(0)) } else { shift::<Q, 2>(load(1)) };
            _mm256_or_si256(low(two, 3), _mm256_slli_epi16::<2>(high))
        }
    }
}

/// Shifts to the right by `BITS * Q` modulo 8: for codes of 3 bits, the low bits of the second four quads are where those of the first four
/// are.
#[inline]
#[target_feature(enable = "avx2")]
fn shift<const Q: usize, const BITS: usize>(v: __m256i) -> __m256i {
    match BITS * Q % 8 {
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

/// Converts eight of 16 bytes to 32 bits each.
#[inline]
#[target_feature(enable = "avx2")]
fn wide(bytes: &[u8; LANES], half: usize) -> __m256i {
    debug_assert!(half < 2);
    // SAFETY: 16 bytes, 8 are read from 0 or 8 on.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().add(8 * half).cast()) })
}

/// Adds, in 16 bits, the products of four codes of each row with four codes of one token. Written as assembly, because a compiler that may
/// move the loads moves so many to the front that the sums do not stay in registers.
///
/// # Safety
/// Four bytes may be read at `four`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add(acc: &mut [__m256i; 2], codes: &[__m256i; 2], four: *const [i8; 4]) {
    // SAFETY: reads the four bytes, and changes nothing but its operands.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{four}]",
            "vpmaddubsw {y}, {c}, {x}",
            "vpmaddubsw {x}, {d}, {x}",
            "vpaddw {a}, {a}, {y}",
            "vpaddw {b}, {b}, {x}",
            x = out(ymm_reg) _,
            y = out(ymm_reg) _,
            four = in(reg) four,
            a = inout(ymm_reg) acc[0],
            b = inout(ymm_reg) acc[1],
            c = in(ymm_reg) codes[0],
            d = in(ymm_reg) codes[1],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

/// Adds, in 32 bits, the products of 8-bit codes of each row in columns 0 and 2 (`even`) and 1 and 3 (`odd`) with those of one token.
///
/// # Safety
/// Eight bytes may be read at `pairs`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_pairs(acc: &mut [__m256i; 2], even: &[__m256i; 2], odd: &[__m256i; 2], pairs: *const [i16; 4]) {
    // SAFETY: reads the eight bytes, and changes nothing but its operands.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{pairs}]",
            "vpmaddwd {y}, {c}, {x}",
            "vpmaddwd {x}, {d}, {x}",
            "vpaddd {a}, {a}, {y}",
            "vpaddd {b}, {b}, {x}",
            "vpbroadcastd {x}, dword ptr [{pairs} + 4]",
            "vpmaddwd {y}, {e}, {x}",
            "vpmaddwd {x}, {f}, {x}",
            "vpaddd {a}, {a}, {y}",
            "vpaddd {b}, {b}, {x}",
            x = out(ymm_reg) _,
            y = out(ymm_reg) _,
            pairs = in(reg) pairs,
            a = inout(ymm_reg) acc[0],
            b = inout(ymm_reg) acc[1],
            c = in(ymm_reg) even[0],
            d = in(ymm_reg) even[1],
            e = in(ymm_reg) odd[0],
            f = in(ymm_reg) odd[1],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

/// Multiplies one panel with `V` planes, `D` for each token, and leaves the results, without the tokens' scales, in `values`.
///
/// # Safety
/// The processor has the instructions; the panel and the block exist, and it has `V / D` tokens of `D` planes.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<const BITS: u32, const V: usize, const D: usize>(
    x: &TokenView<'_>,
    w: &Panels,
    panel: usize,
    block_of_tokens: TokenBlock,
    values: &mut Values,
) {
    let (quads, lines_of_block) = match BITS {
        8 => (1, 1),
        4 => (2, 1),
        2 => (4, 1),
        _ => (8, 3),
    };
    // Blocks whose pair sums are added in 16 bits: 8 quads, see the head of this file.
    let span = if BITS == 8 { usize::MAX } else { 8 / quads };
    let ones = _mm256_set1_epi16(1);
    let [groups, each, in_last] = w.cuts();
    let (lines, offsets) = (w.lines(panel).as_ptr(), x.offsets(block_of_tokens).as_ptr());
    let codes_of_block = x.quads(block_of_tokens).as_ptr();
    let pairs = if BITS == 8 { x.pairs(block_of_tokens).as_ptr() } else { std::ptr::null() };
    debug_assert!((block_of_tokens.tokens, x.x.planes()) == (V / D, D));
    // A product with few tokens is bound by memory.
    let few = V < 4;
    let mut totals = [[_mm256_setzero_ps(); 2]; V];
    let mut wholes = [[_mm256_setzero_si256(); 2]; V];
    let (scales, zeros, differ) = (w.scales(panel), w.zeros(panel), w.same_zero().is_none());
    let mut first = 0;
    for group in 0..groups {
        // SAFETY: there are `V` planes with an offset for each group.
        let offset = |v: usize| _mm256_set1_epi32(unsafe { *offsets.add(v * groups + group) });
        let mut acc = [[_mm256_setzero_si256(); 2]; V];
        for v in 0..V {
            acc[v] = [offset(v); 2];
        }
        if differ {
            for half in 0..2 {
                let zeros = wide(&zeros[group], half);
                for v in 0..V {
                    acc[v][half] = _mm256_mullo_epi32(zeros, acc[v][half]);
                }
            }
        }
        let end = first + if group + 1 == groups { in_last } else { each };
        while first < end {
            let last = end.min(first.saturating_add(span));
            if few && BITS < 8 {
                for line in first * lines_of_block..last * lines_of_block {
                    _mm_prefetch::<_MM_HINT_T1>(lines.wrapping_add(line + AHEAD).cast());
                }
            }
            if BITS == 8 {
                for block in first..last {
                    // SAFETY: a panel has this many lines, of 64 bytes.
                    let codes = unsafe {
                        let here = lines.add(block).cast::<__m256i>();
                        [_mm256_load_si256(here), _mm256_load_si256(here.add(1))]
                    };
                    let even = codes.map(|c| _mm256_and_si256(c, _mm256_set1_epi16(255)));
                    let odd = codes.map(|c| _mm256_srli_epi16::<8>(c));
                    for v in 0..V {
                        // SAFETY: a block has `V` times two pairs for every block.
                        unsafe { add_pairs(&mut acc[v], &even, &odd, pairs.add(block * V + v)) };
                    }
                }
            } else {
                let mut short = [[_mm256_setzero_si256(); 2]; V];
                for block in first..last {
                    // A step for each quad of the block, whose number is a constant, so that shifts are immediate.
                    macro_rules! step {
                        ($($q:literal)*) => {{$({
                            // SAFETY: a panel has this many lines for every block, and a block of tokens `V` times four
                            // codes for every quad of it.
                            unsafe {
                                let here = lines.add(block * lines_of_block);
                                let codes = [quad::<BITS, $q>(here, 0), quad::<BITS, $q>(here, 1)];
                                let at = codes_of_block.add((block * quads + $q) * V);
                                for v in 0..V {
                                    add(&mut short[v], &codes, at.add(v));
                                }
                            }
                        })*}};
                    }
                    match BITS {
                        4 => step!(0 1),
                        2 => step!(0 1 2 3),
                        _ => step!(0 1 2 3 4 5 6 7),
                    }
                }
                for v in 0..V {
                    for half in 0..2 {
                        acc[v][half] = _mm256_add_epi32(acc[v][half], _mm256_madd_epi16(short[v][half], ones));
                    }
                }
            }
            first = last;
        }
        for half in 0..2 {
            // SAFETY: 16 numbers, of which 8 are read from 0 or 8 on.
            let scales = unsafe {
                match scales {
                    PanelScales::Half(s) => _mm256_cvtph_ps(_mm_loadu_si128(s[group].as_ptr().add(8 * half).cast())),
                    PanelScales::Single(s) => _mm256_loadu_ps(s[group].as_ptr().add(8 * half)),
                    PanelScales::Whole(s) => {
                        let scales = wide(&s[group], half);
                        for v in 0..V {
                            let scaled = _mm256_mullo_epi32(scales, acc[v][half]);
                            wholes[v][half] = _mm256_add_epi32(wholes[v][half], scaled);
                        }
                        continue;
                    }
                }
            };
            for t in 0..V / D {
                let sum = join([acc[t * D][half], acc[t * D + D / 2][half], acc[t * D + D - 1][half]], D);
                totals[t][half] = _mm256_fmadd_ps(scales, sum, totals[t][half]);
            }
        }
    }
    for t in 0..V / D {
        for half in 0..2 {
            if let Some(rows) = w.row_scales(panel) {
                let sum = join([wholes[t * D][half], wholes[t * D + D / 2][half], wholes[t * D + D - 1][half]], D);
                // SAFETY: 16 floats, of which 8 are read from 0 or 8 on.
                totals[t][half] = _mm256_mul_ps(unsafe { _mm256_loadu_ps(rows.as_ptr().add(8 * half)) }, sum);
            }
            // SAFETY: 8 floats from 0 or 8 on.
            unsafe { _mm256_storeu_ps(values.0[t].as_mut_ptr().add(8 * half), totals[t][half]) };
        }
    }
}

/// Combines one plane or three to one sum: the second counts 256 times, the third 65 536 times.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn join(planes: [__m256i; 3], count: usize) -> __m256 {
    let [low, middle, high] = planes.map(|p| _mm256_cvtepi32_ps(p));
    if count == 1 {
        return low;
    }
    let base = _mm256_set1_ps(256.0);
    _mm256_fmadd_ps(_mm256_fmadd_ps(high, base, middle), base, low)
}
