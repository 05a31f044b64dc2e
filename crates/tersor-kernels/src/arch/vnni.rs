//! Integer products with AVX-512 VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to 32 bits,
//! without saturation.

// Iterators over arrays of sums are not always unrolled; the sums would then be in memory.
#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::gemm_task::{Cells, Write};
use crate::integer::{LANES, Line, PANELS, PanelScales, Panels, TokenBlock, TokenView};

/// The largest number of token planes of a block: divisible by one and by three.
const WIDE: usize = 12;

/// Token planes below which a product is bound by memory.
const FEW: usize = 4;

/// The distance of prefetched lines, where memory is slower than the arithmetic.
const AHEAD: usize = 96;
/// Blocks whose lines are prefetched at once.
const BURST: usize = 16;

/// The results of a block, `[token, panel, 16]`, each panel in a cache line of its own.
#[repr(align(64))]
struct Values([[[f32; LANES]; PANELS]; WIDE]);

type Kernel = unsafe fn(&TokenView<'_>, &Panels, usize, TokenBlock, &mut Values);

/// Returns the numbers of tokens that a block may have, the largest first.
pub(crate) fn token_blocks(planes: usize) -> &'static [usize] {
    if planes == 1 { &[12, 8, 4, 2, 1] } else { &[4, 2, 1] }
}

/// Computes the product with some panels of the weights.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI. The cells of `panels` up to `cells.end` for all tokens may be written and are not accessed by
/// anyone else.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn product(x: &TokenView<'_>, w: &Panels, panels: Range<usize>, write: Write, cells: Cells) {
    let mut values = Values([[[0f32; LANES]; PANELS]; WIDE]);
    let mut panel = panels.start;
    while panel < panels.end {
        // A product bound by memory reads one stream of lines faster than two.
        let max = if x.x.tokens() * x.x.planes() < FEW { 1 } else { PANELS };
        let count = max.min(panels.end - panel);
        for &block in x.blocks {
            let kernel = match (w.bits(), count) {
                (8, PANELS) => kernels::<8, PANELS>,
                (8, _) => kernels::<8, 1>,
                (4, PANELS) => kernels::<4, PANELS>,
                (4, _) => kernels::<4, 1>,
                (3, PANELS) => kernels::<3, PANELS>,
                (3, _) => kernels::<3, 1>,
                (_, PANELS) => kernels::<2, PANELS>,
                (_, _) => kernels::<2, 1>,
            };
            // SAFETY: as for this function; `count` panels and the block exist, and the kernel is for blocks of this
            // size.
            unsafe { kernel(x.x.planes(), block.tokens)(x, w, panel, block, &mut values) };
            for (t, of_token) in (block.first..).zip(values.0.iter().take(block.tokens)) {
                let scale = _mm512_set1_ps(x.x.scale(t));
                for (p, values) in of_token.iter().enumerate().take(count) {
                    let first = (panel + p) * LANES;
                    let mask = (1u32 << (cells.end - first).min(LANES)) - 1;
                    // SAFETY: 16 floats; the caller vouches for the cells, of which the mask has those that there are.
                    unsafe {
                        let at = cells.at(t, first);
                        let mut value = _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), scale);
                        if write == Write::Add {
                            value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask as u16, at), value);
                        }
                        _mm512_mask_storeu_ps(at, mask as u16, value);
                    }
                }
            }
        }
        panel += count;
    }
}

/// Returns the kernel for blocks of `tokens` tokens of `planes` planes.
fn kernels<const BITS: u32, const P: usize>(planes: usize, tokens: usize) -> Kernel {
    match (planes, tokens) {
        (1, 12) => multiply::<BITS, P, 12, 1>,
        (1, 8) => multiply::<BITS, P, 8, 1>,
        (1, 4) => multiply::<BITS, P, 4, 1>,
        (1, 2) => multiply::<BITS, P, 2, 1>,
        (1, _) => multiply::<BITS, P, 1, 1>,
        (_, 4) => multiply::<BITS, P, 12, 3>,
        (_, 2) => multiply::<BITS, P, 6, 3>,
        (_, _) => multiply::<BITS, P, 3, 3>,
    }
}

