//! Parameters of a corrected quantization.

use tersor_core::{Check, Element, IntoMat, LinearOp, Method, ParamError, Report, Result, StatSet};

use crate::factor::method_storage;
use crate::{Norm, Rank};

/// The result of a method plus the best low-rank approximation of its error, unchecked.
pub struct Corrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Option<Box<dyn Method>>,
}

impl Corrected {
    /// Returns LQER over any method: singular directions of the error of the weights, rank 32 (the paper's at 4 bits), factors in f16.
    pub fn lqer(base: Box<dyn Method>) -> Self {
        Self { base, norm: Norm::Plain, rank: Rank::Fixed(32), factors: None }
    }

    /// Returns L²QER over any method: errors are weighed by the mean magnitude of their input feature.
    pub fn l2qer(base: Box<dyn Method>) -> Self {
        Self::lqer(base).norm(Norm::Magnitude)
    }

    /// The norm of the error that is minimized.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// The number of singular directions that are kept.
    pub fn rank(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// How the factors are stored, by a method that needs no data (the paper: 8-bit MXINT).
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` for inputs with these statistics; where neither the base nor the
    /// norm needs them, [`StatSet::none`] serves. Errors on a wrong parameter, statistics that lack what is needed, or a value that is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

impl Check for Corrected {
    type Checked = CheckedCorrected;
    fn check(self) -> Result<CheckedCorrected, ParamError> {
        self.rank.check()?;
        let factors = method_storage(self.factors)?;
        Ok(CheckedCorrected { base: self.base, norm: self.norm, rank: self.rank, factors })
    }
}

/// Checked parameters.
pub struct CheckedCorrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Box<dyn Method>,
}
