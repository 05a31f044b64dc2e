//! Parameters of SmoothQuant.

use tersor_core::stages::{Fields, Part, Slot, StageSpec, Target};
use tersor_core::{Check, ParamError, Result};

/// Unchecked parameters of SmoothQuant (arXiv 2211.10438, equation 4): input feature `j` is divided by the factor `s_j = max|X_j|^α /
/// max|W_j|^(1 - α)`, and column `j` of the weights is multiplied by `s_j`. The maximum of `X_j` is over the tokens seen in calibration,
/// that of `W_j` over the rows of all matrices that read the feature. Maxima and factors below 1e-5 count as 1e-5. By default `α` is 0.5.
///
/// It applies to inputs that come from a norm, as in the paper, and to inputs that can only be divided when the network runs
/// ([`Producer::Opaque`](tersor_core::Producer::Opaque)). It needs the extremes of each input channel.
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
    /// Returns the default parameters: the migration strength `α` is 0.5.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the migration strength `α`: the share of the activations' magnitude that goes to the weights; 0.5 by default. `check()` errors
    /// unless it is 0 to 1.
    pub fn alpha(self, alpha: f64) -> Self {
        Self { alpha }
    }
}

/// Checked parameters of SmoothQuant, made by `check()` of a [`SmoothQuant`]. It is a [`Rewrite`](tersor_core::Rewrite), a change of stored
/// weights before they are quantized: the stored weight of each normalization layer is divided by SmoothQuant's factors, one for each
/// channel, and the columns of the matrices that read the layer's output are multiplied by the same factors. Inputs with
/// [`Producer::Opaque`](tersor_core::Producer::Opaque) (a producer that takes no factors) are divided when the network runs. The rewrite
/// needs the extremes of each input channel, and errors if they are missing.
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

impl StageSpec for SmoothQuant {
    fn kind(&self) -> &'static str {
        "smoothquant"
    }
    fn help(&self) -> &'static str {
        "Moves magnitude from the activations to the weights by a fixed rule (arXiv 2211.10438)."
    }
    fn slot(&self) -> Slot {
        Slot::Transform
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        let help = "Migration strength: the share of the activations' magnitude that goes to the weights.";
        f.float("alpha", help, 0.0..=1.0, &mut self.alpha)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Rewrite(Box::new(self.check()?))])
    }
    fn words(&self) -> Vec<&'static str> {
        vec!["smooth"]
    }
}
