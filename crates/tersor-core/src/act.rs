//! Quantizers of activations.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::context::fingerprint;
use crate::{Bits, Error, ParamError, Result, StatNeeds, StatSet, power_of_two_above};
use tersor_kernels::Isa;
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::integer;

/// How activations are rounded: symmetrically, `q = clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)`, with `s = max|x| / (2^(b-1) - 1)` over what shares a
/// scale, unless it says otherwise. What is all zeros stays zeros.
#[derive(Clone, PartialEq, Debug)]
pub struct ActQuant {
    bits: Bits,
    reach: Reach,
}

/// What shares a scale.
#[derive(Clone, PartialEq, Debug)]
enum Reach {
    Token,
    Tensor,
    Fixed(f32),
    Channels(Arc<[f32]>),
    Blocks(usize),
    Asymmetric(usize),
}

/// What a quantizer made of activations.
pub(crate) enum Encoded {
    /// Codes, and a scale a token: what integer kernels multiply. What these give, and an offset a token, unless there are none, are the values.
    Codes(Vec<i8>, Vec<f32>, Vec<f32>),
    /// The values that remain, where scales differ inside a token.
    Values(Vec<f32>),
}

impl ActQuant {
    fn new(bits: u32, reach: Reach) -> Result<Self, ParamError> {
        Ok(Self { bits: Bits::within(bits, 2, 8)?, reach })
    }

    /// Dynamic per token at `bits` bits, 2 to 8.
    pub fn per_token(bits: u32) -> Result<Self, ParamError> {
        Self::new(bits, Reach::Token)
    }

    /// Dynamic, one scale for all tokens that come together: what comes out depends on them.
    pub fn per_tensor(bits: u32) -> Result<Self, ParamError> {
        Self::new(bits, Reach::Tensor)
    }

    /// One scale for all tokens ever, found before. Error unless it is positive and finite.
    pub fn fixed(bits: u32, scale: f32) -> Result<Self, ParamError> {
        if !scale.is_finite() || scale <= 0.0 {
            return Err(ParamError::new("scale", scale, "must be positive and finite"));
        }
        Self::new(bits, Reach::Fixed(scale))
    }

    /// A scale for each feature, found before. Error unless all are positive and finite.
    pub fn channels(bits: u32, scales: Vec<f32>) -> Result<Self, ParamError> {
        if let Some(s) = scales.iter().find(|s| !s.is_finite() || **s <= 0.0) {
            return Err(ParamError::new("scale", *s, "must be positive and finite"));
        }
        Self::new(bits, Reach::Channels(scales.into()))
    }

