//! Rows of integers in parts, each part with its own number of bits, scale and minimum: the form of integer caches.

use crate::bits::{groups, packed_len};
use crate::convert::f16_value;
use crate::isa::versions;
use crate::{Fault, Isa, fault};

/// Returns the number of bytes of one row of a key-value cache that is stored as integers. A row is cut into parts, each of which is
/// quantized with its own bits, scale and minimum; `parts` has the number of values and the bits of a code for each part. A part of `n`
/// values with codes of `b` bits takes `ceil(n * b / 8) + 4` bytes: its codes, packed by [`bits::pack`](crate::bits::pack), then its scale,
/// then its minimum, each a little-endian f16.
///
/// Returns `usize::MAX` if the number does not fit in `usize`. The bits should be 1 to 8. The formula is used for other numbers as well,
/// but [`dequantize`] refuses them.
#[must_use]
pub fn row_bytes(parts: &[(usize, u32)]) -> usize {
    parts.iter().fold(0, |sum: usize, (n, b)| sum.saturating_add(packed_len(*n, *b).saturating_add(4)))
}

/// Dequantizes rows of a key-value cache that are stored as integers. `parts` has the number of values and the bits of a code for each part
/// of a row. `bytes` is `[tokens, row_bytes(parts)]`: a row has, for one part after the other, the packed codes, the scale and the minimum
/// (see [`row_bytes`]). `out` is `[tokens, dim]`, row-major, where `dim` is the sum of the numbers of values in `parts`. Each value of
/// `out` becomes `minimum + scale * code`, with the minimum and the scale of its part.
///
/// Fails with `Fault::Range` if the bits of a part are not 1 to 8. Fails with `Fault::Length` if `dim` is 0, if `out` is not a whole number
/// of rows, or if `bytes` does not have exactly as many rows as `out`. Fails with `Fault::Overflow` if a size does not fit in `usize`.
/// `out` is unchanged then.
pub fn dequantize(isa: Isa, bytes: &[u8], parts: &[(usize, u32)], out: &mut [f32]) -> Result<(), Fault> {
    let (stored, mut dim) = (row_bytes(parts), 0usize);
    for (n, b) in parts {
        fault::bits(*b, 8)?;
        dim = dim.checked_add(*n).ok_or(Fault::Overflow { what: "width of a cached row" })?;
    }
    fault::at_least("width of a cached row", 1, dim)?;
    let tokens = out.len() / dim;
    fault::matrix("dequantized rows", [tokens, dim], out.len())?;
    fault::matrix("bytes of cached rows", [tokens, stored], bytes.len())?;
    dequantize_rows(isa, bytes, stored, parts, dim, out);
    Ok(())
}

versions! {
    fn dequantize_rows(
        isa: Isa,
        bytes: &[u8],
        stored: usize,
        parts: &[(usize, u32)],
        dim: usize,
        out: &mut [f32],
    ) {
        for (mut row, mut bytes) in out.chunks_exact_mut(dim).zip(bytes.chunks_exact(stored)) {
            for &(n, bits) in parts {
                let (codes, rest) = bytes.split_at(packed_len(n, bits));
                let half = |i: usize| f16_value(u16::from_le_bytes([rest[i], rest[i + 1]]));
                let grid = [half(0), half(2)];
                let values;
                (values, row) = row.split_at_mut(n);
                bytes = &rest[4..];
                match bits {
                    1 => dequantize_part::<1>(codes, grid, values),
                    2 => dequantize_part::<2>(codes, grid, values),
                    3 => dequantize_part::<3>(codes, grid, values),
                    4 => dequantize_part::<4>(codes, grid, values),
                    5 => dequantize_part::<5>(codes, grid, values),
                    6 => dequantize_part::<6>(codes, grid, values),
                    7 => dequantize_part::<7>(codes, grid, values),
                    _ => scale(codes, grid, values),
                }
            }
        }
    }
}

/// Codes that are unpacked at once.
const CODES: usize = 64;

#[inline(always)]
fn dequantize_part<const BITS: u32>(packed: &[u8], grid: [f32; 2], out: &mut [f32]) {
    let mut codes = [0u8; CODES];
    let (whole, rest) = out.as_chunks_mut::<CODES>();
    // Sixty-four codes fill whole bytes.
    let (head, tail) = packed.split_at(whole.len() * CODES / 8 * BITS as usize);
    for (out, packed) in whole.iter_mut().zip(head.chunks_exact(CODES / 8 * BITS as usize)) {
        groups::<BITS>(packed, &mut codes);
        scale(&codes, grid, out);
    }
    groups::<BITS>(tail, &mut codes[..rest.len()]);
    scale(&codes[..rest.len()], grid, rest);
}

#[inline(always)]
fn scale(codes: &[u8], [scale, minimum]: [f32; 2], out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(v, c)| *v = minimum + scale * f32::from(*c));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{affine, bits};
    use half::f16;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_level_gives_the_definition(
            parts in prop::collection::vec((1usize..150, 1u32..=8), 1..4), tokens in 0usize..5, salt: u64
        ) {
            let mix = |i: usize| ((i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for row in 0..tokens {
                for (at, &(n, b)) in parts.iter().enumerate() {
                    let codes: Vec<u8> = (0..n).map(|i| (mix(i + 1000 * at + 5000 * row) & 0xff) as u8 >> (8 - b)).collect();
                    let start = bytes.len();
                    bytes.resize(start + packed_len(n, b), 0);
                    bits::pack(Isa::SCALAR, &codes, b, &mut bytes[start..]);
                    let grid = [0, 1].map(|i| f16::from_bits(mix(i + 77 * at + row) & 0xbbff));
                    bytes.extend(grid.iter().flat_map(|v| v.to_le_bytes()));
                    let mut values = vec![0f32; n];
                    affine::dequantize_with_offset(Isa::SCALAR, &codes, grid.map(f16::to_f32), &mut values);
                    expected.extend(values);
                }
            }
            prop_assert_eq!(bytes.len(), tokens * row_bytes(&parts));
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; expected.len()];
                dequantize(isa, &bytes, &parts, &mut out).unwrap();
                prop_assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
            }
        }
    }

    #[test]
    fn wrong_lengths_and_bits_are_refused() {
        let run = |bytes: usize, parts: &[(usize, u32)], out: usize| {
            let mut values = vec![5f32; out];
            let done = dequantize(Isa::SCALAR, &vec![0; bytes], parts, &mut values);
            assert!(done.is_ok() || values.iter().all(|v| *v == 5.0));
            done
        };
        assert_eq!(
            run(18, &[(8, 2), (4, 4)], 12),
            Err(Fault::Length { what: "bytes of cached rows", expected: 12, found: 18 })
        );
        assert_eq!(run(12, &[(8, 2), (4, 4)], 12), Ok(()));
        assert!(run(12, &[(8, 2), (4, 4)], 13).is_err() && run(0, &[], 0).is_err() && run(0, &[(0, 4)], 0).is_err());
        let bits = |found| Err(Fault::Range { what: "bits of a code", limit: 8, found });
        assert!(run(12, &[(8, 0)], 8) == bits(0) && run(12, &[(8, 9)], 8) == bits(9));
        assert!(run(8, &[(usize::MAX, 8), (2, 8)], 8).is_err());
    }
}
