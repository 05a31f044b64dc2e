//! Parameters of adaptive smoothing.

use tersor_core::ParamError;
use tersor_operators::ActQuant;

/// The [`Rewrite`](tersor_core::Rewrite) that smooths the input channels of each [`Site`](tersor_core::Site) (matrices with the same input) above a
/// searched threshold (QQQ, arXiv 2406.09904, section 3.1).
///
/// For a threshold `t`, a channel with the largest magnitude `a > t` is divided by `a / t`; the others keep their scale. Of 101 thresholds, the one
/// with the smallest squared error of the module's output on a sample of 4096 tokens is taken, with activations quantized per token and weights by
/// the data-free form ([`Method::plain`](tersor_core::Method::plain)) of their own method. Sites whose inputs are at most 0.1 in magnitude are left
/// unchanged. Needs the extremes of each input channel and the sample.
///
/// ```
/// use tersor_groupwise::{Adaptive, Rewrite};
/// # fn main() -> tersor_groupwise::Result<()> {
/// assert_eq!(Adaptive::new()?.name(), "adaptive");
/// assert!(Adaptive::with_activations(&[9]).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Adaptive {
    pub(super) activations: Vec<ActQuant>,
}

impl Adaptive {
    /// Returns the rewrite for 8-bit activations, [`Adaptive::with_activations`] of `[8]`. Does not fail.
    pub fn new() -> Result<Self, ParamError> {
        Self::with_activations(&[8])
    }

    /// Returns the rewrite for activations of `bits` bits: one number for each matrix of a [`Site`](tersor_core::Site), in order, or one for all of
    /// them; with none, activations are not quantized in the search. Errors unless all are 2 to 8. With several numbers the rewrite fails for sites
    /// with another number of matrices.
    pub fn with_activations(bits: &[u32]) -> Result<Self, ParamError> {
        Ok(Self { activations: bits.iter().map(|b| ActQuant::per_token(*b)).collect::<Result<_, _>>()? })
    }
}
