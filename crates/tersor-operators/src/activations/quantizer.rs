//! [`ActQuant`]: quantizers of activations.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tersor_core::context::fingerprint;
use tersor_core::{Bits, Error, Isa, ParamError, Result, check_finite, power_of_two_above};
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::integer;

/// A quantizer of activations `x`, `[tokens, features]`, to codes `q` of `b` bits, 2 to 8. Unless its constructor says otherwise it is
/// symmetric: `q = clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)`, with ties to even. The scale `s` is given to the constructor (a static
/// quantizer) or computed from the input at run time (a dynamic one): `s = max|x| / (2^(b-1) - 1)` over the values that share it, or 1 if
/// that is below the smallest normal f32. Zeros stay exactly zero.
///
/// ```
/// use tersor_operators::{ActQuant, Isa};
/// # fn main() -> tersor_operators::Result<()> {
/// let act = ActQuant::per_token(8)?;
/// let (codes, scales) = act.encode(Isa::detect(), &[1.0, -0.5, 0.0, 254.0], 2)?;
/// assert_eq!(codes, [127, -64, 0, 127]);
/// assert_eq!(ActQuant::decode(&codes, &scales, &[], 2)[2..], [0.0, 254.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct ActQuant {
    bits: Bits,
    granularity: Granularity,
    /// Key of the quantizer's results in a cache; see [`ActQuant::key`].
    key: u128,
}

/// Which values share a scale.
#[derive(Clone, PartialEq, Debug)]
enum Granularity {
    /// Values of a token.
    Token,
    /// All values of a batch.
    Tensor,
    /// All values, with this static scale.
    Fixed(f32),
    /// Values of a feature, with a static scale each.
    Channels(Arc<[f32]>),
    /// This number of features of a token, with a power of two as scale (MXINT).
    Blocks(usize),
    /// Values of one of this number of spans of a token, with a scale and a zero point.
    Asymmetric(usize),
}

/// Quantized activations.
pub(crate) enum Encoded {
    /// Integer codes with one scale for each token, for the integer kernels.
    Codes(Codes),
    /// Dequantized values, `[tokens, features]`, where scales differ inside a token.
    Values(Vec<f32>),
}

/// Activations as integers: `x[t, k] = scales[t] * codes[t, k] + offsets[t]`.
pub(crate) struct Codes {
    /// Signed codes of the quantized activations, `[tokens, features]` row-major. An activation is its code times the scale of its token,
    /// plus the offset of its token.
    pub codes: Vec<i8>,
    /// Scale of each token, `[tokens]`, by which the token's codes are multiplied.
    pub scales: Vec<f32>,
    /// Offset of each token, `[tokens]`, which is added to each of the token's scaled codes. Empty if all offsets are 0, as those of
    /// symmetric quantizers are.
    pub offsets: Vec<f32>,
}

impl ActQuant {
    /// Returns the quantizer. Errors unless `bits` is 2 to 8.
    fn new(bits: u32, granularity: Granularity) -> Result<Self, ParamError> {
        let made = Self { bits: Bits::within(bits, 2, 8)?, granularity, key: 0 };
        Ok(Self { key: made.fingerprint(), ..made })
    }

    /// Returns a symmetric quantizer to `bits` bits with one scale for each token, computed from the token's values at run time. Errors
    /// unless `bits` is 2 to 8.
    pub fn per_token(bits: u32) -> Result<Self, ParamError> {
        Self::new(bits, Granularity::Token)
    }

    /// Returns a symmetric quantizer to `bits` bits with one scale for a whole input, `[tokens, features]`, computed from its values at run
    /// time. The result of a token therefore depends on the other tokens of the input. Errors unless `bits` is 2 to 8.
    pub fn per_tensor(bits: u32) -> Result<Self, ParamError> {
        Self::new(bits, Granularity::Tensor)
    }

