//! Loops of block-wise quantization (arXiv 2110.02861) beside the nearest-value search of [`codebook`](crate::codebook): absolute maxima,
//! and codes of 4 bits, two to a byte.
//!
//! ```
//! use tersor_kernels::{Isa, blockwise};
//! let isa = Isa::detect();
//! assert_eq!(blockwise::abs_max(isa, &[1.0, -3.0, 2.0]), 3.0);
//! let mut packed = [0u8; 2];
//! blockwise::pack_nibbles(isa, &[1, 2, 3], 0, &mut packed);
//! assert_eq!(packed, [0x12, 0x30]);
//! ```

use crate::Isa;
use crate::isa::versions;

/// Returns the largest absolute value of `x`: 0 for an empty slice, NaN if a value is NaN, and otherwise infinity if a value is infinite.
#[must_use]
pub fn abs_max(isa: Isa, x: &[f32]) -> f32 {
    // The bits of floats without sign are ordered as the floats are, with what is not finite above all.
    let of = |m: u32, v: &f32| m.max(v.to_bits() & (u32::MAX >> 1));
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        if isa.has_avx512_vnni() {
            let (whole, rest) = x.as_chunks::<64>();
            // SAFETY: `isa` proves the instructions.
            let max = unsafe { crate::arch::shuffle::abs_max(whole) };
            return f32::from_bits(rest.iter().fold(max, of));
        }
        let (whole, rest) = x.as_chunks::<32>();
        // SAFETY: `isa` proves the instructions.
        let max = unsafe { crate::arch::blockwise::abs_max(whole) };
        return f32::from_bits(rest.iter().fold(max, of));
    }
    let _ = isa;
    f32::from_bits(x.iter().fold(0, of))
}

/// Prefetches the memory of `x` into the caches of the processor if the level `isa` has such an instruction (AVX2 and above); otherwise
/// does nothing. Only the time of later reads changes.
pub fn fetch<T>(isa: Isa, x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        crate::arch::blockwise::fetch(x);
    }
    let _ = (isa, x);
}

/// Replaces each code in place by its entry in a table: `codes[i] = labels[codes[i]]`. `few` promises that every code is below 16, so that
/// a faster loop can be used. If `few` is set, a code of 16 or more gets an unspecified label; nothing panics.
pub fn relabel(isa: Isa, labels: &[u8; 256], few: bool, codes: &mut [u8]) {
    let mut rest = codes;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() && few {
        let (whole, last) = rest.as_chunks_mut::<32>();
        // SAFETY: `isa` proves the instructions.
        unsafe { crate::arch::blockwise::relabel(&std::array::from_fn(|i| labels[i]), whole) };
        rest = last;
    }
    let _ = (isa, few);
    rest.iter_mut().for_each(|c| *c = labels[usize::from(*c)]);
}

versions! {
    /// Packs 4-bit codes, given one a byte, two to a byte of `out`: code `2 i` into the high half of byte `i`, code `2 i + 1` into its low
    /// half. If the number of codes is odd, the low half of the last byte becomes `last`. Only the lowest four bits of a code count.
    /// Packing stops where `codes` or `out` ends; later bytes of `out` are unchanged.
    pub fn pack_nibbles(isa: Isa, codes: &[u8], last: u8, out: &mut [u8]) {
        let (pairs, rest) = codes.as_chunks::<2>();
        out.iter_mut().zip(pairs).for_each(|(o, [a, b])| *o = a << 4 | b & 15);
        if let (Some(o), Some(a)) = (out.get_mut(pairs.len()), rest.first()) {
            *o = a << 4 | last & 15;
        }
    }
}

