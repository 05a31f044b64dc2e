//! Loops in registers for [`limits`](crate::limits): enough independent sums to hide the latency.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Independent sums of loops whose dependent chain is one addition, with an operand for each in a register.
const SUMS: usize = 10;
/// Sums of the loops whose chain is one addition: enough, with an operand for each in a register.
const BYTES: usize = 6;

#[target_feature(enable = "avx2,fma")]
pub(crate) fn f32(steps: u64) -> (u64, i32) {
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
    let mut sums = [_mm256_setzero_ps(); SUMS];
    for _ in 0..steps {
        for s in &mut sums {
            *s = _mm256_fmadd_ps(*s, a, b);
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_ps(), |t, s| _mm256_add_ps(t, s));
    (steps * (SUMS * 8) as u64, _mm256_cvtss_f32(total) as i32)
}

#[target_feature(enable = "avx2")]
pub(crate) fn bytes32(steps: u64) -> (u64, i32) {
    let (mut x, ones) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi16(black_box(1)));
    let w: [__m256i; BYTES] = std::array::from_fn(|k| _mm256_set1_epi8(black_box(k as i8)));
    let mut sums = [_mm256_setzero_si256(); BYTES];
    for _ in 0..steps {
        for (s, w) in sums.iter_mut().zip(w) {
            *s = _mm256_add_epi32(*s, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
        }
        // Another operand each time, so that products cannot be moved out of the loop.
        x = _mm256_add_epi8(x, ones);
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi32(t, s));
    (steps * (BYTES * 32) as u64, _mm256_cvtsi256_si32(total))
}

#[target_feature(enable = "avx2")]
pub(crate) fn bytes16(steps: u64) -> (u64, i32) {
    let (mut x, ones) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi16(black_box(1)));
    let w: [__m256i; BYTES] = std::array::from_fn(|k| _mm256_set1_epi8(black_box(k as i8)));
    let mut sums = [_mm256_setzero_si256(); BYTES];
    for _ in 0..steps {
        for (s, w) in sums.iter_mut().zip(w) {
            *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(w, x));
        }
        x = _mm256_add_epi8(x, ones);
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi16(t, s));
    (steps * (BYTES * 32) as u64, _mm256_cvtsi256_si32(total))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) fn vnni(steps: u64) -> (u64, i32) {
    let x = _mm512_set1_epi8(black_box(1));
    let w: [__m512i; SUMS] = std::array::from_fn(|k| _mm512_set1_epi8(black_box(k as i8)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..steps {
        for (s, w) in sums.iter_mut().zip(&w) {
            *s = _mm512_dpbusd_epi32(*s, *w, x);
        }
    }
    let total = sums.into_iter().fold(_mm512_setzero_si512(), |t, s| _mm512_add_epi32(t, s));
    (steps * (SUMS * 64) as u64, _mm512_cvtsi512_si32(total))
}
