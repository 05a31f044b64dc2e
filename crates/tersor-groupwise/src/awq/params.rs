//! [`Awq`]: it has no parameters.

/// The [`Rewrite`](tersor_core::Rewrite) that scales the input features of each [`Site`](tersor_core::Site) (matrices with the same input, such as
/// q, k and v) by AWQ's factors `s = a^ρ` (arXiv 2306.00978, section 3.2), with `a` the mean magnitude of each feature: the columns of the matrices
/// are multiplied by `s`, the norm or the matrix that produces the inputs is divided by it, or, with
/// [`Producer::Opaque`](tersor_core::Producer::Opaque), the inputs when the network runs.
///
/// For each site, `ρ` is the one of `0, 1/20, …, 19/20` with the smallest squared error of the module's output on a sample of 4096 tokens: the
/// outputs of q, k and v are compared after the output projection, those of gate and up after the down projection. During the search weights are
/// quantized by the data-free form ([`Method::plain`](tersor_core::Method::plain)) of their own method.
///
/// Fails if a method has no data-free form, or the statistics of the inputs lack sums and extremes of features or the sample of tokens
/// ([`StatNeeds`](tersor_core::StatNeeds)). Sites whose inputs come from a producer that uses a feature several times (the values of grouped-query
/// attention) are left unchanged.
///
/// ```
/// use tersor_groupwise::{Awq, Rewrite};
/// assert_eq!(Awq::new().name(), "awq");
/// assert_eq!(Awq::factors_of(&[1.0, 4.0], 0.5), [0.70710677, 1.4142135]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Awq;

impl Awq {
    /// Returns the rewrite.
    pub fn new() -> Self {
        Self
    }
}
