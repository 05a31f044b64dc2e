//! Parameters of round-to-nearest.

use tersor_core::{Check, Context, DType, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::{Clip, Grid, GroupSpec, GroupedLinear};

/// Parameters of round-to-nearest, unchecked: 4 bits, one scale a row, asymmetric, f16 scales, no clip search.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// MXINT (arXiv 2402.02446, section 3.1): signed codes of `bits` bits, a power of two for every 16 features.
    pub fn mxint(bits: u32) -> Self {
        Self::new().bits(bits).group(16).grid(Grid::SymNarrow).scales(DType::E8M0)
    }

    /// Bits of a code, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// A scale for every `group` input features; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group: Some(group), per_tensor: false, ..self }
    }

    /// One scale a row.
    pub fn per_channel(self) -> Self {
        Self { group: None, per_tensor: false, ..self }
    }

    /// One scale for the matrix.
    pub fn per_tensor(self) -> Self {
        Self { group: None, per_tensor: true, ..self }
    }

    /// The grid.
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// The symmetric grid of a recipe's `-sym`: narrow at 8 bits, full below.
    pub fn symmetric(self) -> Self {
        Self { grid: if self.bits == 8 { Grid::SymNarrow } else { Grid::SymFull }, ..self }
    }

    /// The stored type of the scales: f16, bf16 or f32.
    pub fn scales(self, dtype: DType) -> Self {
        Self { scales: dtype, ..self }
    }

    /// How the range of a group is chosen.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip, ..self }
    }

    /// As a [`Method`](tersor_core::Method), weighs the clip search by the mean square of each input feature, from statistics or an
    /// importance matrix. Needs [`Clip::Search`].
    pub fn importance(self, importance: bool) -> Self {
        Self { importance, ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` of f32, f16 or bf16. Errors on a wrong parameter, a value that is
    /// not finite, or a scale that its type cannot hold; [`Rtn::importance`] needs [`Rtn::quantize_with`].
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(GroupedLinear, Report)> {
        self.quantize_with(w, &StatSet::none())
    }

    /// Quantizes as [`Rtn::quantize`], for inputs with these statistics. Errors also if they lack what the parameters need.
    pub fn quantize_with<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(GroupedLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.grouped(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters: the method.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRtn {
    pub(super) spec: GroupSpec,
    pub(super) importance: bool,
    /// The same grid without a search of ranges; none where this is it.
    pub(super) plain: Option<Box<CheckedRtn>>,
}

impl CheckedRtn {
    /// Returns bits, groups and grid.
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
            return Err(ParamError::new("importance", true, "needs the clip search: nothing else weighs errors"));
        }
        let of = |clip| GroupSpec::new(self.bits, group, self.grid, self.scales, clip);
        let plain = CheckedRtn { spec: of(Clip::None)?, importance: false, plain: None };
        if self.clip == Clip::None {
            return Ok(plain);
        }
        Ok(CheckedRtn { spec: of(self.clip)?, importance: self.importance, plain: Some(Box::new(plain)) })
    }
}
