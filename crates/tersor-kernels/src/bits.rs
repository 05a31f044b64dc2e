//! Dense little-endian bit packing of codes of 1 to 8 bits.
//!
//! Code `i` occupies the bits `i * bits ..` of the byte stream, lowest bit first. Read as u32 words
//! it is the layout that GPTQ (2, 3, 4, 8 bits) and compressed-tensors files use.

/// Bytes that `n` codes of `bits` bits take: `ceil(n * bits / 8)`, saturating.
pub const fn packed_len(n: usize, bits: u32) -> usize {
    // In two parts, so that no product overflows for any real length.
    (n / 8).saturating_mul(bits as usize).saturating_add(((n % 8) * bits as usize).div_ceil(8))
}

/// Packs `codes` (each below `2^bits`; higher bits are cut off) into `out`, whose length is
/// [`packed_len`]. Bits after the last code are zero. Stops where `out` ends.
pub fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    let bits = bits.clamp(1, 8);
    if bits == 8 {
        let n = codes.len().min(out.len());
        out[..n].copy_from_slice(&codes[..n]);
        return;
    }
    let mask = (1u64 << bits) - 1;
    // Eight codes fill exactly `bits` bytes.
    for (group, bytes) in codes.chunks(8).zip(out.chunks_mut(bits as usize)) {
        let mut word = 0u64;
        for (i, &c) in group.iter().enumerate() {
            word |= (u64::from(c) & mask) << (i as u32 * bits);
        }
        let word = word.to_le_bytes();
        bytes.copy_from_slice(&word[..bytes.len()]);
    }
}

/// Unpacks `out.len()` codes that begin at code number `first`. Codes past the end of `packed` are 0.
pub fn unpack(packed: &[u8], bits: u32, first: usize, out: &mut [u8]) {
    let bits = bits.clamp(1, 8);
    // Codes one by one up to a group of eight, then whole groups.
    let lead = (8 - first % 8) % 8;
    let lead = lead.min(out.len());
    let (head, body) = out.split_at_mut(lead);
    for (i, c) in head.iter_mut().enumerate() {
        *c = one(packed, bits, first + i);
    }
    let start = (first + lead) / 8 * bits as usize;
    let packed = packed.get(start..).unwrap_or(&[]);
    match bits {
        8 => {
            let n = body.len().min(packed.len());
            body[..n].copy_from_slice(&packed[..n]);
            body[n..].fill(0);
        }
        4 => {
            let mut bytes = packed.iter();
            for pair in body.chunks_mut(2) {
                let b = bytes.next().copied().unwrap_or(0);
                pair[0] = b & 15;
                if let Some(c) = pair.get_mut(1) {
                    *c = b >> 4;
                }
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            let mut bytes = packed.chunks(bits as usize);
            for group in body.chunks_mut(8) {
                let mut word = [0u8; 8];
                if let Some(b) = bytes.next() {
                    word[..b.len()].copy_from_slice(b);
                }
                let mut word = u64::from_le_bytes(word);
                for c in group {
                    *c = (word & mask) as u8;
                    word >>= bits;
                }
            }
        }
    }
}

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
            for n in 0..=130usize {
                let codes: Vec<u8> = (0..n).map(|i| ((i * 37 + 11) as u32 % (1 << bits)) as u8).collect();
                let mut packed = vec![0xffu8; packed_len(n, bits)];
                pack(&codes, bits, &mut packed);
                for first in (0..=n).step_by(7) {
                    let mut back = vec![0xaau8; n - first];
                    unpack(&packed, bits, first, &mut back);
                    assert_eq!(back, codes[first..], "bits {bits}, length {n}, first {first}");
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
}
