//! Parameters of round-to-nearest.

use crate::ways::RtnWays;
use tersor_core::stages::{Fields, Part, Segment, Slot, StageSpec, Target, Ways};
use tersor_core::{Check, Context, DType, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet, Value};
use tersor_operators::{Clip, Grid, GroupSpec, GroupedLinear};

/// Unchecked parameters of round-to-nearest: each weight becomes the nearest code of the grid of its group (weights that share a scale and
/// zero point). By default: 4 bits, one scale for each row, asymmetric grid, f16 scales, no clip search.
///
/// ```
/// use tersor_groupwise::{LinearOp, MatView, Rtn};
///
/// # fn main() -> tersor_groupwise::Result<()> {
/// let weights = [0.0f32, 1.0, 2.0, 15.0, -1.5, 0.0, 1.5, 0.75];
/// let (op, report) = Rtn::new().bits(4).group(4).quantize(&MatView::new(&weights, [2, 4])?)?;
/// assert_eq!(op.shape(), [2, 4]);
/// assert_eq!(op.scales(), [1.0, 0.199951171875]);
/// assert!(report.relative_error() < 0.01);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rtn {
    bits: u32,
    group: Group,
    grid: Grid,
    scales: DType,
    clip: Clip,
    importance: bool,
}

/// The weights that share a scale and zero point, unchecked.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Group {
    Channel,
    Tensor,
    Size(usize),
}

/// Returns the usual symmetric grid for codes of `bits` bits.
fn usual_grid(bits: u32) -> Grid {
    if bits == 8 { Grid::SymNarrow } else { Grid::SymFull }
}

impl Default for Rtn {
    fn default() -> Self {
        Self {
            bits: 4,
            group: Group::Channel,
            grid: Grid::Asym,
            scales: DType::F16,
            clip: Clip::None,
            importance: false,
        }
    }
}

impl Rtn {
    /// Returns the default parameters: 4 bits, one scale for each row, asymmetric grid, f16 scales, no clip search.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the parameters of MXINT (arXiv 2402.02446, section 3.1): signed codes of `bits` bits, without the lowest code
    /// ([`Grid::SymNarrow`]), and for every 16 consecutive input features of a row a scale that is a power of two ([`DType::E8M0`]).
    /// `check()` errors unless `bits` is 2 to 8.
    pub fn mxint(bits: u32) -> Self {
        Self::new().bits(bits).group(16).grid(Grid::SymNarrow).scales(DType::E8M0)
    }

    /// Sets the bits of a weight's code; 4 by default. `check()` errors unless it is 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of consecutive input features of a row that share a scale and zero point; by default all of a row share them. The
    /// last group of a row may be shorter. `check()` errors for 0. Quantizing errors if `group` is above 32 768, unless it is a multiple of
    /// 32 768 or at least the number of input features.
    pub fn group(self, group: usize) -> Self {
        Self { group: Group::Size(group), ..self }
    }

    /// Gives each row (output feature) one scale and zero point. This is the default; it undoes an earlier [`Rtn::group`] or
    /// [`Rtn::per_tensor`].
    pub fn per_channel(self) -> Self {
        Self { group: Group::Channel, ..self }
    }

    /// Gives the whole matrix one scale and zero point, instead of one for each row or group.
    pub fn per_tensor(self) -> Self {
        Self { group: Group::Tensor, ..self }
    }

    /// Sets the grid of the codes: asymmetric with a zero point ([`Grid::Asym`], the default), symmetric with all codes
    /// ([`Grid::SymFull`]), or symmetric without the lowest code ([`Grid::SymNarrow`]).
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// Sets the usual symmetric grid for the bits set so far: [`Grid::SymNarrow`] (without the lowest code) at 8 bits, otherwise
    /// [`Grid::SymFull`] (all codes). Call it after [`Rtn::bits`], which does not change the grid.
    pub fn symmetric(self) -> Self {
        Self { grid: usual_grid(self.bits), ..self }
    }

    /// Sets the type in which scales are stored: f16 (the default), bf16 or f32; on [`Grid::SymNarrow`] also powers of two
    /// ([`DType::E8M0`]). `check()` errors for other types.
    pub fn scales(self, dtype: DType) -> Self {
        Self { scales: dtype, ..self }
    }

