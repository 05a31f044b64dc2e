//! Sums of table look-ups by byte shuffles.

use std::arch::x86_64::*;

use crate::integer::Line;
use crate::lookup::{ROWS, SPAN};

/// Returns the sums of the table entries that the codes of 64 rows select; high bytes count 256 times.
#[target_feature(enable = "avx2")]
pub(crate) fn avx2(tables: &[[[[u8; 16]; 2]; 2]], lines: &[Line]) -> [i32; ROWS] {
    let mut sums = [0i32; ROWS];
    let low = _mm256_set1_epi8(15);
    // A line holds two blocks.
    for (tables, lines) in tables.chunks(SPAN / 2).zip(lines.chunks(SPAN / 2)) {
        for half in 0..2 {
            // Sums of odd rows, and of pairs of rows modulo 2^16; sums of even rows are the difference.
            let (mut all, mut odd) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_si256(); 2]);
            for (tables, line) in tables.iter().zip(lines) {
                // SAFETY: half of 64 bytes.
                let line = unsafe { _mm256_loadu_si256(line.0.as_ptr().add(32 * half).cast()) };
                let codes = [_mm256_and_si256(line, low), _mm256_and_si256(_mm256_srli_epi16::<4>(line), low)];
                for block in 0..2 {
                    for part in 0..2 {
                        // SAFETY: 16 bytes.
                        let table = unsafe { _mm_loadu_si128(tables[block][part].as_ptr().cast()) };
                        let found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes[block]);
                        all[part] = _mm256_add_epi16(all[part], found);
                        odd[part] = _mm256_add_epi16(odd[part], _mm256_srli_epi16::<8>(found));
                    }
                }
            }
            for part in 0..2 {
                let even = _mm256_sub_epi16(all[part], _mm256_slli_epi16::<8>(odd[part]));
                let (mut evens, mut odds) = ([0u16; 16], [0u16; 16]);
                // SAFETY: 32 bytes each.
                unsafe {
                    _mm256_storeu_si256(evens.as_mut_ptr().cast(), even);
                    _mm256_storeu_si256(odds.as_mut_ptr().cast(), odd[part]);
                }
                for (i, sum) in sums[32 * half..32 * half + 32].iter_mut().enumerate() {
                    let found = if i % 2 == 0 { evens[i / 2] } else { odds[i / 2] };
                    *sum = sum.wrapping_add(i32::from(found) << (8 * part));
                }
            }
        }
    }
    sums
}
