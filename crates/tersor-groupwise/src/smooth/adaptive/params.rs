//! Parameters of adaptive smoothing.

use tersor_core::ParamError;
use tersor_core::stages::{Part, Slot, StageSpec, Target};
use tersor_core::{Result, Value};
use tersor_operators::ActQuant;

/// QQQ's adaptive smoothing (arXiv 2406.09904, section 3.1) as a [`Rewrite`](tersor_core::Rewrite), a change of stored weights before they
/// are quantized. For each [`Site`](tersor_core::Site) (an input and the matrices that read it, such as q, k and v) it divides the input
/// channels whose largest magnitude is above a threshold, and multiplies the columns of the matrices by the same factors.
///
/// For a threshold `t`, a channel with the largest magnitude `a > t` is divided by `a / t`; the others keep their scale. The search tries
/// 101 thresholds from the largest magnitude of the site's inputs, at which no channel is divided, down to 0.1. It takes the one with the
/// smallest squared error of the output of the module: for q, k and v that of attention before the output projection, for gate and up the
/// activations before the down projection, for another matrix its product with the inputs. The error is measured on a sample of calibration
/// tokens: the first whole sequences that have at most 4096 tokens together, but at least one sequence. In this search activations are
/// quantized per token, and each matrix by the data-free form ([`Method::plain`](tersor_core::Method::plain)) of the method that will
/// compress it.
///
/// The rewrite needs the extremes of each input channel and the sample. It errors if they are missing, or if a method has no data-free
/// form. Two kinds of sites are left unchanged: those whose inputs are at most 0.1 in magnitude, and those whose inputs come from a matrix
/// whose output features are used several times (the values of grouped-query attention).
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
    /// Returns the rewrite whose search quantizes the activations of all matrices to 8 bits: [`Adaptive::with_activations`] with the list
    /// `[8]`. The rewrite divides the input channels above a searched threshold and multiplies the matching columns of the weights. Never
    /// errors.
    pub fn new() -> Result<Self, ParamError> {
        Self::with_activations(&[8])
    }

    /// Returns the rewrite whose search quantizes activations to the numbers of bits in `bits`, with one scale for each token. `bits` is a
    /// list because the matrices of a [`Site`](tersor_core::Site), which read the same input (such as q, k and v), may quantize it
    /// differently. It holds one number for each matrix, in the order of the site's consumers, or one number for all of them; if it is
    /// empty, the search leaves activations in f32.
    ///
    /// Errors unless every number is 2 to 8. With several numbers, rewriting errors later for a site with another number of matrices.
    pub fn with_activations(bits: &[u32]) -> Result<Self, ParamError> {
        Ok(Self { activations: bits.iter().map(|b| ActQuant::per_token(*b)).collect::<Result<_, _>>()? })
    }
}

/// [`Adaptive`] in recipes: its search quantizes the activations of each matrix of the site, with one scale for each token, to the bits of
/// the matrix's stage of quantized activations, or to 8 bits without such a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AdaptiveStage;

impl StageSpec for AdaptiveStage {
    fn kind(&self) -> &'static str {
        "adaptive"
    }
    fn help(&self) -> &'static str {
        "Divides the input channels above a threshold that is searched for each site (arXiv 2406.09904)."
    }
    fn slot(&self) -> Slot {
        Slot::Transform
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        let bits = |value: Option<Value>| match value {
            Some(Value::Int(n)) => u32::try_from(n).unwrap_or(u32::MAX),
            _ => 8,
        };
        let bits: Vec<u32> = at.values(Slot::Activations, "bits").into_iter().map(bits).collect();
        Ok(vec![Part::Rewrite(Box::new(Adaptive::with_activations(&bits)?))])
    }
}
