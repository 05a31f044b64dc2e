//! Parameters of the clip search.

use tersor_core::{Check, DType, GroupSize, Method, ParamError};
use tersor_operators::{Clip, Grid, GroupSpec};

/// Unchecked parameters of a search that clips weights before another method quantizes them.
///
/// Each group of a row is clipped to `±max|w| * (1 - i / 20)`, with the `i` in `0..10` of the smallest `d H dᵀ`, where `d` is the error of the
/// group's weights after rounding and `H` is the group's block of the Gram matrix of the inputs. The grid of the search should be that of the
/// wrapped method; by default 4 bits, groups of 128, asymmetric, f16 scales.
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
    /// Returns the search in front of `method`, with the default grid.
    pub fn before(method: Box<dyn Method>) -> Self {
        Self { bits: 4, group: Some(128), grid: Grid::Asym, scales: DType::F16, method }
    }

    /// Sets the bits of a code of the search's grid, 2 to 8.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of input features of a group; `None` makes each row one group.
    pub fn group(self, group: Option<usize>) -> Self {
        Self { group, ..self }
    }

    /// Sets the grid of the search: asymmetric or symmetric.
    pub fn grid(self, grid: Grid) -> Self {
        Self { grid, ..self }
    }

    /// Sets the stored type of the scales: f16, bf16 or f32.
    pub fn scales(self, scales: DType) -> Self {
        Self { scales, ..self }
    }
}

/// Checked parameters of the clip search, and its [`Method`]: `compress` clips, then compresses the clipped weights by the wrapped method. Reported
/// errors are relative to the original weights. Needs the Gram matrix of the inputs.
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
