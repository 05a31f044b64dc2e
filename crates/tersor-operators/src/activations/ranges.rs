//! [`ActPlan`]: quantizers of activations whose static scales are computed from calibration data.

use tersor_core::{Bits, ParamError, Result, StatNeeds, StatSet};

use super::ActQuant;

/// How the largest magnitude that a static scale covers is chosen from the activations seen in calibration: the maximum of their magnitudes
/// ([`ActRange::Max`]), a percentile of the magnitudes ([`ActRange::Percentile`]), or the limit at which quantization has the smallest
/// squared error ([`ActRange::Mse`]). There is no default. The scale is the chosen magnitude divided by the largest code, `2^(bits-1) - 1`.
/// Activations beyond the codes are clamped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ActRange {
    /// The largest magnitude of all tokens seen.
    Max,
    /// This percentile of the magnitudes of a sample of tokens, in percent: above 50 and at most 100.
    Percentile(f64),
    /// The largest magnitude of a sample of tokens times `1 - i / 100`, with the `i` from 0 to 79 for which quantizing the sample has the
    /// smallest squared error.
    Mse,
}

/// A quantizer of activations before calibration. It is a quantizer that needs no calibration ([`ActPlan::Ready`]), or a symmetric one with
/// one static scale for all values ([`ActPlan::Fixed`]) or for each feature ([`ActPlan::Channels`]). [`ActPlan::ready`] computes static
/// scales from statistics of the inputs. There is no default.
///
/// ```
/// use tersor_core::{StatNeeds, StatSet};
/// use tersor_operators::{ActPlan, ActRange, MatView};
/// # fn main() -> tersor_operators::Result<()> {
/// let plan = ActPlan::fixed(8, ActRange::Max, false)?;
/// let mut stats = StatSet::new(2, plan.needs(), 0, 0)?;
/// stats.observe(&MatView::new(&[1.0f32, -127.0, 3.0, 5.0], [2, 2])?)?;
/// assert_eq!(plan.ready(&stats)?.scales(), [1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub enum ActPlan {
    /// A quantizer that needs no calibration.
    Ready(ActQuant),
    /// A symmetric quantizer with one static scale for all values: bits of a code, 2 to 8, and how the range is chosen.
    Fixed(Bits, ActRange),
    /// A symmetric quantizer with one static scale for each feature: bits of a code, 2 to 8, and how the range is chosen.
    Channels(Bits, ActRange),
}

/// Number of tokens of the sample on which ranges are chosen.
const SAMPLE: usize = 512;

impl ActPlan {
    /// Returns the plan of a symmetric quantizer to `bits` bits with static scales, which are computed from calibration data as `range`
    /// says: one scale for each feature if `channels`, otherwise one for all values. Errors unless `bits` is 2 to 8 and the percentile of
    /// an [`ActRange::Percentile`] is above 50 and at most 100.
    pub fn fixed(bits: u32, range: ActRange, channels: bool) -> Result<Self, ParamError> {
        range.check()?;
        let bits = Bits::within(bits, 2, 8)?;
        Ok(if channels { Self::Channels(bits, range) } else { Self::Fixed(bits, range) })
    }

    /// Returns the number of bits of a code.
    pub fn bits(&self) -> Bits {
        match self {
            Self::Ready(act) => act.bits(),
            Self::Fixed(bits, _) | Self::Channels(bits, _) => *bits,
        }
    }

    /// Returns the statistics of the inputs that [`ActPlan::ready`] reads: the extremes of each feature for [`ActRange::Max`], a sample of
    /// 512 tokens for the other ranges, nothing for [`ActPlan::Ready`].
    pub fn needs(&self) -> StatNeeds {
        match self {
            Self::Ready(_) => StatNeeds::default(),
            Self::Fixed(_, ActRange::Max) | Self::Channels(_, ActRange::Max) => {
                StatNeeds { channel: true, ..StatNeeds::default() }
            }
            Self::Fixed(..) | Self::Channels(..) => StatNeeds { sample: SAMPLE, ..StatNeeds::default() },
        }
    }