/// Returns the codes of the four columns of quad `Q`, 64 bytes.
///
/// # Safety
/// `lines` points to the lines of a block: three for codes of 3 bits, else one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quad<const BITS: u32, const Q: usize>(lines: *const Line) -> __m512i {
    // SAFETY: a line is 64 bytes at a multiple of 64, and the caller vouches for that many lines.
    let load = |i: usize| unsafe { _mm512_load_si512(lines.add(i).cast()) };
    let low = |v: __m512i, mask: i8| _mm512_and_si512(v, _mm512_set1_epi8(mask));
    match BITS {
        8 => load(0),
        4 => low(shift::<Q, 4>(load(0)), 15),
        2 => low(shift::<Q, 2>(load(0)), 3),
        _ => {
            let high = low(shift::<Q, 1>(load(2)), 1);
            let two = if Q < 4 { shift::<Q, 2>(load(0)) } else { shift::<Q, 2>(load(1)) };
            _mm512_or_si512(low(two, 3), _mm512_slli_epi16::<2>(high))
        }
    }
}

/// Shifts to the right by `BITS * Q` modulo 8: for codes of 3 bits, the low bits of the second four quads are where those of the first four
/// are.
#[inline]
#[target_feature(enable = "avx512bw")]
fn shift<const Q: usize, const BITS: usize>(v: __m512i) -> __m512i {
    match BITS * Q % 8 {
        0 => v,
        1 => _mm512_srli_epi16::<1>(v),
        2 => _mm512_srli_epi16::<2>(v),
        3 => _mm512_srli_epi16::<3>(v),
        4 => _mm512_srli_epi16::<4>(v),
        5 => _mm512_srli_epi16::<5>(v),
        6 => _mm512_srli_epi16::<6>(v),
        _ => _mm512_srli_epi16::<7>(v),
    }
}

