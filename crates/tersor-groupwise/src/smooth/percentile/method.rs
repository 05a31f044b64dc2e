//! Percentile smoothing as a rewrite.

use tersor_core::{Context, Folding, Producer, Result, RowSource, SeenSite, Site, StatNeeds};

use super::Percentile;
use super::algorithm::factors;
use crate::smooth::{Factors, largest_magnitudes};

impl Factors for Percentile {
    const NAME: &'static str = "percentile";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, ..StatNeeds::default() }
    }

    /// Returns true for inputs that come from a norm or a gated product, and for inputs whose producer takes no factors; false for attention outputs.
    fn covers(&self, site: &Site) -> bool {
        match site.producer {
            Producer::Linear { block, repeat, .. } => repeat == 1 && block == site.features,
            _ => site.folding() != Folding::Shared,
        }
    }

    fn factors(&self, seen: &SeenSite<'_>, _: &[&dyn RowSource], _: &Context) -> Result<Option<Vec<f32>>> {
        Ok(factors(&largest_magnitudes(seen.stats.require_channel()?)))
    }
}
