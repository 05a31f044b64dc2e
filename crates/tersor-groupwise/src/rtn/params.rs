//! Parameters of round-to-nearest.

use tersor_core::{Check, Context, DType, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::{Clip, Grid, GroupSpec, GroupedLinear};

/// Unchecked parameters of round-to-nearest. By default: 4 bits, one scale a row, asymmetric grid, f16 scales, no clip search.
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
    group: Option<usize>,
    per_tensor: bool,
    grid: Grid,
    scales: DType,
    clip: Clip,
    importance: bool,
}

impl Default for Rtn {
    fn default() -> Self {
        Self {
            bits: 4,
            group: None,
            per_tensor: false,
            grid: Grid::Asym,
            scales: DType::F16,
            clip: Clip::None,
            importance: false,
        }
    }
}

impl Rtn {
    /// Returns the default parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the parameters of MXINT (arXiv 2402.02446, section 3.1): signed codes of `bits` bits, and for every 16 features a scale that is a
    /// power of two.
    pub fn mxint(bits: u32) -> Self {
        Self::new().bits(bits).group(16).grid(Grid::SymNarrow).scales(DType::E8M0)
    }

    /// Sets the bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of input features that share a scale, at least 1; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group: Some(group), per_tensor: false, ..self }
    }

    /// Gives each row one scale.
    pub fn per_channel(self) -> Self {
        Self { group: None, per_tensor: false, ..self }
    }

    /// Gives the matrix one scale.
    pub fn per_tensor(self) -> Self {
        Self { group: None, per_tensor: true, ..self }
    }

    /// Sets the grid of the codes: asymmetric or symmetric.
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// Sets the symmetric grid for the bits set so far, as [`Grid::symmetric`]: [`Grid::SymNarrow`] at 8 bits, [`Grid::SymFull`] below.
    pub fn symmetric(self) -> Self {
        Self { grid: if self.bits == 8 { Grid::SymNarrow } else { Grid::SymFull }, ..self }
    }

    /// Sets the stored type of the scales: f16, bf16, f32, or on [`Grid::SymNarrow`] powers of two ([`DType::E8M0`]).
    pub fn scales(self, dtype: DType) -> Self {
        Self { scales: dtype, ..self }
    }

    /// Sets how the range that the grid of a group covers is chosen: all values, or a clip search.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// Sets whether the clip search weights the error of each weight by the mean square of its input feature, from the statistics or an importance
    /// matrix. Needs [`Clip::Search`], and statistics in [`Rtn::quantize_with`] or in [`Method::prepare`](tersor_core::Method::prepare).
    pub fn importance(self, importance: bool) -> Self {
        Self { importance, ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`. Errors if a parameter is out of range, a weight is not finite, a
    /// scale does not fit its stored type, or [`Rtn::importance`] is set, which needs [`Rtn::quantize_with`].
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(GroupedLinear, Report)> {
        self.quantize_with(w, &StatSet::none())
    }

    /// Quantizes as [`Rtn::quantize`], for inputs with the statistics `stats`. [`Rtn::importance`] needs their mean squares: errors also if these are
    /// missing, or of another number of features than `w` has.
    pub fn quantize_with<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(GroupedLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.grouped(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters of round-to-nearest, and its [`Method`](tersor_core::Method): it makes a [`GroupedLinear`], and needs mean squares of the
/// inputs only with [`Rtn::importance`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRtn {
    pub(super) spec: GroupSpec,
    pub(super) importance: bool,
    /// The same grid without clip search, as the data-free form; `None` if this has no clip search.
    pub(super) plain: Option<Box<CheckedRtn>>,
}

impl CheckedRtn {
    /// Returns the bits, group size, grid and scale type.
    pub fn spec(&self) -> &GroupSpec {
        &self.spec
    }
}

impl Check for Rtn {
    type Checked = CheckedRtn;
    fn check(self) -> Result<CheckedRtn, ParamError> {
        let group = match self.group {
            Some(n) => GroupSize::size(n)?,
            None if self.per_tensor => GroupSize::Tensor,
            None => GroupSize::Channel,
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
