//! DGQ's clipping by percentile (Zhang et al., arXiv 2310.04836, section 3.3): the few channels above it are brought down to it.

use tersor_core::rewrite::{Folding, Module, Smoothing};
use tersor_core::{Context, Producer, Result, Site, StatNeeds};

use super::{channels, largest};

/// Divides the half percent of channels with the largest inputs by what they have above the next; the others stay as they are. Afterwards no input
/// seen in calibration is larger than that baseline.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Percentile;

impl Smoothing for Percentile {
    fn name(&self) -> String {
        "percentile".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, ..StatNeeds::default() }
    }

    /// What a norm or a gated product makes, not attention's output; and where there is nothing to fold into.
    fn covers(&self, site: &Site) -> bool {
        match site.producer {
            Producer::Linear { block, repeat, .. } => repeat == 1 && block == site.features,
            _ => site.folding() != Folding::Shared,
        }
    }

    fn factors(&self, module: &Module<'_>, _: &Context) -> Result<Option<Vec<f32>>> {
        let inputs = largest(channels(module)?);
        let mut sorted = inputs.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let rank = (0.005 * inputs.len() as f64 + 1.5) as usize;
        let Some(&baseline) = sorted.get(rank.saturating_sub(1)) else { return Ok(None) };
        if baseline < 1e-4 {
            return Ok(None);
        }
        Ok(Some(inputs.iter().map(|a| (a / baseline).max(1.0)).collect()))
    }
}
