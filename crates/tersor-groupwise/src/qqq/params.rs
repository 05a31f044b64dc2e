//! Parameters of QQQ.

use tersor_core::stages::{Fields, Named, Part, Segment, Slot, StageSpec, Target};
use tersor_core::{Check, Context, DType, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::{Clip, Grid, TableLinear};

use crate::Gptq;
use crate::dgq::four_bit_segments;
use crate::gptq::{CheckedGptq, Groups};
use crate::smooth::AdaptiveStage;

/// Unchecked parameters of QQQ with groups (arXiv 2406.09904, section 3.2): 4-bit codes on the symmetric grid with all codes
/// ([`Grid::SymFull`]), an f32 scale for each row, and for each group of input features an f16 scale relative to that of the row. GPTQ
/// chooses the codes. By default groups have 128 features, and GPTQ takes columns in the order of a falling Hessian diagonal, computes the
/// scales of groups before it begins, has damping 0.01 and searches no clipped range.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Qqq::new().group(16).quantize(&MatView::new(&weights, [8, 32])?, &stats)?;
/// assert_eq!(op.shape(), [8, 32]);
/// assert!(report.relative_error() < 0.2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Qqq {
    gptq: Gptq,
    group: usize,
}

impl Default for Qqq {
    fn default() -> Self {
        let gptq = Gptq::new().grid(Grid::SymFull).act_order(true).groups(Groups::Static);
        Self { gptq, group: 128 }
    }
}

impl Qqq {
    /// Returns the default parameters: groups of 128 input features, damping 0.01, no clip search. Codes always have 4 bits on the
    /// symmetric grid with all codes ([`Grid::SymFull`]). GPTQ always takes columns in the order of a falling Hessian diagonal (act-order)
    /// and computes the scales of groups before it begins (static groups).
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of consecutive input features of a row that share a group scale; 128 by default. The last group of a row may be
    /// shorter. `check()` errors for 0. Quantizing errors if `group` is above 32 768, unless it is a multiple of 32 768 or at least the
    /// number of input features.
    pub fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Sets which range of values the grid of a group covers. With [`Clip::None`], the default, it is the whole range of the group's
    /// values. With [`Clip::Search`] it is the whole range times one of the 80 factors `1, 0.99, …, 0.21`: the factor with the smallest
    /// rounding error `Σ |w - ŵ|^norm` over the group's values `w` and their quantized values `ŵ`. Values outside the range are clamped to
    /// it. QQQ's released code uses a search for rotated networks and none for smoothed ones. `check()` errors unless the `norm` of a
    /// search is finite and at least 1.
    pub fn clip(self, clip: Clip) -> Self {
        Self { gptq: self.gptq.clip(clip), ..self }
    }

    /// Sets the damping of GPTQ, a fraction of the mean diagonal element of the Hessian; 0.01 by default. This fraction of the mean is
    /// added to each diagonal element. Dead features, whose diagonal element is 0, do not count for the mean. If the Hessian is not
    /// positive definite, the damping is doubled and tried again, as long as it does not exceed 0.16; a damping above 0.08 is therefore the
    /// only one tried. If none suffices, weights are rounded to nearest. `check()` errors unless the damping is finite and above 0.
    pub fn damping(self, damping: f64) -> Self {
        Self { gptq: self.gptq.damping(damping), ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`. `stats` are calibration statistics of the inputs of `w` and
    /// must hold their Gram matrix `XᵀX`. Returns the quantized matrix, and a report with the squared errors of its weights and of its
    /// outputs. If no damping makes the Hessian positive definite, weights are rounded to nearest.
    ///
    /// Errors if a parameter is out of range, the group size is not allowed for `w` (see [`Qqq::group`]), the Gram matrix is missing or of
    /// another number of features, a weight is not finite, the errors that GPTQ propagates overflow f32, or there are more than 131 072
    /// input features. Errors also if the scale of a group becomes infinite or 0 in f16, or becomes infinite in f16 when it is divided by
    /// the scale of its row.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(TableLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.table(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of QQQ, made by `check()` of a [`Qqq`]. As a [`Method`](tersor_core::Method) it needs the Gram matrix of the inputs
/// and makes a [`TableLinear`]: `weight = row_scale * round((code - 8) * group_scale)` with 4-bit codes, an f32 scale for each row and an
/// f16 scale for each group. The rounded integers, at most 127 in magnitude, are looked up in a table for each group.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedQqq {
    pub(super) gptq: CheckedGptq,
    pub(super) group: GroupSize,
}

impl Check for Qqq {
    type Checked = CheckedQqq;
    fn check(self) -> Result<CheckedQqq, ParamError> {
        Ok(CheckedQqq { gptq: self.gptq.group(self.group).check()?, group: GroupSize::size(self.group)? })
    }
}

/// QQQ in recipes. Without groups it is GPTQ with one f32 scale for each row on the symmetric grid without the lowest code, as in the
/// paper's section 3.2.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct QqqStage {
    group: Option<usize>,
}

impl StageSpec for QqqStage {
    fn kind(&self) -> &'static str {
        "qqq"
    }
    fn help(&self) -> &'static str {
        "Rounds to 4 bits by GPTQ, with group scales in look-up tables of integers (arXiv 2406.09904)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 4..=4, &mut 4)?;
        f.int_or_word(
            (
                "group",
                "Number of consecutive input features of a row that share a scale; or one scale a row, without tables.",
            ),
            1..=i64::MAX,
            &[("channel", None)],
            (|n| usize::try_from(n).ok().map(Some), |group| group.and_then(|n| i64::try_from(n).ok())),
            &mut self.group,
        )
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        let Some(group) = self.group else {
            let rows = Gptq::new().grid(Grid::SymNarrow).scales(DType::F32).act_order(true).groups(Groups::Static);
            return Ok(vec![Part::Base(Box::new(rows.check()?))]);
        };
        Ok(vec![Part::Base(Box::new(Qqq::new().group(group).check()?))])
    }
    fn segments(&self) -> Vec<Segment> {
        four_bit_segments()
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        // The paper smooths adaptively first.
        recipe.push(Box::new(AdaptiveStage));
        recipe.push(Box::new(*self));
        Ok(())
    }
}