/// Converts 16 bytes to 32 bits each.
#[inline]
#[target_feature(enable = "avx512f")]
fn wide(bytes: &[u8; LANES]) -> __m512i {
    // SAFETY: 16 bytes.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Adds the products of four codes of each row with four codes of one token. For two panels it is written as assembly, because a compiler that may move the
/// loads moves so many to the front that the sums do not stay in registers.
///
/// # Safety
/// Four bytes may be read at `four`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add<const P: usize>(acc: &mut [__m512i; P], codes: &[__m512i; P], four: *const [i8; 4]) {
    if P == 2 {
        // SAFETY: reads the four bytes, and changes nothing but its operands.
        unsafe {
            asm!(
                "vpbroadcastd {x}, dword ptr [{four}]",
                "vpdpbusd {a}, {c}, {x}",
                "vpdpbusd {b}, {d}, {x}",
                x = out(zmm_reg) _,
                four = in(reg) four,
                a = inout(zmm_reg) acc[0],
                b = inout(zmm_reg) acc[1],
                c = in(zmm_reg) codes[0],
                d = in(zmm_reg) codes[1],
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    } else {
        // SAFETY: as above.
        let x = _mm512_set1_epi32(unsafe { four.cast::<i32>().read_unaligned() });
        for p in 0..P {
            acc[p] = _mm512_dpbusd_epi32(acc[p], codes[p], x);
        }
    }
}

/// Multiplies `P` panels with `V` planes, `D` for each token, and leaves the results, without the tokens' scales, in `values`.
///
/// # Safety
/// The processor has the instructions; the panels and the block exist, and it has `V / D` tokens of `D` planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<const BITS: u32, const P: usize, const V: usize, const D: usize>(
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
    let [groups, each, in_last] = w.cuts();
    let lines: [*const Line; P] = std::array::from_fn(|p| w.lines(panel + p).as_ptr());
    let (codes_of_block, offsets) = (x.quads(block_of_tokens).as_ptr(), x.offsets(block_of_tokens).as_ptr());
    debug_assert!((block_of_tokens.tokens, x.x.planes()) == (V / D, D));
    let few = V < FEW;
    let mut totals = [[_mm512_setzero_ps(); P]; V];
    let mut wholes = [[_mm512_setzero_si512(); P]; V];
    let (scales, zeros) = (
        std::array::from_fn::<_, P, _>(|p| w.scales(panel + p)),
        std::array::from_fn::<_, P, _>(|p| w.zeros(panel + p)),
    );
    let differ = w.same_zero().is_none();
    let mut first = 0;
    for group in 0..groups {
        // SAFETY: there are `V` planes with an offset for each group.
        let offset = |v: usize| _mm512_set1_epi32(unsafe { *offsets.add(v * groups + group) });
        let mut acc = [[_mm512_setzero_si512(); P]; V];
        // With few tokens, every second quad has sums of its own, because a dependent addition takes four cycles.
        let mut second = [[_mm512_setzero_si512(); P]; V];
        for v in 0..V {
            acc[v] = [offset(v); P];
        }
        if differ {
            for p in 0..P {
                let zeros = wide(&zeros[p][group]);
                for v in 0..V {
                    acc[v][p] = _mm512_mullo_epi32(zeros, acc[v][p]);
                }
            }
        }
        let end = first + if group + 1 == groups { in_last } else { each };
        for block in first..end {
            // Many prefetches at once: one between every two steps is slower than none.
            if few && BITS < 8 && (block - first) % BURST == 0 {
                for line in block * lines_of_block..(block + BURST).min(end) * lines_of_block {
                    for p in 0..P {
                        _mm_prefetch::<_MM_HINT_T1>(lines[p].wrapping_add(line + AHEAD).cast());
                    }
                }
            }
            // A step for each quad of the block, whose number is a constant, so that shifts are immediate.
            macro_rules! step {
                ($($q:literal)*) => {{$({
                    // SAFETY: a panel has this many lines for every block, and a block of tokens `V` times four codes
                    // for every quad of it.
                    unsafe {
                        let codes = std::array::from_fn(|p| quad::<BITS, $q>(lines[p].add(block * lines_of_block)));
                        let at = codes_of_block.add((block * quads + $q) * V);
                        for v in 0..V {
                            let sums = if few && $q % 2 == 1 { &mut second[v] } else { &mut acc[v] };
                            add(sums, &codes, at.add(v));
                        }
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
        first = end;
        if few && BITS < 8 {
            for v in 0..V {
                for p in 0..P {
                    acc[v][p] = _mm512_add_epi32(acc[v][p], second[v][p]);
                }
            }
        }
        for p in 0..P {
            // SAFETY: 16 numbers.
            let scales = unsafe {
                match scales[p] {
                    PanelScales::Half(s) => _mm512_cvtph_ps(_mm256_loadu_si256(s[group].as_ptr().cast())),
                    PanelScales::Single(s) => _mm512_loadu_ps(s[group].as_ptr()),
                    PanelScales::Whole(s) => {
                        let scales = wide(&s[group]);
                        for v in 0..V {
                            wholes[v][p] = _mm512_add_epi32(wholes[v][p], _mm512_mullo_epi32(scales, acc[v][p]));
                        }
                        continue;
                    }
                }
            };
            for t in 0..V / D {
                let sum = join([acc[t * D][p], acc[t * D + D / 2][p], acc[t * D + D - 1][p]], D);
                totals[t][p] = _mm512_fmadd_ps(scales, sum, totals[t][p]);
            }
        }
    }
    for t in 0..V / D {
        for p in 0..P {
            if let Some(rows) = w.row_scales(panel + p) {
                let sum = join([wholes[t * D][p], wholes[t * D + D / 2][p], wholes[t * D + D - 1][p]], D);
                // SAFETY: 16 floats.
                totals[t][p] = _mm512_mul_ps(unsafe { _mm512_loadu_ps(rows.as_ptr()) }, sum);
            }
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(values.0[t][p].as_mut_ptr(), totals[t][p]) };
        }
    }
}

/// Combines one plane or three to one sum: the second counts 256 times, the third 65 536 times.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(planes: [__m512i; 3], count: usize) -> __m512 {
    let [low, middle, high] = planes.map(|p| _mm512_cvtepi32_ps(p));
    if count == 1 {
        return low;
    }
    let base = _mm512_set1_ps(256.0);
    _mm512_fmadd_ps(_mm512_fmadd_ps(high, base, middle), base, low)
}
