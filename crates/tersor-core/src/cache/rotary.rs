//! [`Rotary`]: the rotary position embedding, in the layout of Hugging Face.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use tersor_kernels::{Isa, vector};

use crate::{ParamError, Result};

/// How the frequencies of a rotary embedding are scaled for texts that are longer than those that the model was trained with. `None`, the
/// default, leaves them as trained. `Linear` divides all frequencies by a factor. `Llama3` divides low frequencies and leaves high ones
/// (Llama 3.1). `Yarn` divides low frequencies, leaves high ones, and multiplies cosines and sines by a factor (YaRN, arXiv 2309.00071).
#[derive(Clone, PartialEq, Debug, Default)]
pub enum RotaryScaling {
    /// Frequencies as trained.
    #[default]
    None,
    /// Divides all frequencies by `factor`.
    Linear {
        /// The divisor of every frequency.
        factor: f64,
    },
    /// Divides low frequencies, leaves high ones, and blends between (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Number of rotations over `original` tokens at and below which a frequency counts as low.
        low: f64,
        /// Number of rotations over `original` tokens at and above which a frequency counts as high.
        high: f64,
        /// Number of tokens of the context that the model was trained with.
        original: f64,
    },
    /// Blends divided and trained frequencies by dimension, and multiplies cosines and sines by `attention` (YaRN, arXiv 2309.00071).
    Yarn {
        /// The divisor of the frequencies that are divided.
        factor: f64,
        /// Number of tokens of the context that the model was trained with.
        original: f64,
        /// Number of rotations over `original` tokens above which a frequency is left as trained.
        beta_fast: f64,
        /// Number of rotations over `original` tokens below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// The factor on cosines and sines (YaRN's attention temperature).
        attention: f64,
    },
}

/// Cosines and sines of the rotary angles of one position, one for each pair of rotated dimensions: `dims / 2`, where `dims` is the number
/// of rotated dimensions of a head. Pair `i` consists of the dimensions `i` and `i + dims / 2`.
#[derive(Debug)]
pub struct Angles {
    /// Cosine of the rotary angle of each pair of rotated dimensions, times the factor [`Rotary::attention`] (1 unless the scaling is
    /// YaRN), `[dims / 2]` for `dims` rotated dimensions.
    pub cos: Vec<f32>,
    /// Sine of the rotary angle of each pair of rotated dimensions, times the factor [`Rotary::attention`] (1 unless the scaling is YaRN),
    /// `[dims / 2]` for `dims` rotated dimensions.
    pub sin: Vec<f32>,
}

impl Angles {
    /// Rotates vectors in place: `rows` is `[vectors, dim]` row-major, and the first `dims = 2 * cos.len()` values of each vector are
    /// rotated, value `i` together with value `i + dims / 2`. The other values of a vector, and values after the last whole vector, are
    /// unchanged. If `dim` is below `dims`, nothing changes.
    pub fn apply(&self, isa: Isa, rows: &mut [f32], dim: usize) {
        let dims = 2 * self.cos.len();
        if dims == dim {
            return vector::apply_rotary(isa, rows, &self.cos, &self.sin);
        }
        for row in rows.chunks_exact_mut(dim.max(1)) {
            if let Some(part) = row.get_mut(..dims) {
                vector::apply_rotary(isa, part, &self.cos, &self.sin);
            }
        }
    }
}

/// A rotary position embedding (RoPE, arXiv 2104.09864) of the first `dims` dimensions of a head. Dimensions `i` and `i + dims / 2` are
/// rotated by `position * frequency[i]` radians, with `frequency[i] = base^(-2i / dims)` for `i` below `dims / 2`, or a scaled frequency
/// for long texts.
///
/// ```
/// use tersor_core::cache::Rotary;
/// use tersor_core::Isa;
/// # fn main() -> tersor_core::Result<()> {
/// let rotary = Rotary::new(2, 10_000.0)?;
/// // A head of three dimensions, of which the first two are rotated by one radian per position.
/// let mut head = [1.0, 0.0, 5.0];
/// rotary.angles(1).apply(Isa::detect(), &mut head, 3);
/// assert_eq!(head, [1f32.cos(), 1f32.sin(), 5.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rotary {
    /// One for each pair of dimensions.
    frequencies: Vec<f32>,
    /// The factor on cosines and sines.
    attention: f32,
    /// Angles by position: every layer needs the same.
    known: RwLock<BTreeMap<u32, Arc<Angles>>>,
}

/// Positions whose angles are stored.
const KNOWN: usize = 1 << 14;

impl Rotary {
    /// Returns the embedding of `dims` dimensions with the frequencies `base^(-2i / dims)`, not scaled. Errors if `dims` is 0 or odd, or if
    /// `base` is not finite or not above 0. Errors if a frequency is beyond the range of f32; this can happen only for a `base` below
    /// 1e-38.
    pub fn new(dims: usize, base: f64) -> Result<Self, ParamError> {
        Self::scaled(dims, base, &RotaryScaling::None)
    }

