//! Parameters of GPTQ.

use tersor_core::stages::{Fields, Part, Segment, Slot, StageSpec, Target, Ways};
use tersor_core::{
    Check, Context, DType, Element, GroupSize, IntoMat, LinearOp, ParamError, Prepared, Report, Result, StatSet, Value,
};
use tersor_linalg::Damping;
use tersor_operators::{Clip, Grid, GroupSpec};

use crate::coder::Groups;
use crate::rtn::grid_segments;
use crate::ways::GptqWays;
use crate::{CheckedRtn, Rtn};

/// What GPTQ does with a matrix whose Hessian is not positive definite with any damping that is tried: round the matrix to nearest
/// ([`OnFailure::Rtn`], the default of [`Gptq`]), or error ([`OnFailure::Error`]). The configured damping is tried first, then its
/// doublings up to 0.16 of the mean diagonal element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// The matrix is rounded to nearest, and [`Report::fallbacks`] says so.
    Rtn,
    /// The matrix is refused with an error that names the largest damping tried.
    Error,
}

/// What GPTQ does with the weights of dead input features: set them to zero ([`Dead::Zero`], the default of [`Gptq`]), or round them to
/// nearest ([`Dead::Keep`]). A feature is dead if it was zero for all tokens seen in calibration, so that its diagonal element of the
/// Hessian is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dead {
    /// The weights are set to zero, as in the released code.
    Zero,
    /// The weights are rounded to nearest.
    Keep,
}

/// Unchecked parameters of GPTQ (arXiv 2210.17323). By default: 4 bits, one scale for each row, asymmetric grid, f16 scales, no clip
/// search, damping 0.01, blocks of 128 columns in their natural order, scales of groups computed when the sweep reaches the group
/// ([`Groups::Dynamic`]), weights of dead features set to zero, round-to-nearest if no damping makes the Hessian positive definite.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let w = MatView::new(&weights, [8, 32])?;
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (op, report) = Gptq::new().bits(3).group(16).quantize(&w, &stats)?;
/// assert_eq!(op.shape(), [8, 32]);
/// assert!(report.data_error < report.data_energy);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gptq {
    rtn: Rtn,
    damping: f64,
    block: usize,
    act_order: bool,
    groups: Groups,
    dead: Dead,
    on_failure: OnFailure,
}

impl Default for Gptq {
    fn default() -> Self {
        Self {
            rtn: Rtn::new(),
            damping: 0.01,
            block: 128,
            act_order: false,
            groups: Groups::Dynamic,
            dead: Dead::Zero,
            on_failure: OnFailure::Rtn,
        }
    }
}

