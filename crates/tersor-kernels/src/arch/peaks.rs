//! Loops in registers for [`limits`](crate::limits): ten independent sums each.

use std::arch::x86_64::*;
use std::hint::black_box;

const SUMS: usize = 10;

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
    let (x, ones) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi16(black_box(1)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for i in 0..steps {
        let w = _mm256_set1_epi8(i as i8 & 7);
        for (k, s) in sums.iter_mut().enumerate() {
            // A different operand for each sum, or they would be one.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(k as i8));
            *s = _mm256_add_epi32(*s, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi32(t, s));
    (steps * (SUMS * 32) as u64, _mm256_cvtsi256_si32(total))
}

#[target_feature(enable = "avx2")]
pub(crate) fn bytes16(steps: u64) -> (u64, i32) {
    let x = _mm256_set1_epi8(black_box(1));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    let w: [__m256i; SUMS] = std::array::from_fn(|k| _mm256_set1_epi8(black_box(k as i8)));
    for _ in 0..steps {
        for (s, w) in sums.iter_mut().zip(&w) {
            // The sum is an operand, so that no product is computed once for all rounds.
            *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(_mm256_xor_si256(*w, *s), x));
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi16(t, s));
    (steps * (SUMS * 32) as u64, _mm256_cvtsi256_si32(total))
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