    /// MXINT (arXiv 2402.02446, section 3.1): blocks of `block` features of a token share a power of two, `2^ceil(log2 max|x|)`; magnitudes have
    /// `bits - 1` bits.
    pub fn mxint(bits: u32, block: usize) -> Result<Self, ParamError> {
        if block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1"));
        }
        Self::new(bits, Reach::Blocks(block))
    }

    /// Dynamic per token with a zero of its own (ResQ, arXiv 2412.14363, section 4.1): `s = (max - min) / (2^b - 1)` over a range that holds 0,
    /// `q = clamp(round(x / s) + round(-min / s), 0, 2^b - 1)`. With `runs` above 1 that many equal runs of a token's features (heads, say) have
    /// a scale and a zero each.
    pub fn asymmetric(bits: u32, runs: usize) -> Result<Self, ParamError> {
        if runs == 0 {
            return Err(ParamError::new("runs", runs, "must be at least 1"));
        }
        Self::new(bits, Reach::Asymmetric(runs))
    }

    /// The width of the codes.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// What shares a scale, by the name in specifications: `token`, `tensor`, `fixed`, `channels`, `mxint` or `asymmetric`.
    pub fn reach(&self) -> &'static str {
        match self.reach {
            Reach::Token => "token",
            Reach::Tensor => "tensor",
            Reach::Fixed(_) => "fixed",
            Reach::Channels(_) => "channels",
            Reach::Blocks(_) => "mxint",
            Reach::Asymmetric(_) => "asymmetric",
        }
    }

    /// Scales that were found before: one, one for each feature, or none.
    pub fn scales(&self) -> &[f32] {
        match &self.reach {
            Reach::Fixed(s) => std::slice::from_ref(s),
            Reach::Channels(s) => s,
            _ => &[],
        }
    }

    /// Features of a block (MXINT).
    pub fn block(&self) -> Option<usize> {
        if let Reach::Blocks(n) = self.reach { Some(n) } else { None }
    }

    /// Runs of a token that have a scale each (asymmetric).
    pub fn runs(&self) -> Option<usize> {
        if let Reach::Asymmetric(n) = self.reach { Some(n) } else { None }
    }

    pub(crate) fn key(&self) -> u128 {
        let scales: Vec<u8> = self.scales().iter().flat_map(|s| s.to_le_bytes()).collect();
        let name = format!("act {} {} {:?} {:?} ", self.reach(), self.bits.get(), self.block(), self.runs());
        fingerprint(&[name.as_bytes(), &scales].concat())
    }

    /// Error when scales of features are for another number of them.
    pub(crate) fn check(&self, features: usize) -> Result<()> {
        match &self.reach {
            Reach::Channels(s) if s.len() != features => Err(Error::shape("scales of activations", features, s.len())),
            Reach::Asymmetric(runs) if !features.is_multiple_of(*runs) => {
                Err(Error::shape("features of activations", format!("{runs} equal runs"), features))
            }
            _ => Ok(()),
        }
    }

    fn most(&self) -> i8 {
        ((1u8 << (self.bits.get() - 1)) - 1) as i8
    }

    /// Rows of `cols` values, as many scales as [`ActQuant::check`] has found right.
    pub(crate) fn apply(&self, isa: Isa, x: &[f32], cols: usize) -> Encoded {
        let (cols, most) = (cols.max(1), self.most() as u8);
        match &self.reach {
            Reach::Token => {
                let (codes, scales) = self.encode(isa, x, cols);
                Encoded::Codes(codes, scales, Vec::new())
            }
            Reach::Tensor => {
                let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / f32::from(most);
                self.one_scale(isa, x, cols, if scale < f32::MIN_POSITIVE { 1.0 } else { scale })
            }
            Reach::Fixed(scale) => self.one_scale(isa, x, cols, *scale),
            Reach::Channels(scales) => {
                let (zeros, mut codes, mut out) = (vec![128.0; cols], vec![0u8; cols], vec![0f32; x.len()]);
                for (row, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                    affine::round_each(isa, row, [scales, &zeros], 127 - most..=128 + most, &mut codes, out);
                }
                Encoded::Values(out)
            }
            Reach::Blocks(block) => {
                let (mut out, mut codes) = (x.to_vec(), vec![0u8; cols.min(*block)]);
                let half = f32::from(most) + 1.0;
                for part in out.chunks_exact_mut(cols).flat_map(|row| row.chunks_mut(*block)) {
                    let largest = part.iter().fold(0f32, |m, v| m.max(v.abs()));
                    if largest < f32::MIN_POSITIVE * half {
                        part.fill(0.0);
                        continue;
                    }
                    // The power of two at or above the largest magnitude is one step beyond the grid.
                    let grid = Affine { scale: power_of_two_above(largest / half), zero: 128 };
                    affine::quantize(isa, part, grid, 128 - most..=128 + most, &mut codes[..part.len()]);
                    affine::dequantize(isa, &codes[..part.len()], grid, part);
                }
                Encoded::Values(out)
            }
            Reach::Asymmetric(runs) => {
                let (codes, scales, offsets) = self.encode_asymmetric(isa, x, cols / runs);
                if *runs > 1 {
                    return Encoded::Values(Self::decode(&codes, &scales, &offsets, cols / runs));
                }
                Encoded::Codes(codes, scales, offsets)
            }
        }
    }

    /// Codes less `2^(b-1)`, so that they are signed, scales, and what that and the zero add: `x = scale * code + offset`.
    fn encode_asymmetric(&self, isa: Isa, x: &[f32], cols: usize) -> (Vec<i8>, Vec<f32>, Vec<f32>) {
        let (most, half) = (((1u32 << self.bits.get()) - 1) as f32, (1u32 << (self.bits.get() - 1)) as f32);
        let rows = x.len() / cols.max(1);
        let (mut codes, mut scales, mut offsets) =
            (Vec::with_capacity(x.len()), Vec::with_capacity(rows), Vec::with_capacity(rows));
        for row in x.chunks_exact(cols.max(1)) {
            let (lo, hi) = affine::min_max(isa, row);
            let (lo, hi) = (lo.min(0.0), hi.max(0.0));
            let scale = hi / most - lo / most;
            let scale = if scale < f32::MIN_POSITIVE { 1.0 } else { scale };
            let zero = (-lo / scale).round_ties_even();
            let grid = Affine { scale, zero: zero as u8 };
            codes.extend(affine_codes(isa, row, grid, 0..=most as u8, half as u8));
            scales.push(scale);
            offsets.push(scale * (half - zero));
        }
        (codes, scales, offsets)
    }

    fn one_scale(&self, isa: Isa, x: &[f32], cols: usize, scale: f32) -> Encoded {
        let (most, grid) = (self.most() as u8, Affine { scale, zero: 128 });
        let codes = affine_codes(isa, x, grid, 127 - most..=128 + most, 128).collect();
        Encoded::Codes(codes, vec![scale; x.len() / cols], Vec::new())
    }

    /// Codes and scales of rows of `cols` values, each by its own largest magnitude.
    pub fn encode(&self, isa: Isa, x: &[f32], cols: usize) -> (Vec<i8>, Vec<f32>) {
        let rows = x.len() / cols.max(1);
        let (mut codes, mut scales) = (vec![0i8; rows * cols], vec![1f32; rows]);
        integer::quantize_rows(isa, x, cols, self.most(), &mut codes, &mut scales);
        (codes, scales)
    }

    /// What codes, scales and offsets, unless there are none, stand for.
    pub fn decode(codes: &[i8], scales: &[f32], offsets: &[f32], cols: usize) -> Vec<f32> {
        let rows = codes.chunks_exact(cols.max(1)).zip(scales).enumerate();
        rows.flat_map(|(t, (row, scale))| {
            let offset = offsets.get(t).copied().unwrap_or(0.0);
            row.iter().map(move |c| f32::from(*c) * scale + offset)
        })
        .collect()
    }
}

