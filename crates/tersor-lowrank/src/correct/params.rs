//! Parameters of low-rank corrections.

use tersor_core::{Check, Element, IntoMat, LinearOp, Method, ParamError, Report, Result, StatSet};

use crate::factor::storage;
use crate::{Norm, Rank};

/// Parameters, unchecked until `check`, of a quantized matrix with a low-rank correction: `W ≈ Q(W) + up · down`. `Q(W)` is the matrix
/// quantized by a base method, and the factors `up`, `[out_features, rank]`, and `down`, `[rank, in_features]`, are the best approximation
/// of the error `W - Q(W)` in a norm (LQER and L²QER, arXiv 2402.02446).
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
    /// Returns the parameters of LQER: the method `base` quantizes the matrix, and the correction has rank 32 (the paper's choice at 4
    /// bits), minimizes the plain Frobenius norm of the error ([`Norm::Plain`]), and is stored in f16.
    pub fn lqer(base: Box<dyn Method>) -> Self {
        Self { base, norm: Norm::Plain, rank: Rank::Fixed(32), factors: None }
    }

    /// Returns the parameters of L²QER: the method `base` quantizes the matrix, and the correction has rank 32, minimizes the error
    /// weighted by the mean magnitude of each input feature ([`Norm::Magnitude`]), and is stored in f16. Compressing then needs statistics
    /// of each input feature.
    pub fn l2qer(base: Box<dyn Method>) -> Self {
        Self::lqer(base).norm(Norm::Magnitude)
    }

    /// Sets the norm in which the correction, a product of two factors, approximates the error of the quantized matrix best, in place of
    /// the one that [`lqer`](Self::lqer) or [`l2qer`](Self::l2qer) chose. All norms but [`Norm::Plain`] need statistics of the inputs.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// Sets how the rank of the correction `up · down` (the number of columns of its left factor `up` and of rows of its right factor
    /// `down`) is chosen; the fixed rank 32 by default. `check` errors if the rank of [`Rank::Fixed`] or `max` of [`Rank::Error`] is 0, if
    /// the bits of [`Rank::Bits`] are not finite and above 0, or if the `tolerance` of [`Rank::Error`] is not above 0 and below 1.
    pub fn rank(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// Sets the method that stores the two factors `up`, `[out_features, rank]`, and `down`, `[rank, in_features]`, in place of f16 (the
    /// paper uses 8-bit MXINT). `check` errors if the method needs calibration data.
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and compresses `w`, `[out_features, in_features]`. `stats` are the statistics of the inputs that `w` is
    /// multiplied with; [`StatSet::none`] suffices if neither the base method nor the norm needs any. Returns a
    /// [`Residual`](tersor_operators::Residual) (the quantized matrix plus the product of the factors) and a report of the errors: of the
    /// weights, and of the outputs if `stats` have a Gram matrix.
    ///
    /// Errors if a parameter is out of range, or if a weight is not finite. Errors if `stats` lack what the base method or the norm needs,
    /// or if statistics that are needed have another number of features than `w`; a Gram matrix in `stats` must have as many as `w` even if
    /// it is not needed. Errors if the damped Gram matrix of [`Norm::Gram`] is not positive definite, or if the singular value
    /// decomposition of the error of the quantized matrix does not converge. Errors if the base method or the method that stores the
    /// factors errors.
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

/// Checked parameters of a quantized matrix with a low-rank correction, made by `check` of [`Corrected`], and the [`Method`] that
/// compresses with them. It compresses whole matrices only, not blocks of rows. Compressing errors if the weights have a
/// [`Mask`](tersor_core::Mask) that sets some of them to zero, because the sum with a product of factors would not keep the zeros.
pub struct CheckedCorrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Box<dyn Method>,
}
