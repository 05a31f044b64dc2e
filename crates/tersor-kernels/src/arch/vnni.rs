//! Integer products with AVX-512 VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to 32 bits, without saturation.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::dense::Write;
use crate::integer::{Activations, Cells, LANES, Lane, Line, PANELS, Panels};

/// Planes of tokens that a tile takes at once: divisible by one and by three.
const WIDE: usize = 12;

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. The cells of `panels` for all tokens may be written and are not touched by anyone else.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn product(
    x: &Activations,
    w: &Panels,
    panels: Range<usize>,
    write: Write,
    cells: Cells,
    sums: &mut Vec<f32>,
) {
    sums.resize(PANELS * WIDE * LANES, 0.0);
    let mut panel = panels.start;
    while panel < panels.end {
        let count = PANELS.min(panels.end - panel);
        let mut token = 0;
        while token < x.tokens() {
            let left = x.tokens() - token;
            // SAFETY: as for this function; `count` panels and the tokens of the tile exist.
            let done = unsafe {
                match (w.bits(), count, x.planes()) {
                    (8, 2, p) => by_width::<8, 2>(x, w, panel, token, left, p, sums),
                    (8, _, p) => by_width::<8, 1>(x, w, panel, token, left, p, sums),
                    (4, 2, p) => by_width::<4, 2>(x, w, panel, token, left, p, sums),
                    (4, _, p) => by_width::<4, 1>(x, w, panel, token, left, p, sums),
                    (3, 2, p) => by_width::<3, 2>(x, w, panel, token, left, p, sums),
                    (3, _, p) => by_width::<3, 1>(x, w, panel, token, left, p, sums),
                    (_, 2, p) => by_width::<2, 2>(x, w, panel, token, left, p, sums),
                    (_, _, p) => by_width::<2, 1>(x, w, panel, token, left, p, sums),
                }
            };
            for (i, sums) in sums.chunks_exact(LANES).take(done * count).enumerate() {
                let (t, p) = (i / count, i % count);
                let scale = x.scale(token + t);
                let values: [f32; LANES] = std::array::from_fn(|l| sums[l] * scale);
                // SAFETY: the caller vouches for the cells.
                unsafe { cells.put(token + t, (panel + p) * LANES, w.rows(), &values, write) };
            }
            token += done;
        }
        panel += count;
    }
}

/// Picks the widest tile that the tokens fill; gives the number of tokens done.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn by_width<const BITS: u32, const P: usize>(
    x: &Activations,
    w: &Panels,
    panel: usize,
    token: usize,
    left: usize,
    planes: usize,
    sums: &mut [f32],
) -> usize {
    // SAFETY: as for `product`.
    unsafe {
        match (planes, left) {
            (1, 12..) => tile::<BITS, P, 12, 1>(x, w, panel, token, sums),
            (1, 8..) => tile::<BITS, P, 8, 1>(x, w, panel, token, sums),
            (1, 4..) => tile::<BITS, P, 4, 1>(x, w, panel, token, sums),
            (1, 2..) => tile::<BITS, P, 2, 1>(x, w, panel, token, sums),
            (1, _) => tile::<BITS, P, 1, 1>(x, w, panel, token, sums),
            (_, 4..) => tile::<BITS, P, 12, 3>(x, w, panel, token, sums),
            (_, 2..) => tile::<BITS, P, 6, 3>(x, w, panel, token, sums),
            (_, _) => tile::<BITS, P, 3, 3>(x, w, panel, token, sums),
        }
    }
}

