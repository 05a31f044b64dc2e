//! Adaptive smoothing as a rewrite: for each site the threshold with the smallest error.

use tersor_core::{Context, Folding, Result, RowSource, SeenSite, Site, StatNeeds};

use super::Adaptive;
use super::algorithm::{factors, thresholds};
use crate::smooth::{Factors, Trial};

/// Number of tokens on which errors are measured.
const SAMPLE: usize = 4096;

impl Factors for Adaptive {
    const NAME: &'static str = "adaptive";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    /// Returns true for all sites except those whose producer uses a feature several times.
    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let c = seen.stats.require_channel()?;
        let max = c.max.iter().copied().fold(0f32, f32::max).max(-c.min.iter().copied().fold(0f32, f32::min));
        let thresholds = thresholds(max);
        if thresholds.is_empty() {
            return Ok(None);
        }
        let trial = Trial::new(seen, weights, &self.activations, false)?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for threshold in thresholds {
            let factors = factors(&c.min, &c.max, threshold);
            let loss = trial.loss(&factors, cx)?;
            if best.as_ref().is_none_or(|b| loss < b.0) {
                best = Some((loss, factors));
            }
        }
        Ok(best.map(|b| b.1).filter(|f| f.iter().any(|v| *v != 1.0)))
    }
}
