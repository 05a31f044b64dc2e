//! SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4).

use tersor_core::{
    Check, Context, Folding, ParamError, Producer, Result, RowSource, SeenSite, Site, StatNeeds, read_finite,
};

use super::{Factors, largest};

/// Parameters, unchecked: a strength of 0.5.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SmoothQuant {
    alpha: f64,
}

impl Default for SmoothQuant {
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl SmoothQuant {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How much of the inputs' magnitude goes to the weights, 0 to 1: `s = max|X|^alpha / max|W|^(1 - alpha)` for each feature, at least 1e-5.
    pub fn alpha(self, alpha: f64) -> Self {
        Self { alpha }
    }
}

/// Checked parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CheckedSmoothQuant(f64);

impl Check for SmoothQuant {
    type Checked = CheckedSmoothQuant;
    fn check(self) -> Result<CheckedSmoothQuant, ParamError> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(ParamError::new("alpha", self.alpha, "must be 0 to 1"));
        }
        Ok(CheckedSmoothQuant(self.alpha))
    }
}

/// Smallest magnitude and factor.
const MIN: f64 = 1e-5;

impl Factors for CheckedSmoothQuant {
    const NAME: &'static str = "smoothquant";

    fn needs(&self) -> StatNeeds {
        StatNeeds { channel: true, ..StatNeeds::default() }
    }

    /// Covers outputs of norms, as in the paper, and inputs whose producer cannot take factors.
    fn covers(&self, site: &Site) -> bool {
        matches!(site.producer, Producer::Norm { .. }) || site.folding() == Folding::Online
    }

    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>> {
        let inputs = largest(seen.stats.require_channel()?);
        let mut columns = vec![0f32; inputs.len()];
        for w in weights {
            cx.cancel.check()?;
            let [rows, cols] = w.shape();
            const PART: usize = 1024;
            for first in (0..rows).step_by(PART) {
                let values = read_finite(*w, first..(first + PART).min(rows))?;
                for row in values.chunks_exact(cols.max(1)) {
                    columns.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs()));
                }
            }
        }
        let factor = |(x, w): (&f32, &f32)| {
            let (x, w) = (f64::from(*x).max(MIN), f64::from(*w).max(MIN));
            (x.powf(self.0) / w.powf(1.0 - self.0)).max(MIN) as f32
        };
        Ok(Some(inputs.iter().zip(&columns).map(factor).collect()))
    }
}