    /// Sets which range of values the grid of a group covers. With [`Clip::None`], the default, it is the whole range of the group's
    /// values. With [`Clip::Search`] it is the whole range times one of the 80 factors `1, 0.99, …, 0.21`: the factor with the smallest
    /// rounding error `Σ |w - ŵ|^norm` over the group's values `w` and their quantized values `ŵ`. Values outside the range are clamped to
    /// it. `check()` errors unless the `norm` of a search is finite and at least 1.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// Sets whether the clip search weights the rounding error of each weight by the mean square of its input feature, from calibration
    /// statistics or an importance matrix. False by default. `check()` errors if it is set without [`Clip::Search`]. The statistics are
    /// given to [`Rtn::quantize_with`] or [`Method::prepare`](tersor_core::Method::prepare), which error if they hold no squares of the
    /// inputs.
    pub fn importance(self, importance: bool) -> Self {
        Self { importance, ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, without calibration data. Returns the quantized matrix, and
    /// a report with the squared error of the weights. Errors if a parameter is out of range, the group size is not allowed for `w` (see
    /// [`Rtn::group`]), a weight is not finite, or a scale becomes infinite or 0 in its stored type. Errors also if [`Rtn::importance`] is
    /// set, which needs the statistics of [`Rtn::quantize_with`].
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(GroupedLinear, Report)> {
        self.quantize_with(w, &StatSet::none())
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`. Returns the quantized matrix, and a report with the squared
    /// error of the weights. `stats` are calibration statistics of the inputs of `w`; they are used only with [`Rtn::importance`], which
    /// needs the squares of the inputs.
    ///
    /// Errors if a parameter is out of range, the group size is not allowed for `w` (see [`Rtn::group`]), a weight is not finite, or a
    /// scale becomes infinite or 0 in its stored type. With [`Rtn::importance`], errors also if the statistics hold no squares or have
    /// another number of features than `w`.
    pub fn quantize_with<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(GroupedLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.grouped(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of round-to-nearest, made by `check()` of an [`Rtn`]. As a [`Method`](tersor_core::Method) it makes a
/// [`GroupedLinear`] (codes with a scale for each group) and needs no calibration data, except the squares of the inputs with
/// [`Rtn::importance`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRtn {
    pub(super) spec: GroupSpec,
    pub(super) importance: bool,
    /// The same grid without clip search, as the data-free form; `None` if this has no clip search.
    pub(super) plain: Option<Box<CheckedRtn>>,
}

impl CheckedRtn {
    /// Returns the bits, group size, grid, scale type and clip search of the codes.
    pub fn spec(&self) -> &GroupSpec {
        &self.spec
    }
}

impl Check for Rtn {
    type Checked = CheckedRtn;
    fn check(self) -> Result<CheckedRtn, ParamError> {
        let group = match self.group {
            Group::Size(n) => GroupSize::size(n)?,
            Group::Channel => GroupSize::Channel,
            Group::Tensor => GroupSize::Tensor,
        };
        if self.importance && self.clip == Clip::None {
            return Err(ParamError::new(
                "importance",
                true,
                "needs a clip search (`Clip::Search`), which alone weights errors",
            ));
        }
        let of = |clip| GroupSpec::new(self.bits, group, self.grid, self.scales, clip);
        let plain = CheckedRtn { spec: of(Clip::None)?, importance: false, plain: None };
        if self.clip == Clip::None {
            return Ok(plain);
        }
        Ok(CheckedRtn { spec: of(self.clip)?, importance: self.importance, plain: Some(Box::new(plain)) })
    }
}

/// The exponent of the errors in the range search of a recipe, that of GPTQ's released code.
const MSE_CLIP: Clip = Clip::Search { norm: 2.4 };

impl Rtn {
    /// Shows the fields of a grid over groups to `f`: bits, group, grid, type of the scales, and whether ranges are searched.
    pub(crate) fn grid_fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 2..=8, &mut self.bits)?;
        f.int_or_word(
            ("group", "Number of consecutive input features of a row that share a scale; or those of a row, or of the matrix."),
            1..=i64::MAX,
            &[("channel", Group::Channel), ("tensor", Group::Tensor)],
            (
                |n| usize::try_from(n).ok().map(Group::Size),
                |group| if let Group::Size(n) = group { i64::try_from(n).ok() } else { None },
            ),
            &mut self.group,
        )?;
        let usual = usual_grid(self.bits);
        let grids =
            [("asym", Grid::Asym), ("sym", usual), ("sym_full", Grid::SymFull), ("sym_narrow", Grid::SymNarrow)];
        f.choice(
            "grid",
            "Codes: with a zero point, or symmetric with or without the lowest code.",
            &grids,
            &mut self.grid,
        )?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32), ("e8m0", DType::E8M0)];
        f.choice("scales", "Type in which scales are stored.", &types, &mut self.scales)?;
        let mut search = self.clip != Clip::None;
        f.flag("mse", "Whether the range of each group is searched for the smallest rounding error.", &mut search)?;
        self.clip = match (search, self.clip) {
            (false, _) => Clip::None,
            (true, Clip::None) => MSE_CLIP,
            (true, clip) => clip,
        };
        Ok(())
    }
}

impl StageSpec for Rtn {
    fn kind(&self) -> &'static str {
        "rtn"
    }
    fn help(&self) -> &'static str {
        "Rounds each weight to the nearest code of its group."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        self.grid_fields(f)?;
        let help = "Whether the range search weights errors by the mean square of each input feature.";
        f.flag("importance", help, &mut self.importance)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(self.check()?))])
    }
    fn ways(&self) -> Option<Box<dyn Ways>> {
        Some(Box::new(RtnWays))
    }
    fn segments(&self) -> Vec<Segment> {
        grid_segments()
    }
    fn is_default(&self) -> bool {
        true
    }
}

/// Returns the segments of names for [`Rtn::grid_fields`].
pub(crate) fn grid_segments() -> Vec<Segment> {
    vec![
        Segment::number("w", "bits"),
        Segment::number("g", "group"),
        Segment::word("sym", vec![("grid", Value::Text("sym".into()))]),
        Segment::word("mse", vec![("mse", Value::Bool(true))]),
    ]
}

/// MXINT in recipes: [`Rtn::mxint`], whose only parameter is the number of bits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Mxint {
    bits: u32,
}

impl Default for Mxint {
    fn default() -> Self {
        Self { bits: 4 }
    }
}

impl StageSpec for Mxint {
    fn kind(&self) -> &'static str {
        "mxint"
    }
    fn help(&self) -> &'static str {
        "Rounds to signed integers with a power of two as the scale of every 16 input features."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 2..=8, &mut self.bits)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(Rtn::mxint(self.bits).check()?))])
    }
    fn segments(&self) -> Vec<Segment> {
        vec![Segment::number("w", "bits")]
    }
}
