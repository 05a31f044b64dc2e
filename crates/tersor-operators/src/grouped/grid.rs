//! [`Grid`] and [`GroupSpec`]: from the values of a group to its scale and zero point.

use std::ops::RangeInclusive;

use half::{bf16, f16};
use tersor_core::{Bits, DType, Error, GroupSize, Isa, ParamError, Result, power_of_two_above};
use tersor_kernels::affine::{self, Affine};

/// The grid of a group of weights with `b`-bit codes: `weight = s * (code - zero)`. It says which codes are used, and how the scale `s` and
/// the zero point follow from the range of the group's values. The grid is asymmetric ([`Grid::Asym`]), symmetric with all codes
/// ([`Grid::SymFull`]), or symmetric without the lowest code ([`Grid::SymNarrow`]). There is no default.
///
/// ```
/// use tersor_operators::{Bits, Grid};
/// # fn main() -> tersor_operators::Result<()> {
/// assert_eq!(Grid::SymNarrow.codes(Bits::new(4)?), 1..=15);
/// assert_eq!(Grid::from_name("asym"), Some(Grid::Asym));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grid {
    /// Asymmetric: codes `0 ..= 2^b - 1` from the smallest to the largest value, a range that includes 0; `s = (max - min) / (2^b - 1)`,
    /// with an integer zero point.
    Asym,
    /// Symmetric, all codes `-2^(b-1) ..= 2^(b-1) - 1`: `s = 2 max|w| / (2^b - 1)`. Every value lies within half a step of a code.
    SymFull,
    /// Symmetric, without the lowest code, `-(2^(b-1) - 1) ..= 2^(b-1) - 1`: `s = max|w| / (2^(b-1) - 1)`.
    SymNarrow,
}

impl Grid {
    /// Returns the symmetric grid that is usual for codes of `bits` bits: [`Grid::SymNarrow`] at 8 bits, [`Grid::SymFull`] at fewer.
    pub fn symmetric(bits: Bits) -> Self {
        if bits.get() == 8 { Grid::SymNarrow } else { Grid::SymFull }
    }

    /// Returns the name of this grid in stored descriptions of a matrix: `asym`, `sym_full` or `sym_narrow`.
    pub fn name(self) -> &'static str {
        match self {
            Grid::Asym => "asym",
            Grid::SymFull => "sym_full",
            Grid::SymNarrow => "sym_narrow",
        }
    }

    /// Returns the grid that is called `asym`, `sym_full` or `sym_narrow`; `None` for any other name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Grid::Asym, Grid::SymFull, Grid::SymNarrow].into_iter().find(|g| g.name() == name)
    }

    /// Returns the range of codes as they are stored, unsigned, for codes of `b` bits: `1..=2^b - 1` for [`Grid::SymNarrow`], `0..=2^b - 1`
    /// for the others. The signed codes of symmetric grids are stored with `2^(b-1)` added, their zero point.
    pub fn codes(self, bits: Bits) -> std::ops::RangeInclusive<u8> {
        match self {
            Grid::SymNarrow => 1..=bits.max_code(),
            _ => 0..=bits.max_code(),
        }
    }
}

/// How the range of values that the grid of a group covers is chosen: the whole range of the group's values ([`Clip::None`]), or that one
/// of the whole range and 79 smaller ones (the whole range times 0.99, 0.98, and so on to 0.21) which has the smallest error
/// ([`Clip::Search`]). The error is `Σ |w - ŵ|^norm` over the group's values `w` and their quantized values `ŵ`; `norm` is a parameter of
/// the search. Values beyond the range are clamped. There is no default.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Clip {
    /// The whole range of the values.
    None,
    /// The whole range times `1 - i / 100`, with the `i` from 0 to 79 for which `Σ |w - ŵ|^norm` over the group's values `w` and their
    /// quantized values `ŵ` is smallest (the `mse` option of GPTQ's released code, whose norm is 2.4).
    Search {
        /// The exponent of the errors, finite and at least 1.
        norm: f32,
    },
}

