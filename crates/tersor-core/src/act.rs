//! Quantizers of activations.

use crate::context::fingerprint;
use crate::{Bits, ParamError};
use tersor_kernels::Isa;
use tersor_kernels::integer;

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

    /// Codes and scales of rows of `cols` values.
    pub fn encode(&self, isa: Isa, x: &[f32], cols: usize) -> (Vec<i8>, Vec<f32>) {
        let rows = x.len() / cols.max(1);
        let (mut codes, mut scales) = (vec![0i8; rows * cols], vec![1f32; rows]);
        let most = (1u8 << (self.bits.get() - 1)) - 1;
        integer::quantize_rows(isa, x, cols, most as i8, &mut codes, &mut scales);
        (codes, scales)
    }

    /// What codes and scales stand for.
    pub fn decode(codes: &[i8], scales: &[f32], cols: usize) -> Vec<f32> {
        let rows = codes.chunks_exact(cols.max(1)).zip(scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |c| f32::from(*c) * scale)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_survive_and_zeros_stay() {
        let act = ActQuant::per_token(8).unwrap();
        let (codes, scales) = act.encode(Isa::detect(), &[0.0, 0.0, -1.27, 0.50], 2);
        let x = ActQuant::decode(&codes, &scales, 2);
        assert_eq!(x[..2], [0.0, 0.0]);
        assert!((x[2] + 1.27).abs() < 1e-6 && (x[3] - 0.5).abs() < 1e-6);
        assert!(ActQuant::per_token(1).is_err() && ActQuant::per_token(9).is_err());
    }
}
