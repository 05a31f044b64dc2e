//! AWQ as a rewrite: for each site the exponent with the smallest error.

use tersor_core::{Context, Folding, Result, RowSource, SeenSite, Site, StatNeeds};

use super::Awq;
use super::algorithm::exponents;
use crate::smooth::{Factors, Trial};

/// Number of tokens on which errors are measured.
const SAMPLE: usize = 4096;

impl Factors for Awq {
    const NAME: &'static str = "awq";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, sample: SAMPLE, ..StatNeeds::default() }
    }

    /// Returns true for all sites except those whose producer uses a feature several times.
    fn covers(&self, site: &Site) -> bool {
        site.folding() != Folding::Shared
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let tokens = seen.stats.require_weight()?;
        let mean: Vec<f64> = seen.stats.require_channel()?.sum_abs.iter().map(|s| s / tokens).collect();
        let trial = Trial::new(seen, weights, &[], true)?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for exponent in exponents() {
            let factors = Self::factors_of(&mean, exponent);
            let loss = trial.loss(&factors, cx)?;
            if best.as_ref().is_none_or(|b| loss < b.0) {
                best = Some((loss, factors));
            }
        }
        Ok(best.map(|b| b.1).filter(|f| f.iter().any(|v| *v != 1.0)))
    }
}