/// Checked parameters of quantization by groups of weights: bits of a code, group size, [`Grid`], stored type of the scales, and how the
/// range that the grid of a group covers is chosen ([`Clip`]).
///
/// ```
/// use tersor_operators::{Clip, DType, Grid, GroupSize, GroupSpec, Isa};
/// # fn main() -> tersor_operators::Result<()> {
/// let spec = GroupSpec::new(4, GroupSize::size(128)?, Grid::Asym, DType::F32, Clip::None)?;
/// let params = spec.quant_params(Isa::detect(), &[-1.0, 0.5, 2.0])?;
/// assert_eq!((params.scale, params.zero), (0.2, 5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GroupSpec {
    bits: Bits,
    group: GroupSize,
    grid: Grid,
    scale_dtype: DType,
    clip: Clip,
}

/// The quantization parameters of a group of weights: its `scale` (f32) and its zero point `zero` (u8). Code `c` stands for the weight
/// `scale * (c - zero)`.
pub type QuantParams = Affine;

impl GroupSpec {
    /// Returns the parameters: codes of `bits` bits on `grid`, a scale for each `group` of weights that is stored as `scale_dtype`, and
    /// ranges chosen by `clip`. Errors unless `bits` is 2 to 8. Errors unless `scale_dtype` is f16, bf16 or f32, or E8M0 on
    /// [`Grid::SymNarrow`]. Errors if `clip` is a [`Clip::Search`], which looks for the range of values with the smallest sum of
    /// `|error|^norm`, and its exponent `norm` is below 1, NaN or infinite.
    pub fn new(bits: u32, group: GroupSize, grid: Grid, scale_dtype: DType, clip: Clip) -> Result<Self, ParamError> {
        let bits = Bits::within(bits, 2, 8)?;
        if !scale_dtype.is_scale() || (scale_dtype == DType::E8M0 && grid != Grid::SymNarrow) {
            let rule = "must be F16, BF16 or F32, or F8_E8M0 on the grid sym_narrow";
            return Err(ParamError::new("scales", scale_dtype.name(), rule));
        }
        if let Clip::Search { norm } = clip
            && (!norm.is_finite() || norm < 1.0)
        {
            return Err(ParamError::new("norm", norm, "must be finite and at least 1"));
        }
        Ok(Self { bits, group, grid, scale_dtype, clip })
    }

    /// Returns the number of bits of a code, 2 to 8.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Returns the group size, that is which weights share a scale: a number of neighbouring weights of a row, a whole row, or the whole
    /// matrix.
    pub fn group(&self) -> GroupSize {
        self.group
    }

    /// Returns the grid: which codes are used, and how scale and zero point follow from the range of a group's values.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Returns the stored type of the scales: f16, bf16, f32, or E8M0 (powers of two, for MXINT).
    pub fn scale_dtype(&self) -> DType {
        self.scale_dtype
    }

    /// Returns the zero points that a group may have: every code on the asymmetric grid, on the symmetric ones the middle code
    /// `2^(bits - 1)` alone.
    pub fn zero_points(&self) -> RangeInclusive<u8> {
        let middle = 1 << (self.bits.get() - 1);
        if self.grid == Grid::Asym { 0..=self.bits.max_code() } else { middle..=middle }
    }

    /// Returns how the range of values that the grid of a group covers is chosen.
    pub fn clip(&self) -> Clip {
        self.clip
    }

    /// Returns whether matrices of both parameters are stored alike: all but the choice of the range is equal.
    pub(super) fn stores_as(&self, other: &Self) -> bool {
        Self { clip: other.clip, ..*self } == *other
    }