/// Dequantizes 4-bit codes that are packed two to a byte, code `2 i` in the high half of byte `i`: writes
/// `out[i] = values[c] * scales[i / block]`, where `c` is the code at index `first + i` of `packed`, counted in codes from 0. `block` is
/// the number of elements of `out` that share a scale; 0 counts as 1. Elements of `out` for which there is no code or no scale are
/// unchanged.
pub fn look_up_nibbles(
    isa: Isa,
    values: &[f32; 16],
    packed: &[u8],
    first: usize,
    scales: &[f32],
    block: usize,
    out: &mut [f32],
) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() && first.is_multiple_of(2) {
        let (bytes, _) = packed.get(first / 2..).unwrap_or_default().as_chunks::<16>();
        let (whole, _) = out.as_chunks_mut::<32>();
        let n = whole.len().min(bytes.len());
        // Blocks of whole 32s, or one that has all of them.
        let chunks = if block.is_multiple_of(32) { block / 32 } else { n };
        if chunks > 0 && (block.is_multiple_of(32) || 32 * n <= block) {
            let (bytes, whole) = (&bytes[..n], &mut whole[..n]);
            // SAFETY: `isa` proves the instructions.
            unsafe {
                match isa.has_avx512_vnni() {
                    true => crate::arch::shuffle::look_up_nibbles(values, bytes, scales, chunks, whole),
                    false => crate::arch::blockwise::look_up_nibbles(values, bytes, scales, chunks, whole),
                }
            }
            done = 32 * n;
        }
    }
    let _ = isa;
    for (i, o) in out.iter_mut().enumerate().skip(done) {
        let (at, scale) = (first.saturating_add(i), scales.get(i / block.max(1)));
        if let (Some(byte), Some(scale)) = (packed.get(at / 2), scale) {
            *o = values[usize::from(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 })] * scale;
        }
    }
}

/// Copies as many values from `from` to `to` as the shorter of the two has; later elements of `to` are unchanged. With AVX-512 the stores
/// bypass the caches, which is faster for outputs that do not fit into them.
pub fn copy_past_caches(isa: Isa, from: &[f32], to: &mut [f32]) {
    let n = from.len().min(to.len());
    let (from, to) = (&from[..n], &mut to[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_vnni() {
        // SAFETY: `isa` proves the instructions.
        return unsafe { crate::arch::shuffle::copy_past_caches(from, to) };
    }
    let _ = isa;
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vector_equals_scalar(
            x in prop::collection::vec(-1e3f32..1e3, 0..200), codes in prop::collection::vec(0u8..16, 0..200), first in 0usize..3
        ) {
            let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            let labels: [u8; 256] = std::array::from_fn(|i| ((i * 7 + 3) % 16) as u8);
            let values: [f32; 16] = std::array::from_fn(|i| i as f32 * 0.37 - 2.0);
            for isa in Isa::available() {
                fetch(isa, &x);
                prop_assert_eq!(abs_max(isa, &x), max);
                for few in [false, true] {
                    let mut again = codes.clone();
                    relabel(isa, &labels, few, &mut again);
                    prop_assert!(again.iter().zip(&codes).all(|(a, c)| *a == labels[usize::from(*c)]));
                }
                let mut packed = vec![0u8; codes.len().div_ceil(2)];
                pack_nibbles(isa, &codes, 9, &mut packed);
                let nibble = |i: usize| codes.get(i).copied().unwrap_or(9);
                prop_assert!(packed.iter().enumerate().all(|(i, b)| *b == nibble(2 * i) << 4 | nibble(2 * i + 1)));
                for block in [1, 32, 64, 5, 1000] {
                    let mut out = vec![0f32; codes.len().saturating_sub(first)];
                    let scales: Vec<f32> = (0..out.len()).map(|i| 0.3 + i as f32).collect();
                    look_up_nibbles(isa, &values, &packed, first, &scales, block, &mut out);
                    let value = |i: usize| values[usize::from(codes[first + i])] * scales[i / block];
                    prop_assert!(out.iter().enumerate().all(|(i, o)| o.to_bits() == value(i).to_bits()));
                }
                for from in 0..x.len().min(20) {
                    let mut to = vec![0f32; x.len()];
                    copy_past_caches(isa, &x[from..], &mut to[from..]);
                    prop_assert!(to[..from].iter().all(|v| *v == 0.0) && to[from..] == x[from..]);
                    // Over the shorter of the two, whichever that is.
                    let mut longer = vec![0f32; x.len() + from];
                    copy_past_caches(isa, &x, &mut longer);
                    prop_assert!(longer[..x.len()] == x && longer[x.len()..].iter().all(|v| *v == 0.0));
                    let mut shorter = vec![0f32; x.len() - from];
                    copy_past_caches(isa, &x, &mut shorter);
                    prop_assert!(shorter == x[..x.len() - from]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 31, 32, 69] {
                let mut x = [f32::MAX; 70];
                x[at] = bad;
                assert!(Isa::available().into_iter().all(|isa| !abs_max(isa, &x).is_finite()));
            }
        }
        assert_eq!(abs_max(Isa::detect(), &[]), 0.0);
    }

    #[test]
    fn codes_past_the_last_are_left_out() {
        let mut out = [9f32; 3];
        look_up_nibbles(Isa::SCALAR, &[1.0; 16], &[0x11], usize::MAX - 1, &[1.0], 8, &mut out);
        assert_eq!(out, [9.0; 3]);
    }
}
