//! QQQ's adaptive smoothing (Zhang et al., arXiv 2406.09904, section 3.1): only channels above a threshold are divided, and the threshold is the one
//! with the least error in the module's outputs.

use tersor_core::rewrite::{Folding, Module, Smoothing};
use tersor_core::{Context, Method, Result, Site, StatNeeds};

use super::{Trial, channels};

/// Least threshold.
const LEAST: f32 = 0.1;

/// Thresholds that are tried.
const STEPS: usize = 100;

/// Tokens that losses are measured on.
const SAMPLE: usize = 4096;

/// The search, with methods that stand for what weights and activations will become.
pub struct Adaptive {
    trials: Vec<Box<dyn Method>>,
}

impl Adaptive {
    /// With a method that needs no data: rounding to nearest, its inputs quantized too.
    pub fn new(trial: Box<dyn Method>) -> Self {
        Self::of(vec![trial])
    }

    /// With a method of its own for each matrix of a site, in their order; one stands for all.
    pub fn of(trials: Vec<Box<dyn Method>>) -> Self {
        Self { trials }
    }

    /// Thresholds from `most` down: evenly, as the authors' code has them, while their steps are at most half a unit; with larger inputs, whose
    /// thresholds of interest are still small, in equal ratios.
    fn thresholds(most: f32) -> Vec<f32> {
        let even = most <= 0.5 * STEPS as f32;
        let step = |i: usize| {
            let share = i as f32 / STEPS as f32;
            if even { most - share * (most - LEAST) } else { most * (LEAST / most).powf(share) }
        };
        (0..=STEPS).map(step).collect()
    }
}

impl Smoothing for Adaptive {
    fn name(&self) -> String {
        "adaptive".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, module: &Module<'_>, cx: &Context) -> Result<Option<Vec<f32>>> {
        let c = channels(module)?;
        let most = c.max.iter().copied().fold(0f32, f32::max).max(-c.min.iter().copied().fold(0f32, f32::min));
        if most <= LEAST {
            return Ok(None);
        }
        let trial = Trial::new(module, &self.trials, false)?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for t in Self::thresholds(most) {
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