    /// Returns the embedding of `dims` dimensions with the frequencies `base^(-2i / dims)` scaled by `scaling`. Errors if `dims` is 0 or
    /// odd, or if `base` is not finite or not above 0. Errors if a scaled frequency, or the factor on cosines and sines, is not finite in
    /// f32. Other values of `scaling` are accepted; a negative factor, for example, gives negative frequencies.
    pub fn scaled(dims: usize, base: f64, scaling: &RotaryScaling) -> Result<Self, ParamError> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(ParamError::new("rotary dimensions", dims, "must be even and at least 2"));
        }
        if !base.is_finite() || base <= 0.0 {
            return Err(ParamError::new("rotary base", base, "must be finite and above 0"));
        }
        let dim = dims as f64;
        let frequency = |i: usize| -> f64 {
            let f = base.powf(-2.0 * i as f64 / dim);
            match *scaling {
                RotaryScaling::None => f,
                RotaryScaling::Linear { factor } => f / factor,
                RotaryScaling::Llama3 { factor, low, high, original } => {
                    let rotations = original * f / std::f64::consts::TAU;
                    let smooth = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                }
                RotaryScaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                    let dimension = |rotations: f64| {
                        dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
                    };
                    let low = dimension(beta_fast).floor().max(0.0);
                    let high = dimension(beta_slow).ceil().min(dim - 1.0);
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                }
            }
        };
        let frequencies: Vec<f32> = (0..dims / 2).map(|i| frequency(i) as f32).collect();
        let attention = if let RotaryScaling::Yarn { attention, .. } = *scaling { attention as f32 } else { 1.0 };
        if let Some(f) = frequencies.iter().chain([&attention]).find(|f| !f.is_finite()) {
            return Err(ParamError::new("rotary scaling", format!("{scaling:?}"), format!("gives a frequency of {f}")));
        }
        Ok(Self { frequencies, attention, known: RwLock::default() })
    }

    /// Returns the number of dimensions of a head that are rotated, an even number of at least 2.
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Returns the frequency of each pair of rotated dimensions in radians per position, after scaling, `[dims / 2]` for `dims` rotated
    /// dimensions.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Returns the factor on all cosines and sines: the field `attention` of [`RotaryScaling::Yarn`], 1 for other scalings.
    pub fn attention(&self) -> f32 {
        self.attention
    }

    /// Returns the cosines and sines of the angles at `position`, which are `position * frequency` in radians, rounded to f32, for the
    /// frequency of each pair of rotated dimensions. Each cosine and sine is multiplied by the factor [`Rotary::attention`], 1 unless the
    /// scaling is YaRN. The results of the first 2^14 different positions are kept in memory for later calls.
    pub fn angles(&self, position: u32) -> Arc<Angles> {
        if let Some(known) = self.known.read().unwrap_or_else(|e| e.into_inner()).get(&position) {
            return Arc::clone(known);
        }
        // The angle is rounded to f32 as the reference does it; its sine is then exact.
        let angle = |f: &f32| f64::from(position as f32 * f);
        let cos = self.frequencies.iter().map(|f| angle(f).cos() as f32 * self.attention).collect();
        let sin = self.frequencies.iter().map(|f| angle(f).sin() as f32 * self.attention).collect();
        let made = Arc::new(Angles { cos, sin });
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        if known.len() < KNOWN {
            known.insert(position, Arc::clone(&made));
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_frequencies_have_the_published_shape() {
        let of = |scaling: RotaryScaling| Rotary::scaled(128, 500_000.0, &scaling).unwrap();
        let plain = of(RotaryScaling::None);
        assert!((plain.frequencies[1] - 500_000f32.powf(-2.0 / 128.0)).abs() < 1e-6);
        let linear = of(RotaryScaling::Linear { factor: 4.0 });
        assert!((linear.frequencies[5] * 4.0 - plain.frequencies[5]).abs() < 1e-6);
        let llama = of(RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
        assert_eq!(llama.frequencies[0], plain.frequencies[0], "high frequencies stay");
        assert!((llama.frequencies[63] * 8.0 / plain.frequencies[63] - 1.0).abs() < 1e-5, "low ones are divided");
        let attention = 0.1 * 4f64.ln() + 1.0;
        let yarn = RotaryScaling::Yarn { factor: 4.0, original: 32768.0, beta_fast: 32.0, beta_slow: 1.0, attention };
        let yarn = of(yarn);
        assert_eq!(yarn.frequencies[0], plain.frequencies[0]);
        assert!((yarn.frequencies[63] * 4.0 / plain.frequencies[63] - 1.0).abs() < 1e-5);
        assert!((yarn.attention - attention as f32).abs() < 1e-6);
    }

    #[test]
    fn scores_depend_on_the_distance_alone_and_the_other_dimensions_stay() {
        let rotary = Rotary::new(64, 500_000.0).unwrap();
        let (q, k): (Vec<f32>, Vec<f32>) = (0..128).map(|i| ((i as f32).sin(), (i as f32 * 0.3).cos())).unzip();
        let rotated = |x: &[f32], position: u32| {
            let mut x = x.to_vec();
            rotary.angles(position).apply(Isa::detect(), &mut x, 128);
            x
        };
        let score = |a: u32, b: u32| rotated(&q, a).iter().zip(rotated(&k, b)).map(|(a, b)| a * b).sum::<f32>();
        assert!((score(7, 3) - score(107, 103)).abs() < 1e-3);
        assert!((score(0, 0) - q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()).abs() < 1e-4);
        assert!((score(7, 3) - score(7, 0)).abs() > 1e-3);
        let far = rotated(&q, 1000);
        assert!(far[64..] == q[64..] && far[..64] != q[..64]);
    }
}