    /// Returns the number of static scales that the quantizer stores: 1 for [`ActPlan::Fixed`], and `features`, the number of features of
    /// its inputs, for [`ActPlan::Channels`]. For [`ActPlan::Ready`] it is the number of scales that the quantizer holds
    /// ([`ActQuant::scales`]), 0 if scales are computed at run time; `features` is not read then.
    pub fn scales(&self, features: usize) -> usize {
        match self {
            Self::Ready(act) => act.scales().len(),
            Self::Fixed(..) => 1,
            Self::Channels(..) => features,
        }
    }

    /// Returns the quantizer, with static scales computed from `stats`, the statistics of the inputs that it will quantize. A scale whose
    /// activations are all zero is 1. [`ActPlan::Ready`] returns its quantizer and does not read `stats`. Errors if `stats` lacks what
    /// [`ActPlan::needs`] names or has seen no token, the bits are not 2 to 8, or a percentile is not above 50 and at most 100.
    pub fn ready(&self, stats: &StatSet) -> Result<ActQuant> {
        let (bits, range, channels) = match self {
            Self::Ready(act) => return Ok(act.clone()),
            Self::Fixed(bits, range) => (*bits, *range, false),
            Self::Channels(bits, range) => (*bits, *range, true),
        };
        // The variants are public, so the parameters may not have been checked.
        range.check()?;
        Bits::within(bits.get(), 2, 8)?;
        let k = stats.features();
        let largest: Vec<f32> = match range {
            ActRange::Max => {
                let c = stats.require_channel()?;
                let each: Vec<f32> = c.min.iter().zip(&c.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect();
                if channels { each } else { vec![each.into_iter().fold(0.0, f32::max)] }
            }
            _ => {
                let sample = stats.require_sample()?;
                let own = |k0: usize| -> Vec<f32> { sample.iter().skip(k0).step_by(k).map(|v| v.abs()).collect() };
                let all = || sample.iter().map(|v| v.abs()).collect();
                let sets = if channels { (0..k).map(own).collect() } else { vec![all()] };
                sets.into_iter().map(|v| limit(v, bits, range)).collect()
            }
        };
        let max = ((1u32 << (bits.get() - 1)) - 1) as f32;
        let scales = largest.into_iter().map(|m| if m / max < f32::MIN_POSITIVE { 1.0 } else { m / max });
        let scales: Vec<f32> = scales.collect();
        Ok(if channels { ActQuant::channels(bits.get(), scales)? } else { ActQuant::fixed(bits.get(), scales[0])? })
    }
}

impl ActRange {
    /// Errors unless a percentile is above 50 and at most 100.
    fn check(self) -> Result<(), ParamError> {
        match self {
            ActRange::Percentile(p) if !(p > 50.0 && p <= 100.0) => {
                Err(ParamError::new("percentile", p, "must be above 50 and at most 100"))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the limit of the range for the given magnitudes.
fn limit(mut magnitudes: Vec<f32>, bits: Bits, range: ActRange) -> f32 {
    magnitudes.sort_by(f32::total_cmp);
    let Some(&max) = magnitudes.last() else { return 0.0 };
    match range {
        ActRange::Max => max,
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
            let tops = (0..80).map(|i| max * (1.0 - i as f32 / 100.0));
            let best = tops.map(|t| (error(t), t)).min_by(|a, b| a.0.total_cmp(&b.0));
            best.map_or(max, |b| b.1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::MatView;

    #[test]
    fn ranges_follow_from_the_sample() {
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
            plan.ready(&stats(needs)).unwrap().scales().to_vec()
        };
        assert_eq!(scale(ActRange::Max, false), [4.0 / 127.0]);
        assert_eq!(scale(ActRange::Max, true), [1.0 / 127.0, 4.0 / 127.0]);
        assert!(scale(ActRange::Percentile(99.0), false)[0] <= 1.0 / 127.0);
        let at_four = ActPlan::fixed(4, ActRange::Mse, false).unwrap();
        let needs = StatNeeds { sample: 1000, ..StatNeeds::default() };
        let mse = at_four.ready(&stats(needs)).unwrap().scales()[0];
        assert!(mse < 2.0 / 7.0, "one large value is not worth the rest");
        assert!(at_four.ready(&StatSet::none()).is_err() && at_four.ready(&stats(StatNeeds::default())).is_err());
        for bad in [50.0, 100.1, f64::NAN] {
            assert!(ActPlan::fixed(8, ActRange::Percentile(bad), false).is_err());
        }
    }
}
