//! DGQ's clipping by percentile (Zhang et al., arXiv 2310.04836, section 3.3): the few channels above it are brought down to it.

use tersor_core::{Context, Folding, Producer, Result, RowSource, SeenSite, Site, StatNeeds};

use super::{Factors, largest};

/// Divides the half percent of channels with the largest inputs by the ratio of their magnitude to that of the next channel, the baseline; the
/// others stay as they are. Afterwards no input seen in calibration is larger than the baseline.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Percentile;

impl Factors for Percentile {
    const NAME: &'static str = "percentile";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, ..StatNeeds::default() }
    }

    /// Covers outputs of norms and gated products, not attention's output, and inputs whose producer cannot take factors.
    fn covers(&self, site: &Site) -> bool {
        match site.producer {
            Producer::Linear { block, repeat, .. } => repeat == 1 && block == site.features,
            _ => site.folding() != Folding::Shared,
        }
    }

    fn factors(&self, seen: &SeenSite<'_>, _: &[&dyn RowSource], _: &Context) -> Result<Option<Vec<f32>>> {
        let inputs = largest(seen.stats.require_channel()?);
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
