//! [`Percentile`]: it has no parameters.

use tersor_core::Result;
use tersor_core::stages::{Part, Slot, StageSpec, Target};

/// DGQ's percentile smoothing (arXiv 2310.04836, section 3.3) as a [`Rewrite`](tersor_core::Rewrite), a change of stored weights before
/// they are quantized. For each [`Site`](tersor_core::Site) (an input and the matrices that read it, such as q, k and v) it divides the 0.5
/// % of the input channels with the largest magnitudes, and multiplies the columns of the matrices by the same factors. The number of these
/// channels is rounded to the nearest integer, so that it is 0 for fewer than 100 channels.
///
/// Let the baseline be the largest magnitude of the next channel, the first that is not among the 0.5 %. Each channel among the 0.5 % is
/// divided by the ratio of its largest magnitude to the baseline, so that no input seen in calibration exceeds the baseline afterwards; the
/// other channels keep their scale. Sites whose baseline is below 1e-4 are left unchanged.
///
/// The rewrite applies to inputs that come from a norm or a gated product, and to inputs that can only be divided when the network runs
/// ([`Producer::Opaque`](tersor_core::Producer::Opaque)). It needs the extremes of each input channel, and errors if they are missing.
///
/// ```
/// use tersor_groupwise::{Percentile, Rewrite};
/// assert_eq!(Percentile.name(), "percentile");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Percentile;

impl StageSpec for Percentile {
    fn kind(&self) -> &'static str {
        "percentile"
    }
    fn help(&self) -> &'static str {
        "Divides the largest input channels down to a percentile of all (arXiv 2310.04836)."
    }
    fn slot(&self) -> Slot {
        Slot::Transform
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Rewrite(Box::new(*self))])
    }
}
