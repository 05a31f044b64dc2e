//! SmoothQuant as a rewrite.

use tersor_core::{Context, Folding, Producer, Result, RowSource, SeenSite, Site, StatNeeds, read_finite};

use super::CheckedSmoothQuant;
use super::algorithm::{factors, raise_to_columns};
use crate::smooth::{Factors, largest_magnitudes};

/// Number of rows that are read at once.
const PART: usize = 1024;

impl Factors for CheckedSmoothQuant {
    const NAME: &'static str = "smoothquant";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, ..StatNeeds::default() }
    }

    /// Returns true for inputs that come from a norm, as in the paper, and for inputs whose producer takes no factors.
    fn covers(&self, site: &Site) -> bool {
        matches!(site.producer, Producer::Norm { .. }) || site.folding() == Folding::Online
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let inputs = largest_magnitudes(seen.stats.require_channel()?);
        let mut columns = vec![0f32; inputs.len()];
        for w in weights {
            cx.cancel.check()?;
            let [rows, cols] = w.shape();
            for first in (0..rows).step_by(PART) {
                raise_to_columns(&mut columns, &read_finite(*w, first..(first + PART).min(rows))?, cols);
            }
        }
        Ok(Some(factors(&inputs, &columns, self.alpha)))
    }
}
