//! Sums with weights that are looked up in tables of 16 bytes by byte shuffles.

// As in the other products, loops over registers are written with indices, so that they are unrolled.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::integer::tables::{ROWS, TablePanels};

/// Returns the sums of four rows with `V` planes, four rows of 16 bytes to a register. Weights are offset by 128, and so are the sums.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI; planes have 32 codes for every block of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn vnni<const V: usize>(w: &TablePanels, quartet: usize, x: [&[i8]; V]) -> [[i32; ROWS]; V] {
    let mut acc = [_mm512_setzero_si512(); V];
    let low = _mm512_set1_epi8(15);
    for (group, blocks) in w.groups().enumerate() {
        // SAFETY: a line is 64 bytes at a multiple of 64.
        let table = unsafe { _mm512_load_si512(w.table(quartet, group).0.as_ptr().cast()) };
        for block in blocks {
            // SAFETY: as above.
            let line = unsafe { _mm512_load_si512(w.line(quartet, block).0.as_ptr().cast()) };
            let codes = [_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low)];
            for half in 0..2 {
                let weights = _mm512_shuffle_epi8(table, codes[half]);
                for v in 0..V {
                    debug_assert!(block * 32 + half * 16 + 16 <= x[v].len());
                    // SAFETY: 16 codes, for which the caller vouches.
                    let x = unsafe { _mm_loadu_si128(x[v].as_ptr().add(block * 32 + half * 16).cast()) };
                    acc[v] = _mm512_dpbusd_epi32(acc[v], weights, _mm512_broadcast_i32x4(x));
                }
            }
        }
    }
    let mut sums = [[0i32; ROWS]; V];
    for v in 0..V {
        let mut lanes = [0i32; 4 * ROWS];
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), acc[v]) };
        sums[v] = std::array::from_fn(|r| lanes[4 * r..4 * r + 4].iter().fold(0i32, |s, v| s.wrapping_add(*v)));
    }
    sums
}

/// Returns the sums of four rows with `V` planes, two rows of 16 bytes to a register, multiplied as 16-bit numbers.
///
/// # Safety
/// The processor has AVX2; planes have 32 codes for every block of `w`.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn avx2<const V: usize>(w: &TablePanels, quartet: usize, x: [&[i8]; V]) -> [[i32; ROWS]; V] {
    let mut acc = [[_mm256_setzero_si256(); 2]; V];
    let (low, bias) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128));
    // Bytes of even and of odd columns, each in 16 bits.
    let apart = |v: __m256i| [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v)), _mm256_srai_epi16::<8>(v)];
    for (group, blocks) in w.groups().enumerate() {
        let load = |line: &[u8; 64], half: usize| {
            debug_assert!(half < 2);
            // SAFETY: half of 64 bytes.
            unsafe { _mm256_loadu_si256(line.as_ptr().add(32 * half).cast()) }
        };
        let tables = [0, 1].map(|pair| _mm256_xor_si256(load(&w.table(quartet, group).0, pair), bias));
        for block in blocks {
            for pair in 0..2 {
                let line = load(&w.line(quartet, block).0, pair);
                let codes = [_mm256_and_si256(line, low), _mm256_and_si256(_mm256_srli_epi16::<4>(line), low)];
                for half in 0..2 {
                    let [even, odd] = apart(_mm256_shuffle_epi8(tables[pair], codes[half]));
                    for (v, x) in x.iter().enumerate() {
                        debug_assert!(block * 32 + half * 16 + 16 <= x.len());
                        // SAFETY: 16 codes, for which the caller vouches.
                        let x = unsafe { _mm_loadu_si128(x.as_ptr().add(block * 32 + half * 16).cast()) };
                        let [e, o] = apart(_mm256_broadcastsi128_si256(x));
                        let products = _mm256_add_epi32(_mm256_madd_epi16(even, e), _mm256_madd_epi16(odd, o));
                        acc[v][pair] = _mm256_add_epi32(acc[v][pair], products);
                    }
                }
            }
        }
    }
    let mut sums = [[0i32; ROWS]; V];
    for v in 0..V {
        let mut lanes = [0i32; 4 * ROWS];
        for pair in 0..2 {
            // SAFETY: eight of 16 numbers.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().add(8 * pair).cast(), acc[v][pair]) };
        }
        sums[v] = std::array::from_fn(|r| lanes[4 * r..4 * r + 4].iter().fold(0i32, |s, v| s.wrapping_add(*v)));
    }
    sums
}
