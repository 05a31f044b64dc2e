//! The loops of block-wise quantization beside the look-up of codes: the largest magnitude, and codes of 4 bits in bytes.

use crate::Isa;
use crate::isa::versions;

versions! {
    /// The largest magnitude; of nothing 0. Not finite where one of the values is not.
    pub fn abs_max(isa: Isa, x: &[f32]) -> f32 {
        // The bits of floats without sign are ordered as the floats are, with what is not finite above all.
        let mut lanes = [0u32; 32];
        let (whole, rest) = x.as_chunks::<32>();
        for x in whole {
            for i in 0..32 {
                lanes[i] = lanes[i].max(x[i].to_bits() & (u32::MAX >> 1));
            }
        }
        let most = rest.iter().fold(0, |m, v| m.max(v.to_bits() & (u32::MAX >> 1)));
        f32::from_bits(lanes.iter().fold(most, |a, b| a.max(*b)))
    }

    /// Two codes of 4 bits to a byte, the first in the high half; `last` follows an odd number of them.
    pub fn pack_nibbles(isa: Isa, codes: &[u8], last: u8, out: &mut [u8]) {
        let (pairs, rest) = codes.as_chunks::<2>();
        out.iter_mut().zip(pairs).for_each(|(o, [a, b])| *o = a << 4 | b & 15);
        if let (Some(o), Some(a)) = (out.get_mut(pairs.len()), rest.first()) {
            *o = a << 4 | last & 15;
        }
    }

    /// What [`pack_nibbles`] packed, over as many codes as there is room for.
    pub fn unpack_nibbles(isa: Isa, packed: &[u8], codes: &mut [u8]) {
        let (pairs, rest) = codes.as_chunks_mut::<2>();
        let last = pairs.len();
        pairs.iter_mut().zip(packed).for_each(|(c, p)| *c = [p >> 4, p & 15]);
        if let (Some(c), Some(p)) = (rest.first_mut(), packed.get(last)) {
            *c = p >> 4;
        }
    }
}
