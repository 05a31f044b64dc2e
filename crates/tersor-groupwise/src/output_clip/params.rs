//! Parameters of the clip search.

use tersor_core::stages::{Part, Slot, StageSpec, Target, ValuesOf};
use tersor_core::{Check, DType, GroupSize, Method, ParamError, Result, Role};
use tersor_operators::{Clip, Grid, GroupSpec};

use crate::Rtn;

/// Unchecked parameters of AWQ's clip search, which clips weights before another method, the wrapped one, quantizes them.
///
/// Each group (consecutive input features of a row) is clipped to `±max|w| * (1 - i / 20)`, with one `i` from 0 to 9 for each group: the
/// `i` with the smallest output error `d H dᵀ`. Here `d` is the error of the group's weights after they are clipped and rounded to the grid
/// of the search, and `H` is the group's diagonal block of the Gram matrix of the inputs. The grid of the search should be that of the
/// wrapped method. By default the search has an asymmetric grid of 4 bits, groups of 128 features and f16 scales.
///
/// ```
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let weights: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin().powi(5)).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let mut stats = StatSet::new(32, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let rtn = Rtn::new().bits(3).group(16).check()?;
/// let method = OutputClip::before(Box::new(rtn)).bits(3).group(Some(16)).check()?;
/// let cx = Context::new();
/// let done = method.prepare(&stats, &cx)?.compress(&MatView::new(&weights, [8, 32])?, 0..8, &cx)?;
/// assert_eq!(done.op.shape(), [8, 32]);
/// # Ok(())
/// # }
/// ```
pub struct OutputClip {
    bits: u32,
    group: Option<usize>,
    grid: Grid,
    scales: DType,
    method: Box<dyn Method>,
}

impl OutputClip {
    /// Returns the clip search in front of `method`, which will quantize the clipped weights. The search rounds to a grid of 4 bits in
    /// groups of 128 input features, asymmetric, with f16 scales; set it to the grid of `method`.
    pub fn before(method: Box<dyn Method>) -> Self {
        Self { bits: 4, group: Some(128), grid: Grid::Asym, scales: DType::F16, method }
    }

    /// Sets the grid to which the search rounds to that of `spec`: its bits, groups, codes and type of the scales.
    pub(crate) fn on(self, spec: &GroupSpec) -> Self {
        let group = if let GroupSize::Size(n) = spec.group() { Some(n.get()) } else { None };
        self.bits(spec.bits().get()).group(group).grid(spec.grid()).scales(spec.scale_dtype())
    }

    /// Sets the bits of a code of the grid to which the search rounds; 4 by default. `check()` errors unless it is 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of consecutive input features of a row that are clipped to one limit and share a scale in the search; 128 by
    /// default. `None` makes each row one group. `check()` errors for 0.
    pub fn group(self, group: Option<usize>) -> Self {
        Self { group, ..self }
    }

    /// Sets the grid to which the search rounds: asymmetric with a zero point ([`Grid::Asym`], the default), symmetric with all codes
    /// ([`Grid::SymFull`]), or symmetric without the lowest code ([`Grid::SymNarrow`]).
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// Sets the type to which the search rounds scales: f16 (the default), bf16 or f32; on [`Grid::SymNarrow`] also powers of two
    /// ([`DType::E8M0`]). `check()` errors for other types.
    pub fn scales(self, scales: DType) -> Self {
        Self { scales, ..self }
    }
}

/// Returns the parameters of the grid that the quantizing stage of `at` rounds to. Errors (bad usage) unless that stage is `rtn` or `gptq`
/// with valid parameters.
fn grid_of(at: &Target<'_>) -> Result<GroupSpec> {
    let Some(stage) = at.stage(Slot::Quantize).filter(|s| ["rtn", "gptq"].contains(&s.kind())) else {
        return Err(ParamError::new("clip", true, "it is for the kinds `rtn` and `gptq` alone").into());
    };
    let mut rtn = Rtn::new();
    rtn.grid_fields(&mut ValuesOf(stage))?;
    Ok(*rtn.clip(Clip::None).check()?.spec())
}

/// Returns the clip search of AWQ in front of the method of a rule, on the grid of its quantizing stage; None for queries and keys, which
/// are not clipped: their errors matter in their products only. Errors as [`grid_of`].
pub(crate) fn clip_part(at: &Target<'_>) -> Result<Option<Part>> {
    let grid = grid_of(at)?;
    let clip = move |method| Ok(Box::new(OutputClip::before(method).on(&grid).check()?) as Box<dyn Method>);
    Ok((!matches!(at.role(), Role::Query | Role::Key)).then(|| Part::Wrap(Box::new(clip))))
}

/// The clip search in recipes, without the rewrite of AWQ.
#[derive(Clone, Copy)]
pub(crate) struct ClipStage;

impl StageSpec for ClipStage {
    fn kind(&self) -> &'static str {
        "clip"
    }
    fn help(&self) -> &'static str {
        "Clips the range of each group by the error of the outputs; not for queries and keys (arXiv 2306.00978)."
    }
    fn slot(&self) -> Slot {
        Slot::Transform
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        Ok(clip_part(at)?.into_iter().collect())
    }
}

/// Checked parameters of AWQ's clip search in front of another method (the wrapped one), made by `check()` of an [`OutputClip`]. As a
/// [`Method`] it clips each group of weights to the limit with the smallest output error, and then compresses the clipped weights by the
/// wrapped method. It needs the Gram matrix of the inputs and what the wrapped method needs. Its reports give the squared difference
/// between the compressed weights and the original, unclipped ones, and no error of the outputs.
///
/// [`Method::prepare`] errors if the Gram matrix is missing, no token of a weight above 0 was seen, or the wrapped method's `prepare`
/// errors. Compressing errors if the Gram matrix has another number of features than the weights, a weight is not finite, or the wrapped
/// method errors.
pub struct CheckedOutputClip {
    pub(super) spec: GroupSpec,
    pub(super) method: Box<dyn Method>,
}

impl Check for OutputClip {
    type Checked = CheckedOutputClip;
    fn check(self) -> Result<CheckedOutputClip, ParamError> {
        let group = self.group.map_or(Ok(GroupSize::Channel), GroupSize::size)?;
        let spec = GroupSpec::new(self.bits, group, self.grid, self.scales, Clip::None)?;
        Ok(CheckedOutputClip { spec, method: self.method })
    }
}