/// The 64 bytes of a quad of columns.
///
/// # Safety
/// `lines` points to the lines of a block: three for codes of 3 bits, else one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quad<const BITS: u32, const Q: usize>(lines: *const Line) -> __m512i {
    // SAFETY: a line is 64 bytes at a multiple of 64, and the caller vouches for as many as are asked for.
    let load = |i: usize| unsafe { _mm512_load_si512(lines.add(i).cast()) };
    let low = |v: __m512i, mask: i8| _mm512_and_si512(v, _mm512_set1_epi8(mask));
    match BITS {
        8 => load(0),
        4 => low(shift(load(0), 4 * Q), 15),
        2 => low(shift(load(0), 2 * Q), 3),
        _ => {
            let high = low(shift(load(2), Q), 1);
            _mm512_or_si512(low(shift(load(Q / 4), 2 * (Q % 4)), 3), _mm512_slli_epi16::<2>(high))
        }
    }
}

/// By a number that is a constant where this is inlined.
#[inline(always)]
fn shift(v: __m512i, by: usize) -> __m512i {
    // SAFETY: only called where the instructions are there.
    unsafe {
        match by {
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
}

/// `P` panels by `V` planes, `D` of them a token. Leaves the sums at `[token, panel, 16]`; gives the number of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const BITS: u32, const P: usize, const V: usize, const D: usize>(
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
    let tokens = V / D;
    let lines: [*const Line; P] = std::array::from_fn(|p| w.lines(panel + p).as_ptr());
    // The planes of neighbouring tokens follow each other.
    let (base, width) = (x.row(token, 0).as_ptr(), padding.width());
    debug_assert!(x.row(token + tokens - 1, D - 1).as_ptr() == base.wrapping_add((V - 1) * width));
    let mut totals = [[_mm512_setzero_ps(); P]; V];
    let mut first = 0;
    for group in 0..padding.groups() {
        let mut acc = [[_mm512_setzero_si512(); P]; V];
        for p in 0..P {
            let (_, zeros) = w.grid(panel + p, group);
            // SAFETY: 16 bytes.
            let zeros = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(zeros.as_ptr().cast()) });
            for (v, acc) in acc.iter_mut().enumerate() {
                let sum = _mm512_set1_epi32(x.sum(token + v / D, v % D, group).wrapping_neg());
                acc[p] = _mm512_mullo_epi32(zeros, sum);
            }
        }
        let end = first + padding.blocks(group);
        for block in first..end {
            // A step for each quad of the block, its number a constant: shifts by it are immediate ones.
            macro_rules! step {
                ($($q:literal)*) => {{$({
                    // SAFETY: a panel has this many lines for every block, and a plane four codes for every quad of it.
                    let (codes, at) = unsafe {
                        let here = |p: usize| lines[p].add(block * lines_of_block);
                        let codes: [__m512i; P] = std::array::from_fn(|p| quad::<BITS, $q>(here(p)));
                        (codes, base.add((block * quads + $q) * 4))
                    };
                    for v in 0..V {
                        // SAFETY: as above; there are `V` planes.
                        let four = _mm512_set1_epi32(unsafe { at.add(v * width).cast::<i32>().read_unaligned() });
                        for p in 0..P {
                            acc[v][p] = _mm512_dpbusd_epi32(acc[v][p], codes[p], four);
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
        for p in 0..P {
            let (scales, _) = w.grid(panel + p, group);
            // SAFETY: 16 floats of either width.
            let scales = unsafe {
                match scales {
                    Lane::Half(s) => _mm512_cvtph_ps(_mm256_loadu_si256(s.as_ptr().cast())),
                    Lane::Single(s) => _mm512_loadu_ps(s.as_ptr()),
                }
            };
            for t in 0..tokens {
                let mut value = _mm512_cvtepi32_ps(acc[t * D + D - 1][p]);
                for d in (0..D - 1).rev() {
                    let next = _mm512_cvtepi32_ps(acc[t * D + d][p]);
                    value = _mm512_fmadd_ps(value, _mm512_set1_ps(256.0), next);
                }
                totals[t][p] = _mm512_fmadd_ps(scales, value, totals[t][p]);
            }
        }
    }
    for t in 0..tokens {
        for p in 0..P {
            let out = &mut sums[(t * P + p) * LANES..][..LANES];
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), totals[t][p]) };
        }
    }
    tokens
}
