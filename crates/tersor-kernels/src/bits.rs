//! Dense little-endian packing of codes of 1 to 8 bits.
//!
//! Code `i` occupies bits `i * bits` to `(i + 1) * bits - 1` of the byte stream, lowest bit first. Read as u32 words this is the layout of
//! GPTQ files (2, 3, 4 and 8 bits) and of compressed-tensors files.
//!
//! ```
//! use tersor_kernels::{Isa, bits};
//! let mut packed = [0u8; bits::packed_len(3, 3)];
//! bits::pack(Isa::detect(), &[1, 2, 3], 3, &mut packed);
//! assert_eq!(packed, [0b11_010_001, 0b0]);
//! let mut codes = [0u8; 2];
//! bits::unpack(Isa::detect(), &packed, 3, 1, &mut codes);
//! assert_eq!(codes, [2, 3]);
//! ```

use crate::Isa;
use crate::isa::versions;

/// Returns the number of bytes of `n` packed codes of `bits` bits each, `ceil(n * bits / 8)`, or `usize::MAX` if that does not fit. `bits`
/// should be 1 to 8; it is not limited here.
#[must_use]
pub const fn packed_len(n: usize, bits: u32) -> usize {
    // In two parts, so that no product overflows for any real length.
    (n / 8).saturating_mul(bits as usize).saturating_add(((n % 8) * bits as usize).div_ceil(8))
}

/// Packs `codes`, given one a byte, to `bits` bits each without gaps: code `i` occupies bits `i * bits` to `(i + 1) * bits - 1` of `out`,
/// where bit 0 is the lowest bit of the first byte. Only the lowest `bits` bits of a code are stored. `bits` should be 1 to 8: 0 counts as
/// 1, and more than 8 counts as `8`.
///
/// `out` should be [`packed_len`] bytes long. A shorter `out` takes the first bytes of the result; of a longer one the bytes after the
/// result are unchanged. Unused bits of the last byte of the result are zero.
pub fn pack(isa: Isa, codes: &[u8], bits: u32, out: &mut [u8]) {
    let bits = bits.clamp(1, 8);
    #[cfg(target_arch = "x86_64")]
    if matches!(bits, 2 | 4) && isa.has_avx2() {
        // SAFETY: `isa` proves the instructions.
        let done = unsafe {
            if bits == 4 { crate::arch::avx2::pack4(codes, out) } else { crate::arch::avx2::pack2(codes, out) }
        };
        return pack_words(&codes[done..], bits, &mut out[done / (8 / bits as usize)..]);
    }
    let _ = isa;
    pack_words(codes, bits, out);
}

/// Packs codes eight at a time, in plain Rust.
fn pack_words(codes: &[u8], bits: u32, out: &mut [u8]) {
    if bits == 8 {
        let n = codes.len().min(out.len());
        out[..n].copy_from_slice(&codes[..n]);
        return;
    }
    let width = bits as usize;
    // Eight codes fill exactly `bits` bytes.
    let (whole, rest) = codes.as_chunks::<8>();
    let mut places = out.chunks_exact_mut(width);
    match bits {
        4 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<4>(c)[..4])),
        2 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<2>(c)[..2])),
        3 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<3>(c)[..3])),
        1 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<1>(c)[..1])),
        5 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<5>(c)[..5])),
        6 => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<6>(c)[..6])),
        _ => whole.iter().zip(&mut places).for_each(|(c, b)| b.copy_from_slice(&join::<7>(c)[..7])),
    }
    // The codes that do not fill a group, or a group that the output cuts.
    let done = (codes.len() / 8).min(out.len() / width);
    let rest = if done == codes.len() / 8 { rest } else { &codes[done * 8..][..8] };
    let mut last = [0u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = match bits {
        1 => join::<1>(&last),
        2 => join::<2>(&last),
        3 => join::<3>(&last),
        4 => join::<4>(&last),
        5 => join::<5>(&last),
        6 => join::<6>(&last),
        _ => join::<7>(&last),
    };
    let out = &mut out[done * width..];
    let n = out.len().min((rest.len() * width).div_ceil(8));
    out[..n].copy_from_slice(&last[..n]);
}

/// Joins eight codes of `BITS` bits, one a byte, to `BITS` bytes: neighbouring codes, then pairs, then fours are joined.
#[inline]
fn join<const BITS: u32>(codes: &[u8; 8]) -> [u8; 8] {
    let mut w = u64::from_le_bytes(*codes) & low_bits(BITS, 8);
    for [bits, step] in [[BITS, 8], [2 * BITS, 16], [4 * BITS, 32]] {
        let low = low_bits(bits, 2 * step);
        w = (w & low) | (w >> (step - bits) & low << bits);
    }
    w.to_le_bytes()
}

/// Splits `BITS` bytes into eight codes of `BITS` bits, one a byte: the inverse of [`join`].
#[inline(always)]
fn split<const BITS: u32>(bytes: [u8; 8]) -> [u8; 8] {
    let mut w = u64::from_le_bytes(bytes);
    for [bits, step] in [[4 * BITS, 32], [2 * BITS, 16], [BITS, 8]] {
        let low = low_bits(bits, 2 * step);
        w = (w & low) | (w & low << bits) << (step - bits);
    }
    w.to_le_bytes()
}

/// Returns a mask of the lowest `bits` of every `step` bits of a word.
const fn low_bits(bits: u32, step: u32) -> u64 {
    let (mut word, mut at) = (0u64, 0);
    while at < 64 {
        word |= ((1u64 << bits) - 1) << at;
        at += step;
    }
    word
}

