//! The search of factors.

use tersor_core::rewrite::{Folding, Module, Smoothing};
use tersor_core::{Context, Method, Result, Site, StatNeeds};

use crate::smooth::{Trial, channels};

/// Exponents that are tried: `i / 20`.
const STEPS: usize = 20;

/// Tokens that losses are measured on.
const SAMPLE: usize = 4096;

/// `s = a^ρ`, `a` the mean magnitude of each feature, with the `ρ` of the least error in the outputs of the module: of q, k and v through the output
/// projection, of gate and up through the down projection.
pub struct Awq {
    trials: Vec<Box<dyn Method>>,
}

impl Awq {
    /// With a method that needs no data, which stands for what the weights will become: rounding to nearest on the same grid.
    pub fn new(trial: Box<dyn Method>) -> Self {
        Self::of(vec![trial])
    }

    /// With a method of its own for each matrix of a site, in their order; one stands for all.
    pub fn of(trials: Vec<Box<dyn Method>>) -> Self {
        Self { trials }
    }

    /// Factors of an exponent, their largest and smallest as far from 1.
    pub fn factors_of(mean: &[f64], exponent: f64) -> Vec<f32> {
        let mut factors: Vec<f64> = mean.iter().map(|a| a.powf(exponent).max(1e-4)).collect();
        let most = factors.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let least = factors.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = (most * least).sqrt();
        factors.iter_mut().for_each(|s| *s /= middle);
        factors.into_iter().map(|s| s as f32).collect()
    }
}

impl Smoothing for Awq {
    fn name(&self) -> String {
        "awq".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    /// All sites but those whose producer's features are shared.
    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, module: &Module<'_>, cx: &Context) -> Result<Option<Vec<f32>>> {
        let tokens = module.stats.tokens() as f64;
        let mean: Vec<f64> = channels(module)?.sum_abs.iter().map(|s| s / tokens).collect();
        let trial = Trial::new(module, &self.trials, true)?;
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
