//! [`Awq`]: it has no parameters.

use tersor_core::Result;
use tersor_core::stages::{Fields, Named, Part, Slot, StageSpec, Target};

use crate::output_clip::clip_part;

/// AWQ as a [`Rewrite`](tersor_core::Rewrite), a change of stored weights before they are quantized (arXiv 2306.00978, section 3.2). For
/// each [`Site`](tersor_core::Site) (an input and the matrices that read it, such as q, k and v) it divides each input feature by a factor
/// and multiplies the matching columns of the matrices by the same factor. The factors are `a^ρ`, normalized as [`Awq::factors_of`] says,
/// where `a` is the mean magnitude of each feature. To divide the features, the rewrite divides the stored norm or matrix that produces the
/// input by the factors; with [`Producer::Opaque`](tersor_core::Producer::Opaque) (a producer that takes no factors) the inputs are divided
/// when the network runs.
///
/// For each site, the exponent `ρ` is chosen among the 20 values `0, 1/20, …, 19/20`: the one with the smallest squared error of the output
/// of the module (attention or feed-forward block). The error is measured on a sample of calibration tokens: the first whole sequences that
/// have at most 4096 tokens together, but at least one sequence. The outputs of q, k and v are compared after the output projection, those
/// of gate and up after the down projection. In this search each matrix is quantized by the data-free form
/// ([`Method::plain`](tersor_core::Method::plain)) of the method that will compress it.
///
/// The rewrite errors if such a method has no data-free form, or if the statistics of the inputs lack sums and extremes of features or the
/// sample of tokens ([`StatNeeds`](tersor_core::StatNeeds)). Sites whose inputs come from a matrix whose output features are used several
/// times (the values of grouped-query attention) are left unchanged.
///
/// ```
/// use tersor_groupwise::{Awq, Rewrite};
/// assert_eq!(Awq::new().name(), "awq");
/// assert_eq!(Awq::factors_of(&[1.0, 4.0], 0.5), [0.70710677, 1.4142135]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Awq;

impl Awq {
    /// Returns the AWQ rewrite, which has no parameters.
    pub fn new() -> Self {
        Self
    }
}

/// AWQ in recipes: the rewrite, and the clip search on the grid of the stage that quantizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AwqStage {
    clip: bool,
}

impl StageSpec for AwqStage {
    fn kind(&self) -> &'static str {
        "awq"
    }
    fn help(&self) -> &'static str {
        "Scales input channels by a power of their magnitude that is searched for each site (arXiv 2306.00978)."
    }
    fn slot(&self) -> Slot {
        Slot::Transform
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        let help =
            "Whether the range of each group is clipped by the error of the outputs; never for queries and keys.";
        f.flag("clip", help, &mut self.clip)
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        let mut parts = vec![Part::Rewrite(Box::new(Awq::new()))];
        if self.clip {
            parts.extend(clip_part(at)?);
        }
        Ok(parts)
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        recipe.push(Box::new(Self { clip: true }));
        Ok(())
    }
}
