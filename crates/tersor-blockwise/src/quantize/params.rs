//! Parameters of block-wise quantization.

use tersor_core::{Check, Context, Element, IntoMat, ParamError, Report, Result};
use tersor_operators::{BlockwiseLinear, Map, Quantized};

/// Parameters of block-wise quantization, unchecked.
#[derive(Clone, PartialEq, Debug)]
pub struct Blockwise {
    map: Map,
    block: usize,
    pub(super) nested: bool,
    pub(super) seed: Option<u64>,
}

impl Blockwise {
    /// Returns the parameters for a codebook: blocks of 64 values for 4-bit codes, of 4096 for others; scales in f32; rounding to nearest.
    pub fn new(map: Map) -> Self {
        let block = if map.bits() == 4 { 64 } else { 4096 };
        Self { map, block, nested: false, seed: None }
    }

    /// Returns QLoRA's NormalFloat in blocks of 64.
    pub fn nf4() -> Self {
        Self::new(Map::nf4())
    }

    /// Returns QLoRA's 4-bit floats in blocks of 64.
    pub fn fp4() -> Self {
        Self::new(Map::fp4())
    }

    /// Returns the signed 8-bit dynamic map in blocks of 4096.
    pub fn dynamic() -> Self {
        Self::new(Map::dynamic(true))
    }

    /// Values of a block, at least 1; usual are powers of two from 64 to 4096. The last block may be shorter.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Quantizes the scales as well (double quantization, arXiv 2305.14314, section 3): less their mean, by the signed dynamic map in blocks of 256.
    pub fn nested(self, nested: bool) -> Self {
        Self { nested, ..self }
    }

    /// Rounds stochastically: one of the two neighbouring values is drawn, so that the mean is exact. Draws depend on the seed and on the place of the
    /// value alone.
    pub fn stochastic(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]`. Errors on a wrong parameter, or a value that is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(BlockwiseLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.matrix(&m, 0..m.shape()[0], T::DTYPE, &Context::new()))
    }

    /// Checks the parameters and quantizes values of any shape, as flat blocks. Errors on a wrong parameter, or a value that is not finite, with its
    /// index as the column.
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

/// Checked parameters.
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

    /// Returns whether scales are quantized too.
    pub fn is_nested(&self) -> bool {
        self.0.nested
    }
}
