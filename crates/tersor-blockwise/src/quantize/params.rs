//! Parameters of block-wise quantization.

use tersor_core::{Check, Context, Element, IntoMat, ParamError, Report, Result};
use tersor_operators::{BlockwiseLinear, Map, Quantized};

/// Unchecked parameters of block-wise quantization: a codebook, the size of blocks, and the rounding.
///
/// ```
/// use tersor_blockwise::{Blockwise, LinearOp, MatView};
///
/// # fn main() -> tersor_blockwise::Result<()> {
/// let weights: Vec<f32> = (0..16 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
/// let (op, report) = Blockwise::nf4().block(32).nested(true).quantize(&MatView::new(&weights, [16, 32])?)?;
/// assert_eq!(op.shape(), [16, 32]);
/// assert!(report.relative_error() < 0.1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Blockwise {
    map: Map,
    block: usize,
    pub(super) nested: bool,
    pub(super) seed: Option<u64>,
}

impl Blockwise {
    /// Returns the default parameters for the codebook `map`: blocks of 64 values with 4-bit codes, of 4096 with 8-bit codes; scales in f32;
    /// rounding to nearest.
    pub fn new(map: Map) -> Self {
        let block = if map.bits() == 4 { 64 } else { 4096 };
        Self { map, block, nested: false, seed: None }
    }

    /// Returns the parameters of QLoRA's 4-bit NormalFloat (arXiv 2305.14314, section 3), blocks of 64.
    pub fn nf4() -> Self {
        Self::new(Map::nf4())
    }

    /// Returns the parameters of 4-bit floats (FP4), blocks of 64.
    pub fn fp4() -> Self {
        Self::new(Map::fp4())
    }

    /// Returns the parameters of the signed 8-bit dynamic map (arXiv 2110.02861, section 2.1), blocks of 4096.
    pub fn dynamic() -> Self {
        Self::new(Map::dynamic(true))
    }

    /// Sets the number of values of a block, 1 to 2^30; usual are powers of two from 64 to 4096. The last block may be shorter.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets whether the scales are quantized too (double quantization, arXiv 2305.14314, section 3): their mean is subtracted, and the differences
    /// are quantized by the signed dynamic map in blocks of 256.
    pub fn nested(self, nested: bool) -> Self {
        Self { nested, ..self }
    }

    /// Sets stochastic rounding: each value becomes one of the two neighbouring codebook values at random, so that its expectation is exact. Draws
    /// depend on `seed` and on the index of the value alone.
    pub fn stochastic(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, in blocks of its row-major values. Errors if the block size is out
    /// of range or a weight is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(BlockwiseLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.matrix(&m, 0..m.shape()[0], T::DTYPE, &Context::new()))
    }

    /// Checks the parameters and quantizes the values `x` in consecutive blocks. Errors if the block size is out of range or a value is not finite;
    /// the error names its index as the column.
    pub fn quantize_values<T: Element>(self, x: &[T]) -> Result<Quantized> {
        self.check()?.quantize_values(x)
    }
}

impl Check for Blockwise {
    type Checked = CheckedBlockwise;
    fn check(self) -> Result<CheckedBlockwise, ParamError> {
        if self.block == 0 || self.block > 1 << 30 {
            return Err(ParamError::new("block", self.block, "must be 1 to 2^30"));
        }
        Ok(CheckedBlockwise(self))
    }
}

/// Checked parameters of block-wise quantization, and its [`Method`](tersor_core::Method): it needs no data and makes a [`BlockwiseLinear`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedBlockwise(pub(super) Blockwise);

impl CheckedBlockwise {
    /// Returns the codebook.
    pub fn map(&self) -> &Map {
        &self.0.map
    }

    /// Returns the number of values of a block.
    pub fn block(&self) -> usize {
        self.0.block
    }

    /// Returns whether the scales are quantized too.
    pub fn is_nested(&self) -> bool {
        self.0.nested
    }
}
