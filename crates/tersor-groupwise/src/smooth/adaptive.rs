//! QQQ's adaptive smoothing (Zhang et al., arXiv 2406.09904, section 3.1): only channels above a threshold are divided, and the threshold is the one
//! with the least error in the module's outputs.

use tersor_core::{Context, Folding, ParamError, Result, RowSource, SeenSite, Site, StatNeeds};
use tersor_operators::ActQuant;

use super::{Factors, Trial};

/// Smallest threshold.
const MIN: f32 = 0.1;

/// Thresholds that are tried.
const STEPS: usize = 100;

/// Tokens that losses are measured on.
const SAMPLE: usize = 4096;

/// The search, with activations rounded by token to 8 bits unless set otherwise, and weights by the methods without data that stand for what they
/// will become.
#[derive(Clone, PartialEq, Debug)]
pub struct Adaptive {
    activations: Vec<ActQuant>,
}

impl Adaptive {
    /// Returns the search for 8-bit activations.
    pub fn new() -> Result<Self, ParamError> {
        Self::with_activations(&[8])
    }

    /// Returns the search for activations of so many bits, for each matrix of a site in their order, or one number for all. Errors unless bits are
    /// 2 to 8.
    pub fn with_activations(bits: &[u32]) -> Result<Self, ParamError> {
        Ok(Self { activations: bits.iter().map(|b| ActQuant::per_token(*b)).collect::<Result<_, _>>()? })
    }

    /// Returns the thresholds to try, from `max` down: in equal steps, as the authors' code has them, while these are at most half a unit; for larger
    /// inputs, whose thresholds of interest are still small, in equal ratios.
    fn thresholds(max: f32) -> Vec<f32> {
        let even = max <= 0.5 * STEPS as f32;
        let step = |i: usize| {
            let share = i as f32 / STEPS as f32;
            if even { max - share * (max - MIN) } else { max * (MIN / max).powf(share) }
        };
        (0..=STEPS).map(step).collect()
    }
}

impl Factors for Adaptive {
    const NAME: &'static str = "adaptive";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let c = seen.stats.require_channel()?;
        let max = c.max.iter().copied().fold(0f32, f32::max).max(-c.min.iter().copied().fold(0f32, f32::min));
        if max <= MIN {
            return Ok(None);
        }
        let trial = Trial::new(seen, weights, &self.activations, false)?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for t in Self::thresholds(max) {
            let factor = |(lo, hi): (&f32, &f32)| (hi / t).max(lo / -t).max(1.0);
            let factors: Vec<f32> = c.min.iter().zip(&c.max).map(factor).collect();
            let loss = trial.loss(&factors, cx)?;
            if best.as_ref().is_none_or(|b| loss < b.0) {
                best = Some((loss, factors));
            }
        }
        Ok(best.map(|b| b.1).filter(|f| f.iter().any(|v| *v != 1.0)))
    }
}
