//! Quantizers of activations.

use crate::context::fingerprint;
use crate::{Bits, ParamError};
use tersor_kernels::Isa;
use tersor_kernels::affine::{self, Affine};

/// Symmetric rounding of each token by its own largest magnitude: `s = max|x| / (2^(b-1) - 1)`,
/// `q = clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)`. A token of zeros stays zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActQuant {
    bits: Bits,
}

impl ActQuant {
    /// Dynamic per token at `bits` bits, 2 to 8.
    pub fn per_token(bits: u32) -> Result<Self, ParamError> {
        Ok(Self { bits: Bits::within(bits, 2, 8)? })
    }

    /// The width of the codes.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    pub(crate) fn key(&self) -> u128 {
        fingerprint(format!("act per-token {}", self.bits.get()).as_bytes())
    }

    /// Codes of one token, offset by `2^(b-1)`, and its scale. `codes` and `x` are equally long.
    pub fn encode(&self, isa: Isa, x: &[f32], codes: &mut [u8]) -> f32 {
        let half = 1u8 << (self.bits.get() - 1);
        let (lo, hi) = affine::min_max(isa, x);
        let max = hi.max(-lo);
        let scale = max / f32::from(half - 1);
        let scale = if scale >= f32::MIN_POSITIVE { scale } else { 1.0 };
        affine::quantize(isa, x, Affine { scale, zero: half }, 0..=self.bits.max_code(), codes);
        scale
    }

    /// Replaces each row of `cols` values by what its codes stand for; the codes, around 0, and a scale for each row.
    pub fn round_rows(&self, isa: Isa, x: &mut [f32], cols: usize) -> (Vec<i8>, Vec<f32>) {
        let mut codes = vec![0u8; cols];
        let zero = 1u8 << (self.bits.get() - 1);
        let (mut all, mut scales) = (Vec::with_capacity(x.len()), Vec::new());
        for row in x.chunks_mut(cols.max(1)) {
            let scale = self.encode(isa, row, &mut codes);
            affine::dequantize(isa, &codes, Affine { scale, zero }, row);
            all.extend(codes.iter().map(|c| c.wrapping_sub(zero) as i8));
            scales.push(scale);
        }
        (all, scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_survive_and_zeros_stay() {
        let act = ActQuant::per_token(8).unwrap();
        let mut x = [0.0, 0.0, -1.27, 0.50];
        act.round_rows(Isa::detect(), &mut x, 2);
        assert_eq!(x[..2], [0.0, 0.0]);
        assert!((x[2] + 1.27).abs() < 1e-6 && (x[3] - 0.5).abs() < 1e-6);
        assert!(ActQuant::per_token(1).is_err() && ActQuant::per_token(9).is_err());
    }
}