/// Codes of a grid, less `half`.
fn affine_codes(isa: Isa, x: &[f32], grid: Affine, range: RangeInclusive<u8>, half: u8) -> impl Iterator<Item = i8> {
    let mut codes = vec![0u8; x.len()];
    affine::quantize(isa, x, grid, range, &mut codes);
    codes.into_iter().map(move |c| c.wrapping_sub(half) as i8)
}

/// How much of the range that was seen a scale found before covers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ActRange {
    /// All of it.
    Max,
    /// This share of the magnitudes of a sample, in percent, above 50 and at most 100.
    Percentile(f64),
    /// Of the largest magnitude times `1 - i / 100`, `i` in `0..80`, the one with the least squared error on a sample.
    Mse,
}

/// A quantizer of activations before what flows into a site is known.
#[derive(Clone, PartialEq, Debug)]
pub enum ActPlan {
    /// One that needs to know nothing.
    Ready(ActQuant),
    /// One scale for all tokens ever.
    Fixed(Bits, ActRange),
    /// One for each feature.
    Channels(Bits, ActRange),
}

/// Tokens of the sample that ranges are searched on.
const SAMPLE: usize = 512;

impl ActPlan {
    /// Static, one scale (`channels`: one a feature). Error on bits outside 2 to 8, or a percentile outside 50 to 100.
    pub fn fixed(bits: u32, range: ActRange, channels: bool) -> Result<Self, ParamError> {
        if let ActRange::Percentile(p) = range
            && !(p > 50.0 && p <= 100.0)
        {
            return Err(ParamError::new("percentile", p, "must be above 50 and at most 100"));
        }
        let bits = Bits::within(bits, 2, 8)?;
        Ok(if channels { Self::Channels(bits, range) } else { Self::Fixed(bits, range) })
    }

    /// The width of the codes.
    pub fn bits(&self) -> Bits {
        match self {
            Self::Ready(act) => act.bits(),
            Self::Fixed(bits, _) | Self::Channels(bits, _) => *bits,
        }
    }

    /// What it must know about the inputs.
    pub fn needs(&self) -> StatNeeds {
        match self {
            Self::Ready(_) => StatNeeds::default(),
            Self::Fixed(_, ActRange::Max) | Self::Channels(_, ActRange::Max) => {
                StatNeeds { channel: true, ..StatNeeds::default() }
            }
            Self::Fixed(..) | Self::Channels(..) => StatNeeds { sample: SAMPLE, ..StatNeeds::default() },
        }
    }

    /// Scales that are stored, for so many features.
    pub fn scales(&self, features: usize) -> usize {
        match self {
            Self::Ready(act) => act.scales().len(),
            Self::Fixed(..) => 1,
            Self::Channels(..) => features,
        }
    }

