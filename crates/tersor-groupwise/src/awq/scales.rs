//! [`Awq`]: the search of factors.

use tersor_core::{Context, Folding, Result, RowSource, SeenSite, Site, StatNeeds};

use crate::smooth::{Factors, Trial};

/// Exponents that are tried: `i / 20`.
const STEPS: usize = 20;

/// Tokens that losses are measured on.
const SAMPLE: usize = 4096;

/// Factors `s = a^ρ`, `a` the mean magnitude of each feature, with the `ρ` of the smallest error in the outputs of the module: of q, k and v through
/// the output projection, of gate and up through the down projection. Weights are rounded by the methods without data that stand for what they will
/// become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Awq;

impl Awq {
    /// Returns the search.
    pub fn new() -> Self {
        Self
    }

    /// Returns the factors of an exponent, scaled so that the product of the largest and the smallest is 1.
    pub fn factors_of(mean: &[f64], exponent: f64) -> Vec<f32> {
        let mut factors: Vec<f64> = mean.iter().map(|a| a.powf(exponent).max(1e-4)).collect();
        let max = factors.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let min = factors.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = (max * min).sqrt();
        factors.iter_mut().for_each(|s| *s /= middle);
        factors.into_iter().map(|s| s as f32).collect()
    }
}

impl Factors for Awq {
    const NAME: &'static str = "awq";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    /// Covers all sites but those whose producer uses a feature several times.
    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let tokens = seen.stats.weight();
        let mean: Vec<f64> = seen.stats.require_channel()?.sum_abs.iter().map(|s| s / tokens).collect();
        let trial = Trial::new(seen, weights, &[], true)?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for i in 0..STEPS {
            let factors = Self::factors_of(&mean, i as f64 / STEPS as f64);
            let loss = trial.loss(&factors, cx)?;
            if best.as_ref().is_none_or(|b| loss < b.0) {
                best = Some((loss, factors));
            }
        }
        Ok(best.map(|b| b.1).filter(|f| f.iter().any(|v| *v != 1.0)))
    }
}