impl Gptq {
    /// Returns the default parameters: 4-bit codes on an asymmetric grid with one f16 scale for each row, no clip search, damping 0.01,
    /// blocks of 128 columns in their natural order. The documentation of [`Gptq`] lists all of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the bits of a weight's code; 4 by default. `check()` errors unless it is 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { rtn: self.rtn.bits(bits), ..self }
    }

    /// Sets the number of consecutive input features of a row that share a scale and zero point; by default all of a row share them. The
    /// last group of a row may be shorter. `check()` errors for 0. Quantizing errors if `group` is above 32 768, unless it is a multiple of
    /// 32 768 or at least the number of input features.
    pub fn group(self, group: usize) -> Self {
        Self { rtn: self.rtn.group(group), ..self }
    }

    /// Gives each row (output feature) one scale and zero point. This is the default; it undoes an earlier [`Gptq::group`].
    pub fn per_channel(self) -> Self {
        Self { rtn: self.rtn.per_channel(), ..self }
    }

    /// Sets the grid of the codes: asymmetric with a zero point ([`Grid::Asym`], the default), symmetric with all codes
    /// ([`Grid::SymFull`]), or symmetric without the lowest code ([`Grid::SymNarrow`]).
    pub fn grid(self, grid: Grid) -> Self {
        Self { rtn: self.rtn.grid(grid), ..self }
    }

    /// Sets the usual symmetric grid for the bits set so far: [`Grid::SymNarrow`] (without the lowest code) at 8 bits, otherwise
    /// [`Grid::SymFull`] (all codes). Call it after [`Gptq::bits`], which does not change the grid.
    pub fn symmetric(self) -> Self {
        Self { rtn: self.rtn.symmetric(), ..self }
    }

    /// Sets the type in which scales are stored: f16 (the default), bf16 or f32; on [`Grid::SymNarrow`] also powers of two
    /// ([`DType::E8M0`]). `check()` errors for other types.
    pub fn scales(self, dtype: DType) -> Self {
        Self { rtn: self.rtn.scales(dtype), ..self }
    }

    /// Sets which range of values the grid of a group covers. With [`Clip::None`], the default, it is the whole range of the group's
    /// values. With [`Clip::Search`] it is the whole range times one of the 80 factors `1, 0.99, …, 0.21`: the factor with the smallest
    /// rounding error `Σ |w - ŵ|^norm` over the group's values `w` and their quantized values `ŵ`. Values outside the range are clamped to
    /// it. `check()` errors unless the `norm` of a search is finite and at least 1.
    pub fn clip(self, clip: Clip) -> Self {
        Self { rtn: self.rtn.clip(clip), ..self }
    }

    /// Sets the damping, a fraction of the mean diagonal element of the Hessian; 0.01 by default. This fraction of the mean is added to
    /// each diagonal element. Dead features, whose diagonal element is 0, do not count for the mean. If the Hessian is not positive
    /// definite, the damping is doubled and tried again, as long as it does not exceed 0.16; a damping above 0.08 is therefore the only one
    /// tried. [`Gptq::on_failure`] sets what follows if none suffices. `check()` errors unless the damping is finite and above 0.
    pub fn damping(self, damping: f64) -> Self {
        Self { damping, ..self }
    }

    /// Sets the number of columns after which rounding errors are moved to all later columns at once (lazy batch updates, arXiv 2210.17323,
    /// section 3.3); 128 by default. It affects the speed, and the result only by floating-point rounding. `check()` errors for 0.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets whether columns are rounded in the order of a falling Hessian diagonal (GPTQ's `act-order`) instead of their natural order;
    /// false by default. With a group size and [`Groups::Dynamic`] the columns are also stored in that order, and the resulting operator
    /// permutes its inputs before it multiplies them.
    pub fn act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// Sets when the scales and zero points of groups are computed: when the sweep over the columns reaches the group, from the weights as
    /// updated so far ([`Groups::Dynamic`], the default), or before the sweep, from the original weights ([`Groups::Static`]).
    pub fn groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// Sets what is done with the weights of dead input features (zero for all tokens seen in calibration): set to zero ([`Dead::Zero`],
    /// the default), or rounded to nearest ([`Dead::Keep`]).
    pub fn dead(self, dead: Dead) -> Self {
        Self { dead, ..self }
    }

    /// Sets what is done if no damping makes the Hessian positive definite: round the weights to nearest ([`OnFailure::Rtn`], the default),
    /// or error ([`OnFailure::Error`]).
    pub fn on_failure(self, on_failure: OnFailure) -> Self {
        Self { on_failure, ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`. `stats` are calibration statistics of the inputs of `w` and
    /// must hold their Gram matrix `XᵀX`, which serves as the Hessian. Returns the quantized matrix, and a report with the squared errors
    /// of weights and outputs.
    ///
    /// Errors if a parameter is out of range, the group size is not allowed for `w` (see [`Gptq::group`]), the Gram matrix is missing or of
    /// another number of features, a weight is not finite, a scale becomes infinite or 0 in its stored type, or the propagated errors
    /// overflow f32. With [`OnFailure::Error`], errors also if no damping makes the Hessian positive definite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| {
            let done = checked.ready(stats)?.compress(&m, 0..m.shape()[0], &Context::new())?;
            Ok((done.op, done.report))
        })
    }
}

/// Checked parameters of GPTQ, made by `check()` of a [`Gptq`]. As a [`Method`](tersor_core::Method) it needs the Gram matrix of the inputs
/// and makes a [`GroupedLinear`](tersor_operators::GroupedLinear) (codes with a scale for each group); its columns are in the order of a
/// falling Hessian diagonal if [`Gptq::act_order`] and a group size are set and scales are computed during the sweep ([`Groups::Dynamic`]).
/// In this case it is inside a [`Permuted`](tersor_operators::Permuted), which permutes the inputs to that order.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedGptq {
    pub(super) rtn: CheckedRtn,
    pub(super) damping: Damping,
    pub(super) block: usize,
    pub(super) groups: Groups,
    pub(super) dead: Dead,
    pub(super) on_failure: OnFailure,
}

impl CheckedGptq {
    /// Returns the bits, group size, grid, scale type and clip search of the codes.
    pub fn spec(&self) -> &GroupSpec {
        self.rtn.spec()
    }
}

impl Check for Gptq {
    type Checked = CheckedGptq;
    fn check(self) -> Result<CheckedGptq, ParamError> {
        if self.block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1"));
        }
        let rtn = self.rtn.check()?;
        if rtn.spec().group() == GroupSize::Tensor {
            return Err(ParamError::new("group", "`tensor`", "must be a number or `channel` with gptq"));
        }
        Ok(CheckedGptq {
            rtn,
            damping: Damping::new(self.damping)?.by_importance(self.act_order),
            block: self.block,
            groups: self.groups,
            dead: self.dead,
            on_failure: self.on_failure,
        })
    }
}

impl StageSpec for Gptq {
    fn kind(&self) -> &'static str {
        "gptq"
    }
    fn help(&self) -> &'static str {
        "Rounds column by column and makes up for each error in the later columns (arXiv 2210.17323)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        self.rtn.grid_fields(f)?;
        let help = "Damping of the Hessian, as a share of its mean diagonal.";
        f.float("damping", help, f64::MIN_POSITIVE..=f64::MAX, &mut self.damping)?;
        let help = "Number of columns after which errors are moved to all later columns.";
        f.int("block", help, 1..=i64::MAX, &mut self.block)?;
        let help = "Whether columns are processed in descending order of the Hessian's diagonal.";
        f.flag("act_order", help, &mut self.act_order)?;
        let mut fixed = self.groups == Groups::Static;
        f.flag("static_groups", "Whether the scales of groups are computed before any column is rounded.", &mut fixed)?;
        self.groups = if fixed { Groups::Static } else { Groups::Dynamic };
        let words = [("zero", Dead::Zero), ("keep", Dead::Keep)];
        f.choice(
            "dead",
            "What becomes of weights whose inputs were always zero in calibration.",
            &words,
            &mut self.dead,
        )?;
        let words = [("rtn", OnFailure::Rtn), ("error", OnFailure::Error)];
        let help = "What follows if the Hessian is not positive definite with any damping.";
        f.choice("on_failure", help, &words, &mut self.on_failure)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(self.check()?))])
    }
    fn ways(&self) -> Option<Box<dyn Ways>> {
        Some(Box::new(GptqWays))
    }
    fn segments(&self) -> Vec<Segment> {
        let order = vec![("act_order", Value::Bool(true)), ("static_groups", Value::Bool(true))];
        grid_segments().into_iter().chain([Segment::word("ao", order)]).collect()
    }
}