    /// Returns a symmetric quantizer to `bits` bits with the given scale, the distance of the values of neighbouring codes, for all
    /// activations. Errors unless `bits` is 2 to 8 and `scale` is positive and finite.
    pub fn fixed(bits: u32, scale: f32) -> Result<Self, ParamError> {
        if !scale.is_finite() || scale <= 0.0 {
            return Err(ParamError::new("scale", scale, "must be positive and finite"));
        }
        Self::new(bits, Granularity::Fixed(scale))
    }

    /// Returns a symmetric quantizer to `bits` bits with a given scale for each feature: `scales` is `[features]`. Errors unless `bits` is
    /// 2 to 8 and all scales are positive and finite. [`QuantizedInputs::new`](crate::QuantizedInputs::new) errors later if an operator has
    /// another number of input features.
    pub fn channels(bits: u32, scales: Vec<f32>) -> Result<Self, ParamError> {
        if let Some(s) = scales.iter().find(|s| !s.is_finite() || **s <= 0.0) {
            return Err(ParamError::new("scale", *s, "must be positive and finite"));
        }
        Self::new(bits, Granularity::Channels(scales.into()))
    }

    /// Returns the MXINT quantizer (arXiv 2402.02446, section 3.1), whose scales are computed at run time. Each `block` neighbouring
    /// features of a token share the scale `2^ceil(log2 max|x|) / 2^(bits-1)`, a power of two; the last block of a token may be shorter.
    /// Codes are limited to `2^(bits-1) - 1` in magnitude. A block whose largest magnitude is below `2^(bits-1)` times the smallest normal
    /// f32 becomes zeros. Errors unless `bits` is 2 to 8 and `block` at least 1.
    pub fn mxint(bits: u32, block: usize) -> Result<Self, ParamError> {
        if block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1"));
        }
        Self::new(bits, Granularity::Blocks(block))
    }

    /// Returns an asymmetric quantizer (ResQ, arXiv 2412.14363, section 4.1), whose scales are computed at run time. The features of a
    /// token are cut into `spans` runs of equal length: 1 for the whole token, or one run for each head, for example. Each run has its own
    /// scale `s = (max - min) / (2^bits - 1)` and its own zero point `round(-min / s)`. `max` is the largest value of the run, but at least
    /// 0; `min` is the smallest value, but at most 0. An `s` below the smallest normal f32, as of a run of zeros, is replaced by 1. Codes
    /// are `clamp(round(x / s) + round(-min / s), 0, 2^bits - 1)`. Errors unless `bits` is 2 to 8 and `spans` at least 1.
    /// [`QuantizedInputs::new`](crate::QuantizedInputs::new) errors later if `spans` does not divide the number of features.
    pub fn asymmetric(bits: u32, spans: usize) -> Result<Self, ParamError> {
        if spans == 0 {
            return Err(ParamError::new("spans", spans, "must be at least 1"));
        }
        Self::new(bits, Granularity::Asymmetric(spans))
    }

    /// Returns the number of bits of a code, 2 to 8.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Returns which activations share a scale, as the name that an [`OpSpec`](tersor_core::OpSpec) has for it: `token` (those of one
    /// token), `tensor` (all of one input), `fixed` (all, with a given scale), `channels` (those of one feature, with given scales),
    /// `mxint` (a block of neighbouring features of one token) or `asymmetric` (one of several equal runs of features of a token, with a
    /// zero point). Scales that are not given are computed at run time.
    pub fn granularity(&self) -> &'static str {
        match self.granularity {
            Granularity::Token => "token",
            Granularity::Tensor => "tensor",
            Granularity::Fixed(_) => "fixed",
            Granularity::Channels(_) => "channels",
            Granularity::Blocks(_) => "mxint",
            Granularity::Asymmetric(_) => "asymmetric",
        }
    }

    /// Returns the scales that were given to the constructor: one for [`ActQuant::fixed`], one for each feature for [`ActQuant::channels`],
    /// and none for quantizers that compute scales at run time.
    pub fn scales(&self) -> &[f32] {
        match &self.granularity {
            Granularity::Fixed(s) => std::slice::from_ref(s),
            Granularity::Channels(s) => s,
            _ => &[],
        }
    }

    /// Returns the number of neighbouring features of a token that share a scale in a quantizer made by [`ActQuant::mxint`]; `None` for
    /// other quantizers.
    pub fn block(&self) -> Option<usize> {
        if let Granularity::Blocks(n) = self.granularity { Some(n) } else { None }
    }

    /// Returns the number of equal runs of features that a token is cut into, each with its own scale and zero point, in a quantizer made
    /// by [`ActQuant::asymmetric`]; `None` for other quantizers.
    pub fn spans(&self) -> Option<usize> {
        if let Granularity::Asymmetric(n) = self.granularity { Some(n) } else { None }
    }

    /// Returns the key under which an input caches its quantized form: a fingerprint of all parameters.
    pub(crate) fn key(&self) -> u128 {
        self.key
    }

    /// Returns the fingerprint of all parameters.
    fn fingerprint(&self) -> u128 {
        let scales: Vec<u8> = self.scales().iter().flat_map(|s| s.to_le_bytes()).collect();
        let name = format!("act {} {} {:?} {:?} ", self.granularity(), self.bits.get(), self.block(), self.spans());
        fingerprint(&[name.as_bytes(), &scales].concat())
    }

    /// Errors if the quantizer cannot take inputs with `features` features.
    pub(crate) fn check(&self, features: usize) -> Result<()> {
        match &self.granularity {
            Granularity::Channels(s) if s.len() != features => {
                Err(Error::shape("scales of activations", features, s.len()))
            }
            Granularity::Asymmetric(spans) if !features.is_multiple_of(*spans) => {
                Err(Error::shape("features of activations", format!("a multiple of {spans}"), features))
            }
            _ => Ok(()),
        }
    }

    /// Returns the largest symmetric code, `2^(b-1) - 1`.
    fn max_code(&self) -> i8 {
        ((1u8 << (self.bits.get() - 1)) - 1) as i8
    }

    /// Quantizes `x`, rows of `cols` values; [`ActQuant::check`] must have accepted `cols`. Errors if a value is not finite, naming its row and
    /// column.
    pub(crate) fn apply(&self, isa: Isa, x: &[f32], cols: usize) -> Result<Encoded> {
        let (cols, max) = (cols.max(1), self.max_code() as u8);
        // The loop that finds the scales of tokens checks this itself.
        if self.granularity != Granularity::Token {
            check_finite(x, cols, 0)?;
        }
        Ok(match &self.granularity {
            Granularity::Token => {
                let (codes, scales) = self.encode(isa, x, cols)?;
                Encoded::Codes(Codes { codes, scales, offsets: Vec::new() })
            }
            Granularity::Tensor => {
                let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / f32::from(max);
                self.one_scale(isa, x, cols, if scale < f32::MIN_POSITIVE { 1.0 } else { scale })
            }
            Granularity::Fixed(scale) => self.one_scale(isa, x, cols, *scale),
            Granularity::Channels(scales) => {
                let (zeros, mut codes, mut out) = (vec![128.0; cols], vec![0u8; cols], vec![0f32; x.len()]);
                for (row, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                    affine::round_each(isa, row, [scales, &zeros], 127 - max..=128 + max, &mut codes, out);
                }
                Encoded::Values(out)
            }
            Granularity::Blocks(block) => {
                let (mut out, mut codes) = (x.to_vec(), vec![0u8; cols.min(*block)]);
                let half = f32::from(max) + 1.0;
                for part in out.chunks_exact_mut(cols).flat_map(|row| row.chunks_mut(*block)) {
                    let largest = part.iter().fold(0f32, |m, v| m.max(v.abs()));
                    if largest < f32::MIN_POSITIVE * half {
                        part.fill(0.0);
                        continue;
                    }
                    // The power of two at or above the largest magnitude is one step beyond the grid.
                    let grid = Affine { scale: power_of_two_above(largest / half), zero: 128 };
                    affine::quantize(isa, part, grid, 128 - max..=128 + max, &mut codes[..part.len()]);
                    affine::dequantize(isa, &codes[..part.len()], grid, part);
                }
                Encoded::Values(out)
            }
            Granularity::Asymmetric(spans) => {
                let (codes, scales, offsets) = self.encode_asymmetric(isa, x, cols / spans);
                if *spans > 1 {
                    return Ok(Encoded::Values(Self::decode(&codes, &scales, &offsets, cols / spans)));
                }
                Encoded::Codes(Codes { codes, scales, offsets })
            }
        })
    }

    /// Quantizes `x`, rows of `cols` values, asymmetrically. Returns signed codes (the code minus `2^(b-1)`), and the scale and offset of each row:
    /// `x = scale * code + offset`.
    fn encode_asymmetric(&self, isa: Isa, x: &[f32], cols: usize) -> (Vec<i8>, Vec<f32>, Vec<f32>) {
        let (max, half) = (((1u32 << self.bits.get()) - 1) as f32, (1u32 << (self.bits.get() - 1)) as f32);
        let rows = x.len() / cols.max(1);
        let (mut codes, mut scales, mut offsets) =
            (Vec::with_capacity(x.len()), Vec::with_capacity(rows), Vec::with_capacity(rows));
        for row in x.chunks_exact(cols.max(1)) {
            let (lo, hi) = affine::min_max(isa, row);
            let (lo, hi) = (lo.min(0.0), hi.max(0.0));
            let scale = hi / max - lo / max;
            let scale = if scale < f32::MIN_POSITIVE { 1.0 } else { scale };
            let zero = (-lo / scale).round_ties_even();
            let grid = Affine { scale, zero: zero as u8 };
            codes.extend(affine_codes(isa, row, grid, 0..=max as u8, half as u8));
            scales.push(scale);
            offsets.push(scale * (half - zero));
        }
        (codes, scales, offsets)
    }

    /// Quantizes `x`, rows of `cols` values, with one given scale.
    fn one_scale(&self, isa: Isa, x: &[f32], cols: usize, scale: f32) -> Encoded {
        let (max, grid) = (self.max_code() as u8, Affine { scale, zero: 128 });
        let codes = affine_codes(isa, x, grid, 127 - max..=128 + max, 128).collect();
        Encoded::Codes(Codes { codes, scales: vec![scale; x.len() / cols], offsets: Vec::new() })
    }

    /// Quantizes `x`, `[rows, cols]` row-major, symmetrically to the bits of this quantizer, with one scale for each row. The scale is the
    /// largest magnitude of the row divided by `2^(bits-1) - 1`, or 1 if that is below the smallest normal f32. Other properties of the
    /// quantizer (given scales, blocks, zero points) are not used. Returns the codes, `[rows, cols]`, and the scales, `[rows]`. Values
    /// after the last whole row are ignored. If `cols` is 0, there are no codes, and every value of `x` counts as a row with the scale 1.
    /// `isa` is the instruction set to compute with. Errors if a value of a whole row is not finite; the error names the row and column of
    /// the value, counted from 0.
    pub fn encode(&self, isa: Isa, x: &[f32], cols: usize) -> Result<(Vec<i8>, Vec<f32>)> {
        let rows = x.len() / cols.max(1);
        let (mut codes, mut scales) = (vec![0i8; rows * cols], vec![1f32; rows]);
        integer::quantize_rows(isa, x, cols, self.max_code(), &mut codes, &mut scales)
            .map_err(|e| Error::from(e).in_columns(cols))?;
        Ok((codes, scales))
    }

    /// Returns the values `scales[t] * codes[t, k] + offsets[t]`, `[tokens, cols]` row-major, of signed `codes`, `[tokens, cols]`, with one
    /// scale and one offset for each token. Missing offsets count as 0. Codes after the last whole token and tokens without a scale are
    /// left out. A `cols` of 0 counts as 1. Does not fail.
    pub fn decode(codes: &[i8], scales: &[f32], offsets: &[f32], cols: usize) -> Vec<f32> {
        let rows = codes.chunks_exact(cols.max(1)).zip(scales).enumerate();
        rows.flat_map(|(t, (row, scale))| {
            let offset = offsets.get(t).copied().unwrap_or(0.0);
            row.iter().map(move |c| f32::from(*c) * scale + offset)
        })
        .collect()
    }
}