    /// Returns these parameters with the bits of a code set to `bits`. Errors unless `bits` is 2 to 8.
    pub fn with_bits(self, bits: u32) -> Result<Self, ParamError> {
        Self::new(bits, self.group, self.grid, self.scale_dtype, self.clip)
    }

    /// Returns the scale, rounded to its stored type, and the zero point for a group with the values `w`. A scale that would be below the
    /// smallest normal f32, as for zeros or an empty `w`, is 1; the zero point is then 0 on [`Grid::Asym`] and `2^(bits-1)` on symmetric
    /// grids. A NaN in `w` is ignored, but makes [`Clip::Search`], which looks for the range of values with the smallest error, keep the
    /// whole range. `isa` is the instruction set to compute with. Errors if a value of `w` is infinite, or the scale becomes infinite or 0
    /// in its stored type.
    pub fn quant_params(&self, isa: Isa, w: &[f32]) -> Result<QuantParams> {
        self.quant_params_weighted(isa, w, &[])
    }

    /// Returns the scale, rounded to its stored type, and the zero point for a group with the values `w`. [`Clip::Search`], which looks for
    /// the range of values with the smallest error, multiplies the error of `w[i]` by `importance[i]`, which should be at least 0: a
    /// negative one rewards errors, and a NaN makes [`Clip::Search`] keep the whole range. If `importance` is shorter than `w`, it is
    /// repeated from its beginning; if it is empty, all errors count equally; if it is longer, further elements are ignored. With
    /// [`Clip::None`], `importance` has no effect. A scale that would be below the smallest normal f32, as for zeros or an empty `w`, is 1;
    /// the zero point is then 0 on [`Grid::Asym`] and `2^(bits-1)` on symmetric grids. A NaN in `w` is ignored, but makes [`Clip::Search`]
    /// keep the whole range. `isa` is the instruction set to compute with. Errors if a value of `w` is infinite, or the scale becomes
    /// infinite or 0 in its stored type.
    pub fn quant_params_weighted(&self, isa: Isa, w: &[f32], importance: &[f32]) -> Result<QuantParams> {
        let (lo, hi) = affine::min_max(isa, w);
        let range = (lo.min(0.0), hi.max(0.0));
        let full = self.range_params(range)?;
        let Clip::Search { norm } = self.clip else { return Ok(full) };
        let mut best = (self.error(isa, w, importance, full, norm, f64::INFINITY), full);
        for i in 1..80 {
            let p = 1.0 - i as f32 / 100.0;
            let Ok(params) = self.range_params((range.0 * p, range.1 * p)) else { break };
            let error = self.error(isa, w, importance, params, norm, best.0);
            if error < best.0 {
                best = (error, params);
            }
        }
        Ok(best.1)
    }

    /// Returns the scale, rounded to its stored type, and the zero point for a group with the values `w`: the result of
    /// [`GroupSpec::quant_params_weighted`] for `w` and `importance`. [`Clip::Search`], which looks for the range of values with the
    /// smallest error, multiplies the error of `w[i]` by `importance[i]`. An `importance` that is shorter than `w` is repeated from its
    /// beginning; if it is empty, all errors count equally; if it is longer, further elements are ignored. `row` and `group` are the number
    /// of the row and of the group in the row, counted from 0; they are only named in errors. `isa` is the instruction set to compute with.
    /// Errors if a value of `w` is infinite, or the scale becomes infinite or 0 in its stored type.
    pub fn quant_params_at(
        &self,
        isa: Isa,
        w: &[f32],
        importance: &[f32],
        [row, group]: [usize; 2],
    ) -> Result<QuantParams> {
        self.quant_params_weighted(isa, w, importance).map_err(|e| match e {
            Error::ScaleRange { value, dtype, .. } => Error::ScaleRange { row, group, value, dtype },
            other => other,
        })
    }

