//! [`Percentile`]: it has no parameters.

/// The [`Rewrite`](tersor_core::Rewrite) that smooths, for each [`Site`](tersor_core::Site) (matrices with the same input), the 0.5 % of channels
/// with the largest inputs (DGQ, arXiv 2310.04836, section 3.3).
///
/// The largest magnitude of the first channel below them is the baseline; each of them is divided by the ratio of its largest magnitude to the
/// baseline, the other channels keep their scale. Afterwards no input seen in calibration exceeds the baseline. Sites whose baseline is below 1e-4
/// are left unchanged. Applies to inputs that come from a norm or a gated product, and to inputs that can only be divided when the network runs
/// ([`Producer::Opaque`](tersor_core::Producer::Opaque)). Needs the extremes of each input channel.
///
/// ```
/// use tersor_groupwise::{Percentile, Rewrite};
/// assert_eq!(Percentile.name(), "percentile");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Percentile;
