//! Parameters of block-wise quantization.

use tersor_core::stages::{Fields, Part, Segment, Slot, StageSpec, Target};
use tersor_core::{Check, Context, Element, IntoMat, ParamError, Report, Result, Value};
use tersor_operators::{BlockwiseLinear, Map, Quantized};

/// Unchecked parameters of block-wise quantization: consecutive values form blocks, each value is divided by the largest magnitude of its
/// block, the block's scale, and becomes the code of the nearest value of a codebook. The parameters are the codebook, the number of values
/// of a block, whether scales are quantized too, and the rounding.
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
    /// Returns the default parameters for the codebook `map`: blocks of 64 values if its codes have 4 bits (at most 16 values), of 4096 if
    /// they have 8 bits; scales in f32; rounding to nearest.
    pub fn new(map: Map) -> Self {
        let block = if map.bits() == 4 { 64 } else { 4096 };
        Self { map, block, nested: false, seed: None }
    }

    /// Returns the parameters of QLoRA's 4-bit NormalFloat (arXiv 2305.14314, section 3): blocks of 64 values, scales in f32 (no double
    /// quantization), rounding to nearest.
    pub fn nf4() -> Self {
        Self::new(Map::nf4())
    }

    /// Returns the parameters of 4-bit floats (FP4: a sign, two bits of exponent and one of fraction): blocks of 64 values, scales in f32,
    /// rounding to nearest.
    pub fn fp4() -> Self {
        Self::new(Map::fp4())
    }

    /// Returns the parameters of the signed 8-bit dynamic map (arXiv 2110.02861, section 2.1): blocks of 4096 values, scales in f32,
    /// rounding to nearest.
    pub fn dynamic() -> Self {
        Self::new(Map::dynamic(true))
    }

    /// Sets the number of consecutive values that share a scale; usual are powers of two from 64 to 4096. By default it is 64 for codebooks
    /// with 4-bit codes and 4096 for those with 8-bit codes. The last block of a tensor may be shorter. `check()` errors unless it is 1 to
    /// 2^30.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets whether the scales of blocks are quantized too (double quantization, arXiv 2305.14314, section 3): their mean is subtracted,
    /// and the differences become codes of the signed 8-bit dynamic map, in blocks of 256 with an f32 scale each. False by default.
    pub fn nested(self, nested: bool) -> Self {
        Self { nested, ..self }
    }

    /// Sets stochastic rounding instead of rounding to nearest: each value becomes one of the two neighbouring codebook values at random,
    /// so that its expectation is exact. A value below the smallest or above the largest codebook value becomes that one. The draws depend
    /// on `seed` and on the index of the value in the tensor alone. Scales of double quantization are still rounded to nearest.
    pub fn stochastic(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Checks the parameters and quantizes `w`, `[out_features, in_features]`, in blocks of consecutive row-major values; a block may reach
    /// from one row into the next. Returns the quantized matrix, and a report with the squared error of the weights. Errors if the block
    /// size is out of range, a weight is not finite, or, with double quantization, a dequantized scale overflows f32.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>) -> Result<(BlockwiseLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.matrix(&m, 0..m.shape()[0], T::DTYPE, &Context::new()))
    }

    /// Checks the parameters and quantizes the values `x`, a tensor of any shape in row-major order, in blocks of consecutive values.
    /// Returns the code of each value and the scale of each block; the result is empty if `x` is. Errors if the block size is out of range.
    /// Errors with `Error::NonFinite`, whose column is the index in `x`, if a value is not finite. With double quantization, errors also if
    /// a dequantized scale overflows f32.
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

/// Checked parameters of block-wise quantization, made by `check()` of a [`Blockwise`], with functions that quantize slices. As a
/// [`Method`](tersor_core::Method) for matrices it needs no calibration data and makes a [`BlockwiseLinear`].
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedBlockwise(pub(super) Blockwise);

impl CheckedBlockwise {
    /// Returns the codebook: the value of each code, relative to the largest magnitude of a block.
    pub fn map(&self) -> &Map {
        &self.0.map
    }

    /// Returns the number of consecutive values that share a scale.
    pub fn block(&self) -> usize {
        self.0.block
    }

    /// Returns whether the scales of blocks are quantized too (double quantization, arXiv 2305.14314, section 3).
    pub fn is_nested(&self) -> bool {
        self.0.nested
    }
}

impl StageSpec for Blockwise {
    fn kind(&self) -> &'static str {
        self.map.kind().name()
    }
    fn help(&self) -> &'static str {
        "Rounds to the values of a codebook, with a scale for each block of consecutive values (arXiv 2110.02861, 2305.14314)."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        let bits = i64::from(self.map.bits());
        f.int("bits", "Bits of a code.", bits..=bits, &mut bits.clone())?;
        f.int("block", "Number of consecutive values that share a scale.", 1..=1 << 30, &mut self.block)?;
        f.flag("nested", "Whether the scales are quantized, too.", &mut self.nested)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(self.clone().check()?))])
    }
    fn segments(&self) -> Vec<Segment> {
        let nested = Segment::word("dq", vec![("nested", Value::Bool(true))]);
        vec![Segment::number("w", "bits"), Segment::number("g", "block"), nested]
    }
}