    /// Returns the scale and zero point for the range `(lo, hi)`, which includes 0.
    fn range_params(&self, (lo, hi): (f32, f32)) -> Result<QuantParams> {
        let half = 1u8 << (self.bits.get() - 1);
        let steps = f64::from(self.bits.max_code());
        let (lo, hi) = (f64::from(lo), f64::from(hi));
        let max = hi.max(-lo);
        let scale = match self.grid {
            Grid::Asym => (hi - lo) / steps,
            Grid::SymFull => 2.0 * max / steps,
            // MXINT (arXiv 2402.02446, section 3.1): the power of two at or above the largest magnitude is one step beyond the grid.
            Grid::SymNarrow if self.scale_dtype == DType::E8M0 => max / f64::from(half),
            Grid::SymNarrow => max / f64::from(half - 1),
        };
        let symmetric = self.grid != Grid::Asym;
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Ok(Affine { scale: 1.0, zero: *self.zero_points().start() });
        }
        let scale = round_scale(self.scale_dtype, scale as f32, [0, 0])?;
        let zero = if symmetric { half } else { (-lo / f64::from(scale)).round_ties_even().clamp(0.0, steps) as u8 };
        Ok(Affine { scale, zero })
    }

    /// Returns `Σ h |w - ŵ|^norm` with the importance `h`, or infinity as soon as the sum exceeds `bound`.
    fn error(&self, isa: Isa, w: &[f32], importance: &[f32], params: QuantParams, norm: f32, bound: f64) -> f64 {
        let (mut codes, mut back) = ([0u8; 64], [0f32; 64]);
        let mut sum = 0.0;
        let mut weights = importance.iter().cycle();
        for w in w.chunks(64) {
            let (codes, back) = (&mut codes[..w.len()], &mut back[..w.len()]);
            affine::quantize(isa, w, params, self.grid.codes(self.bits), codes);
            affine::dequantize(isa, codes, params, back);
            let errors = w.iter().zip(&*back).map(|(w, b)| (w - b).abs().powf(norm));
            sum += f64::from(if importance.is_empty() {
                errors.sum::<f32>()
            } else {
                errors.zip(weights.by_ref()).map(|(e, h)| e * h).sum()
            });
            if sum > bound {
                return f64::INFINITY;
            }
        }
        sum
    }
}

