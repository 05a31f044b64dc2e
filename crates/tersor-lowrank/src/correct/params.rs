//! Parameters of low-rank corrections.

use tersor_core::{Check, Element, IntoMat, LinearOp, Method, ParamError, Report, Result, StatSet};

use crate::factor::storage;
use crate::{Norm, Rank};

/// Unchecked parameters of a quantized matrix with a low-rank correction: `W ≈ Q(W) + up · down`, where the factors are the best approximation of the
/// error `W - Q(W)` in a norm (LQER and L²QER, arXiv 2402.02446).
///
/// ```
/// use tersor_core::Check;
/// use tersor_groupwise::Rtn;
/// use tersor_lowrank::{Corrected, MatView, Norm, Rank, StatNeeds, StatSet};
///
/// # fn main() -> tersor_lowrank::Result<()> {
/// let weights: Vec<f32> = (0..16 * 32).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
/// let inputs: Vec<f32> = (0..50 * 32).map(|i| (i as f32 * 0.3).cos()).collect();
/// let w = MatView::new(&weights, [16, 32])?;
/// let mut stats = StatSet::new(32, StatNeeds { channel: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&inputs, [50, 32])?)?;
/// let (_, plain) = Rtn::new().bits(3).quantize(&w)?;
/// let base = Box::new(Rtn::new().bits(3).check()?);
/// let (op, corrected) = Corrected::l2qer(base).rank(Rank::Fixed(8)).quantize(&w, &stats)?;
/// assert_eq!(op.shape(), [16, 32]);
/// assert!(corrected.squared_error < plain.squared_error);
/// # Ok(())
/// # }
/// ```
pub struct Corrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Option<Box<dyn Method>>,
}

impl Corrected {
    /// Returns LQER over the method `base`: the norm [`Norm::Plain`], rank 32 (the paper's choice at 4 bits), factors in f16.
    pub fn lqer(base: Box<dyn Method>) -> Self {
        Self { base, norm: Norm::Plain, rank: Rank::Fixed(32), factors: None }
    }

    /// Returns L²QER over the method `base`: as [`Corrected::lqer`], with the norm [`Norm::Magnitude`].
    pub fn l2qer(base: Box<dyn Method>) -> Self {
        Self::lqer(base).norm(Norm::Magnitude)
    }

    /// Sets the norm in which the error is minimized.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// Sets the rank of the correction.
    pub fn rank(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// Sets the method that stores each factor, in place of f16 (the paper uses 8-bit MXINT). It must need no calibration data.
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and compresses `w`, `[out_features, in_features]`, for inputs with the statistics `stats`; [`StatSet::none`] suffices if
    /// neither the base nor the norm needs any. Returns a [`Residual`](tersor_operators::Residual). Errors if a parameter is out of range, the
    /// statistics lack what the base or the norm needs, or a weight is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

impl Check for Corrected {
    type Checked = CheckedCorrected;
    fn check(self) -> Result<CheckedCorrected, ParamError> {
        self.rank.check()?;
        let factors = storage(self.factors)?;
        Ok(CheckedCorrected { base: self.base, norm: self.norm, rank: self.rank, factors })
    }
}

/// Checked parameters of a correction, and its [`Method`]. Compressing fails for weights with a [`Mask`](tersor_core::Mask) that sets some to zero:
/// the sum with a product of factors would not keep the zeros.
pub struct CheckedCorrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Box<dyn Method>,
}