    /// The quantizer. Error when the statistics do not have what it needs.
    pub fn ready(&self, stats: Option<&StatSet>) -> Result<ActQuant> {
        let (bits, range, channels) = match self {
            Self::Ready(act) => return Ok(act.clone()),
            Self::Fixed(bits, range) => (*bits, *range, false),
            Self::Channels(bits, range) => (*bits, *range, true),
        };
        let missing = || Error::Missing { name: "ranges".into(), place: "the statistics of the inputs".into() };
        let stats = stats.filter(|s| s.tokens() > 0).ok_or_else(missing)?;
        let k = stats.features();
        let largest: Vec<f32> = match range {
            ActRange::Max => {
                let c = stats.channel().ok_or_else(missing)?;
                let each: Vec<f32> = c.min.iter().zip(&c.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect();
                if channels { each } else { vec![each.into_iter().fold(0.0, f32::max)] }
            }
            _ => {
                let sample = stats.sample().ok_or_else(missing)?;
                let own = |k0: usize| -> Vec<f32> { sample.iter().skip(k0).step_by(k).map(|v| v.abs()).collect() };
                let all = || sample.iter().map(|v| v.abs()).collect();
                let sets = if channels { (0..k).map(own).collect() } else { vec![all()] };
                sets.into_iter().map(|v| limit(v, bits, range)).collect()
            }
        };
        let most = ((1u32 << (bits.get() - 1)) - 1) as f32;
        let scales = largest.into_iter().map(|m| if m / most < f32::MIN_POSITIVE { 1.0 } else { m / most });
        let scales: Vec<f32> = scales.collect();
        Ok(if channels { ActQuant::channels(bits.get(), scales)? } else { ActQuant::fixed(bits.get(), scales[0])? })
    }
}

/// The largest magnitude that is covered.
fn limit(mut magnitudes: Vec<f32>, bits: Bits, range: ActRange) -> f32 {
    magnitudes.sort_by(f32::total_cmp);
    let Some(&most) = magnitudes.last() else { return 0.0 };
    match range {
        ActRange::Max => most,
        ActRange::Percentile(p) => {
            let at = (p / 100.0 * magnitudes.len() as f64).ceil() as usize;
            magnitudes[at.clamp(1, magnitudes.len()) - 1]
        }
        ActRange::Mse => {
            let steps = ((1u32 << (bits.get() - 1)) - 1) as f32;
            let error = |top: f32| -> f64 {
                let scale = (top / steps).max(f32::MIN_POSITIVE);
                let lost = |v: &f32| f64::from(v - (v / scale).round_ties_even().min(steps) * scale).powi(2);
                magnitudes.iter().map(lost).sum()
            };
            let tops = (0..80).map(|i| most * (1.0 - i as f32 / 100.0));
            let best = tops.map(|t| (error(t), t)).min_by(|a, b| a.0.total_cmp(&b.0));
            best.map_or(most, |b| b.1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatView;

    fn values(act: &ActQuant, x: &[f32], cols: usize) -> Vec<f32> {
        match act.apply(Isa::detect(), x, cols) {
            Encoded::Codes(codes, scales, offsets) => ActQuant::decode(&codes, &scales, &offsets, cols),
            Encoded::Values(v) => v,
        }
    }

    #[test]
    fn extremes_survive_and_zeros_stay() {
        let act = ActQuant::per_token(8).unwrap();
        let (codes, scales) = act.encode(Isa::detect(), &[0.0, 0.0, -1.27, 0.50], 2);
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
    fn scales_reach_as_far_as_they_say() {
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
        let runs = values(&ActQuant::asymmetric(4, 2).unwrap(), &[15.0, 3.6, 1.5, 0.36], 4);
        assert_eq!(runs[..2], [15.0, 4.0]);
        assert!((runs[2] - 1.5).abs() < 1e-6 && (runs[3] - 0.4).abs() < 1e-6);
        assert!(ActQuant::asymmetric(4, 0).is_err() && ActQuant::asymmetric(4, 3).unwrap().check(4).is_err());
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(ActQuant::fixed(8, bad).is_err() && ActQuant::channels(8, vec![1.0, bad]).is_err());
        }
        assert!(ActQuant::mxint(8, 0).is_err());
        assert!(ActQuant::channels(8, vec![1.0; 3]).unwrap().check(2).is_err());
    }

    #[test]
    fn ranges_are_found_on_what_was_seen() {
        let mut x: Vec<f32> = (0..2000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        x[1001] = 4.0;
        let stats = |needs| {
            let mut s = StatSet::new(2, needs, 0, 0).unwrap();
            s.observe(&MatView::new(&x, [1000, 2]).unwrap()).unwrap();
            s
        };
        let scale = |range, channels| {
            let plan = ActPlan::fixed(8, range, channels).unwrap();
            let needs = StatNeeds { sample: if plan.needs().sample > 0 { 1000 } else { 0 }, ..plan.needs() };
            plan.ready(Some(&stats(needs))).unwrap().scales().to_vec()
        };
        assert_eq!(scale(ActRange::Max, false), [4.0 / 127.0]);
        assert_eq!(scale(ActRange::Max, true), [1.0 / 127.0, 4.0 / 127.0]);
        assert!(scale(ActRange::Percentile(99.0), false)[0] <= 1.0 / 127.0);
        let at_four = ActPlan::fixed(4, ActRange::Mse, false).unwrap();
        let needs = StatNeeds { sample: 1000, ..StatNeeds::default() };
        let mse = at_four.ready(Some(&stats(needs))).unwrap().scales()[0];
        assert!(mse < 2.0 / 7.0, "one large value is not worth the rest");
        assert!(at_four.ready(None).is_err() && at_four.ready(Some(&stats(StatNeeds::default()))).is_err());
        for bad in [50.0, 100.1, f64::NAN] {
            assert!(ActPlan::fixed(8, ActRange::Percentile(bad), false).is_err());
        }
    }
}
