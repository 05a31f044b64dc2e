//! What a corrected quantization can be told.

use tersor_core::{Check, Method, ParamError};

use crate::factor::method_storage;
use crate::{Norm, Rank};

/// Another method's result plus the best product of thin matrices for what it got wrong, unchecked.
pub struct Corrected {
    pub(super) base: Box<dyn Method>,
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Option<Box<dyn Method>>,
}

impl Corrected {
    /// LQER over any method: singular directions of the error of the weights. Rank 32 (the paper's at 4 bits); factors in f16.
    pub fn lqer(base: Box<dyn Method>) -> Self {
        Self { base, norm: Norm::Plain, rank: Rank::Fixed(32), factors: None }
    }

    /// L²QER over any method: the error of each input feature counts as much as its mean magnitude.
    pub fn l2qer(base: Box<dyn Method>) -> Self {
        Self::lqer(base).norm(Norm::Magnitude)
    }

    /// Which error counts.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// How many directions are kept.
    pub fn rank(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// How the factors are stored, by a method that needs no data (the paper: 8-bit MXINT).
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
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