/// Returns the codes of `x` on a grid, minus `half`.
fn affine_codes(isa: Isa, x: &[f32], grid: Affine, range: RangeInclusive<u8>, half: u8) -> impl Iterator<Item = i8> {
    let mut codes = vec![0u8; x.len()];
    affine::quantize(isa, x, grid, range, &mut codes);
    codes.into_iter().map(move |c| c.wrapping_sub(half) as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(act: &ActQuant, x: &[f32], cols: usize) -> Vec<f32> {
        match act.apply(Isa::detect(), x, cols).unwrap() {
            Encoded::Codes(c) => ActQuant::decode(&c.codes, &c.scales, &c.offsets, cols),
            Encoded::Values(v) => v,
        }
    }

    #[test]
    fn extremes_survive_and_zeros_stay() {
        let act = ActQuant::per_token(8).unwrap();
        let (codes, scales) = act.encode(Isa::detect(), &[0.0, 0.0, -1.27, 0.50], 2).unwrap();
        let x = ActQuant::decode(&codes, &scales, &[], 2);
        assert_eq!(x[..2], [0.0, 0.0]);
        assert!((x[2] + 1.27).abs() < 1e-6 && (x[3] - 0.5).abs() < 1e-6);
        assert!(ActQuant::per_token(1).is_err() && ActQuant::per_token(9).is_err());
        for act in
            [ActQuant::per_tensor(4), ActQuant::mxint(4, 2), ActQuant::asymmetric(4, 1), ActQuant::asymmetric(4, 2)]
        {
            let act = act.unwrap();
            assert_eq!(values(&act, &[0.0; 4], 2), [0.0; 4]);
        }
    }

    #[test]
    fn values_share_scales_by_granularity() {
        let x = [7.0f32, 1.0, 0.7, 0.1];
        assert_eq!(values(&ActQuant::per_tensor(4).unwrap(), &x, 2), [7.0, 1.0, 1.0, 0.0]);
        let token = values(&ActQuant::per_token(4).unwrap(), &x, 2);
        assert!((token[2] - 0.7).abs() < 1e-6 && (token[3] - 0.1).abs() < 1e-6);
        assert_eq!(values(&ActQuant::fixed(4, 0.5).unwrap(), &x, 2), [3.5, 1.0, 0.5, 0.0]);
        let channel = values(&ActQuant::channels(4, vec![1.0, 0.1]).unwrap(), &x, 2);
        assert!((channel[3] - 0.1).abs() < 1e-6 && (channel[1] - 0.7).abs() < 1e-6 && channel[2] == 1.0);
        // MXINT: e = ceil(log2 max); 1.0 at 4 bits is 7/8.
        assert_eq!(values(&ActQuant::mxint(4, 2).unwrap(), &[1.0, -0.3, 5.0, 0.6], 4), [0.875, -0.25, 5.0, 1.0]);
        // Asymmetric: from -0.5 to 7 in steps of a half, which zero is one of; all above it, 15 steps from 0.
        assert_eq!(values(&ActQuant::asymmetric(4, 1).unwrap(), &[7.0, -0.5, 0.2, 3.3], 4), [7.0, -0.5, 0.0, 3.5]);
        let spans = values(&ActQuant::asymmetric(4, 2).unwrap(), &[15.0, 3.6, 1.5, 0.36], 4);
        assert_eq!(spans[..2], [15.0, 4.0]);
        assert!((spans[2] - 1.5).abs() < 1e-6 && (spans[3] - 0.4).abs() < 1e-6);
        assert!(ActQuant::asymmetric(4, 0).is_err() && ActQuant::asymmetric(4, 3).unwrap().check(4).is_err());
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(ActQuant::fixed(8, bad).is_err() && ActQuant::channels(8, vec![1.0, bad]).is_err());
        }
        assert!(ActQuant::mxint(8, 0).is_err());
        assert!(ActQuant::channels(8, vec![1.0; 3]).unwrap().check(2).is_err());
    }
}