/// Unpacks `out.len()` codes of `bits` bits from `packed` and writes them to `out`, one a byte: `out[i]` is code number `first + i` of
/// `packed`, counted from 0. Code `c` occupies bits `c * bits` to `(c + 1) * bits - 1` of `packed`, where bit 0 is the lowest bit of the
/// first byte, as [`pack`] writes them. Bits past the end of `packed` count as 0. `bits` should be 1 to 8: 0 counts as 1, and more than 8
/// counts as `8`.
pub fn unpack(isa: Isa, packed: &[u8], bits: u32, first: usize, out: &mut [u8]) {
    let bits = bits.clamp(1, 8);
    // There are at most eight codes in a byte.
    if first > packed.len().saturating_mul(8) {
        out.fill(0);
        return;
    }
    // Codes one by one up to a group of eight, then whole groups.
    let lead = (8 - first % 8) % 8;
    let lead = lead.min(out.len());
    let (head, body) = out.split_at_mut(lead);
    for (i, c) in head.iter_mut().enumerate() {
        *c = one(packed, bits, first + i);
    }
    let start = (first + lead) / 8 * bits as usize;
    let packed = packed.get(start..).unwrap_or(&[]);
    // Groups of 3, 5, 6 or 7 bytes are gathered faster into registers of 256 bits.
    let isa = if bits.is_power_of_two() { isa } else { isa.capped_at_avx2() };
    unpack_groups(isa, packed, bits, body);
}

versions! {
    /// Unpacks codes from bytes that begin with a whole group of eight codes.
    fn unpack_groups(isa: Isa, packed: &[u8], bits: u32, out: &mut [u8]) {
        match bits {
            8 => {
                let n = out.len().min(packed.len());
                out[..n].copy_from_slice(&packed[..n]);
                out[n..].fill(0);
            }
            1 => groups::<1>(packed, out),
            2 => groups::<2>(packed, out),
            3 => groups::<3>(packed, out),
            4 => groups::<4>(packed, out),
            5 => groups::<5>(packed, out),
            6 => groups::<6>(packed, out),
            _ => groups::<7>(packed, out),
        }
    }
}

/// Unpacks codes of `BITS` bits from bytes that begin with a whole group of eight codes; codes past the end are 0.
#[inline(always)]
pub(crate) fn groups<const BITS: u32>(packed: &[u8], out: &mut [u8]) {
    let width = BITS as usize;
    let (whole, rest) = out.as_chunks_mut::<8>();
    let full = whole.len().min(packed.len() / width);
    for (codes, bytes) in whole[..full].iter_mut().zip(packed.chunks_exact(width)) {
        let mut word = [0u8; 8];
        word[..width].copy_from_slice(bytes);
        *codes = split::<BITS>(word);
    }
    // Past the end there are zeros.
    let mut bytes = packed[full * width..].iter();
    for codes in whole[full..].iter_mut().map(|c| &mut c[..]).chain([rest]) {
        let mut word = [0u8; 8];
        word.iter_mut().take(width).zip(&mut bytes).for_each(|(w, b)| *w = *b);
        codes.copy_from_slice(&split::<BITS>(word)[..codes.len()]);
    }
}

/// Returns code number `index`; 0 past the end.
fn one(packed: &[u8], bits: u32, index: usize) -> u8 {
    let at = index / 8 * bits as usize;
    let mut word = [0u8; 8];
    let bytes = packed.get(at..).unwrap_or(&[]);
    let n = bytes.len().min(bits as usize);
    word[..n].copy_from_slice(&bytes[..n]);
    ((u64::from_le_bytes(word) >> ((index % 8) as u32 * bits)) & ((1u64 << bits) - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_length_and_start_comes_back() {
        for bits in 1..=8u32 {
            for n in (0..=330usize).step_by(if cfg!(miri) { 55 } else { 1 }) {
                let codes: Vec<u8> = (0..n).map(|i| ((i * 37 + 11) as u32 % (1 << bits)) as u8).collect();
                let mut packed = vec![0xffu8; packed_len(n, bits)];
                pack(Isa::SCALAR, &codes, bits, &mut packed);
                for isa in Isa::available() {
                    let mut again = vec![0xffu8; packed.len()];
                    pack(isa, &codes, bits, &mut again);
                    assert_eq!(again, packed, "{}", isa.name());
                    for first in (0..=n).step_by(if cfg!(miri) { 91 } else { 7 }) {
                        let mut back = vec![0xaau8; n - first];
                        unpack(isa, &packed, bits, first, &mut back);
                        assert_eq!(back, codes[first..], "{}, bits {bits}, length {n}, first {first}", isa.name());
                    }
                    // Past the end there are zeros.
                    let mut back = vec![0xaau8; n + 20];
                    unpack(isa, &packed, bits, 0, &mut back);
                    assert!(back[..n] == codes && back[n..].iter().all(|c| *c == 0));
                }
                // Against the definition, bit by bit.
                for (i, &c) in codes.iter().enumerate() {
                    for b in 0..bits as usize {
                        let at = i * bits as usize + b;
                        assert_eq!(packed[at / 8] >> (at % 8) & 1, c >> b & 1);
                    }
                }
                let used = n * bits as usize;
                if !used.is_multiple_of(8) {
                    assert_eq!(packed[used / 8] >> (used % 8), 0, "spare bits are zero");
                }
            }
        }
    }

    #[test]
    fn codes_far_past_the_end_are_zero() {
        for bits in 1..=8 {
            for first in [17, usize::MAX / 8, usize::MAX - 3, usize::MAX] {
                let mut out = [9u8; 21];
                unpack(Isa::detect(), &[0xff; 2], bits, first, &mut out);
                assert_eq!(out, [0; 21], "{bits} bits from {first}");
            }
        }
    }
}
