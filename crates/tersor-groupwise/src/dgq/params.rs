//! Parameters of dual-grained quantization.

use tersor_core::stages::{Fields, Named, Part, Segment, Slot, StageSpec, Target};
use tersor_core::{Check, Context, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::DualLinear;

use crate::{CheckedRtn, Percentile, Rtn};

/// Unchecked parameters of dual-grained quantization (DGQ, arXiv 2310.04836, section 3.2): 4-bit codes, an integer scale and a zero point
/// for each group of input features, and an f16 scale for each row. The only parameter is the group size, by default 128 features.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Dgq::new().group(16).quantize(&MatView::new(&weights, [8, 32])?, &stats)?;
/// assert_eq!(op.group_scales().len(), 8 * 2);
/// assert!(report.data_error < report.data_energy);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dgq {
    group: usize,
}

impl Default for Dgq {
    fn default() -> Self {
        Self { group: 128 }
    }
}

impl Dgq {
    /// Returns the default parameters: groups of 128 input features. Codes always have 4 bits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of consecutive input features of a row that share an integer scale and a zero point; 128 by default. The last group
    /// of a row may be shorter. `check()` errors for 0. Quantizing errors if `group` is above 32 768, unless it is a multiple of 32 768 or
    /// at least the number of input features.
    pub fn group(self, group: usize) -> Self {
        Self { group }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`. `stats` are calibration statistics of the inputs of `w` and
    /// must hold their Gram matrix `XᵀX`. Returns the quantized matrix, and a report with the squared errors of weights and outputs.
    ///
    /// Errors if the group size is invalid (see [`Dgq::group`]), the Gram matrix is missing or of another number of features, `stats` have
    /// seen no token of a weight above 0, a weight is not finite, the scale of a row overflows f16, or there are more than 131 072 input
    /// features.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(DualLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.dual(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of DGQ, made by `check()` of a [`Dgq`]. As a [`Method`](tersor_core::Method) it needs the Gram matrix of the inputs
/// and makes a [`DualLinear`]: `weight = row_scale * group_scale * (code - zero)` with 4-bit codes, an f16 scale for each row, and an
/// integer scale and a zero point for each group.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedDgq {
    pub(super) group: GroupSize,
    /// Round-to-nearest with the same groups: the data-free form.
    pub(super) rtn: CheckedRtn,
}

impl Check for Dgq {
    type Checked = CheckedDgq;
    fn check(self) -> Result<CheckedDgq, ParamError> {
        Ok(CheckedDgq { group: GroupSize::size(self.group)?, rtn: Rtn::new().group(self.group).check()? })
    }
}

impl StageSpec for Dgq {
    fn kind(&self) -> &'static str {
        "dgq"
    }
    fn help(&self) -> &'static str {
        "Rounds to 4 bits with integer scales of groups under one scale a row (arXiv 2310.04836)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 4..=4, &mut 4)?;
        f.int(
            "group",
            "Number of consecutive input features of a row that share a scale.",
            1..=i64::MAX,
            &mut self.group,
        )
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(self.check()?))])
    }
    fn segments(&self) -> Vec<Segment> {
        four_bit_segments()
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        // The paper smooths by percentiles first.
        recipe.push(Box::new(Percentile));
        recipe.push(Box::new(*self));
        Ok(())
    }
}

/// Returns the segments of names for a method of 4 bits in groups.
pub(crate) fn four_bit_segments() -> Vec<Segment> {
    vec![Segment::number("w", "bits"), Segment::number("g", "group")]
}
