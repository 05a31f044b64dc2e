//! Parameters of SmoothQuant.

use tersor_core::{Check, ParamError};

/// Unchecked parameters of SmoothQuant (arXiv 2211.10438, equation 4): factors `s_j = max|X_j|^α / max|W_j|^(1 - α)` for each feature `j`, with the
/// maximum over the tokens seen in calibration and over the rows of all matrices that read the feature. By default `α` is 0.5.
///
/// Applies to inputs that come from a norm, as in the paper, and to inputs that can only be divided when the network runs
/// ([`Producer::Opaque`](tersor_core::Producer::Opaque)). Needs the extremes of each input channel.
///
/// ```
/// use tersor_groupwise::{Check, Rewrite, SmoothQuant};
/// # fn main() -> tersor_groupwise::Result<()> {
/// let rewrite = SmoothQuant::new().alpha(0.8).check()?;
/// assert_eq!(rewrite.name(), "smoothquant");
/// assert!(SmoothQuant::new().alpha(1.5).check().is_err());
/// # Ok(())
/// # }
/// ```
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
    /// Returns the default parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the migration strength `α`, 0 to 1: the share of the activations' magnitude that goes to the weights.
    pub fn alpha(self, alpha: f64) -> Self {
        Self { alpha }
    }
}

/// Checked parameters of SmoothQuant, and its [`Rewrite`](tersor_core::Rewrite): it needs the extremes of each input channel and folds factors into
/// norms and weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CheckedSmoothQuant {
    pub(super) alpha: f64,
}

impl Check for SmoothQuant {
    type Checked = CheckedSmoothQuant;
    fn check(self) -> Result<CheckedSmoothQuant, ParamError> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(ParamError::new("alpha", self.alpha, "must be 0 to 1"));
        }
        Ok(CheckedSmoothQuant { alpha: self.alpha })
    }
}