/// Returns `scale` rounded to the type `dtype` that scales are stored in. In bf16 it is rounded to the nearest value, in E8M0 up to a power
/// of two. In f16 it is rounded to the nearest value if that is a normal number or 0, and up otherwise, so that the range of the group is
/// not cut. Other types leave it unchanged. Errors if the result is 0, negative or not finite. `row` and `group`, the number of the row and
/// of the group in the row, counted from 0, are only named in the error.
pub fn round_scale(dtype: DType, scale: f32, [row, group]: [usize; 2]) -> Result<f32> {
    let rounded = match dtype {
        DType::F16 => {
            let near = f16::from_f32(scale);
            let up = near < f16::MIN_POSITIVE && near.to_f32() < scale && near.to_bits() > 0;
            if up { f16::from_bits(near.to_bits() + 1).to_f32() } else { near.to_f32() }
        }
        DType::BF16 => bf16::from_f32(scale).to_f32(),
        DType::E8M0 if scale > 0.0 => power_of_two_above(scale),
        _ => scale,
    };
    if rounded.is_finite() && rounded > 0.0 {
        Ok(rounded)
    } else {
        Err(Error::ScaleRange { row, group, value: scale, dtype: dtype.name() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(bits: u32, grid: Grid, dtype: DType) -> GroupSpec {
        GroupSpec::new(bits, GroupSize::Channel, grid, dtype, Clip::None).unwrap()
    }

    #[test]
    fn worked_examples() {
        let isa = Isa::detect();
        let asym = spec(4, Grid::Asym, DType::F32);
        assert_eq!(asym.quant_params(isa, &[-1.0, 2.0]).unwrap(), Affine { scale: 0.2, zero: 5 });
        assert_eq!(
            asym.quant_params(isa, &[1.0, 3.0]).unwrap(),
            Affine { scale: 0.2, zero: 0 },
            "all positive: zero included"
        );
        assert_eq!(
            asym.quant_params(isa, &[-3.0, -3.0]).unwrap(),
            Affine { scale: 0.2, zero: 15 },
            "constant and negative"
        );
        assert_eq!(
            spec(4, Grid::SymFull, DType::F32).quant_params(isa, &[-3.0, 1.0]).unwrap(),
            Affine { scale: 0.4, zero: 8 }
        );
        assert_eq!(
            spec(8, Grid::SymNarrow, DType::F32).quant_params(isa, &[-1.0, 2.54]).unwrap(),
            Affine { scale: 0.02, zero: 128 }
        );
        assert_eq!(Grid::symmetric(Bits::new(8).unwrap()), Grid::SymNarrow);
        assert_eq!(Grid::symmetric(Bits::new(4).unwrap()), Grid::SymFull);
    }

    #[test]
    fn scales_that_are_powers_of_two() {
        let isa = Isa::detect();
        for (max, bits, scale) in
            [(1.7, 4, 0.25), (1.0, 4, 0.125), (1.0001, 8, 1.0 / 64.0), (3e-38, 2, 2f32.powi(-125))]
        {
            let mx = spec(bits, Grid::SymNarrow, DType::E8M0);
            assert_eq!(mx.quant_params(isa, &[-max, max / 3.0]).unwrap().scale, scale, "{max} at {bits} bits");
        }
        assert!(GroupSpec::new(4, GroupSize::Channel, Grid::Asym, DType::E8M0, Clip::None).is_err());
        let huge = spec(2, Grid::SymNarrow, DType::E8M0).quant_params(isa, &[f32::MAX, 0.0]).unwrap().scale;
        assert_eq!(huge, 2f32.powi(127));
    }

    #[test]
    fn zeros_subnormals_and_extremes() {
        let isa = Isa::detect();
        for grid in [Grid::Asym, Grid::SymFull, Grid::SymNarrow] {
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                let s = spec(4, grid, dtype);
                for zeros in [[0.0f32, -0.0], [1e-40, -1e-41]] {
                    assert_eq!(s.quant_params(isa, &zeros).unwrap().scale, 1.0);
                }
            }
            let e = spec(2, grid, DType::F16).quant_params(isa, &[3e38, -3e38]).unwrap_err();
            assert!(matches!(e, Error::ScaleRange { .. }), "{e}");
            assert!(spec(2, grid, DType::F32).quant_params(isa, &[f32::MAX, -f32::MAX]).is_ok() || grid == Grid::Asym);
            assert!(spec(4, grid, DType::F16).quant_params(isa, &[1e-9, -1e-9]).is_err(), "a scale that rounds to 0");
            let tiny = spec(4, grid, DType::F16).quant_params(isa, &[1e-6, -1e-6]).unwrap();
            assert!(tiny.scale >= 1e-6 / 7.6, "rounded up among f16's subnormals");
        }
    }

    #[test]
    fn clipping_never_raises_the_error_it_minimizes() {
        let isa = Isa::detect();
        let w: Vec<f32> =
            (0..200).map(|i| ((i as f32) * 0.7).sin().powi(5) * if i == 13 { 6.0 } else { 1.0 }).collect();
        for bits in 2..=8 {
            let plain = spec(bits, Grid::Asym, DType::F16);
            let search = GroupSpec { clip: Clip::Search { norm: 2.4 }, ..plain };
            let of = |s: &GroupSpec| s.error(isa, &w, &[], s.quant_params(isa, &w).unwrap(), 2.4, f64::INFINITY);
            assert!(of(&search) <= of(&plain));
            if bits <= 3 {
                assert!(of(&search) < 0.9 * of(&plain), "an outlier is worth clipping at {bits} bits");
            }
        }
    }
}
