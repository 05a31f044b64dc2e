//! Parameters of factorizations: the rank, the norm of the error, and [`LowRank`].

use tersor_core::{Check, Element, IntoMat, LinearOp, Method, ParamError, Report, Result, StatNeeds, StatSet};

use super::storage::storage;

/// How the rank of a factorization, its number of singular directions, is chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rank {
    /// This number, or the full rank of a smaller matrix.
    Fixed(usize),
    /// The largest rank whose factors together take at most this many bits for each weight of the matrix; at least 1.
    Bits(f64),
    /// The smallest rank whose relative error, in the [`Norm`] that is minimized, is at most `tolerance`; at most `max`.
    Error {
        /// The norm of the error divided by that of the matrix, above 0 and below 1.
        tolerance: f64,
        /// The largest rank, at least 1.
        max: usize,
    },
}

impl Rank {
    /// Checks the parameters. Errors if a rank is 0, the bits are not finite and above 0, or the tolerance is not above 0 and below 1.
    pub fn check(self) -> Result<(), ParamError> {
        match self {
            Rank::Fixed(0) | Rank::Error { max: 0, .. } => Err(ParamError::new("rank", 0, "must be at least 1")),
            Rank::Bits(b) if !(b.is_finite() && b > 0.0) => {
                Err(ParamError::new("rank_bits", b, "must be finite and above 0: bits for each weight"))
            }
            Rank::Error { tolerance, .. } if !(tolerance > 0.0 && tolerance < 1.0) => {
                Err(ParamError::new("tolerance", tolerance, "must be above 0 and below 1"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the largest rank that a matrix `[rows, cols]` can get. `bits` is the storage of one value of a factor, for [`Rank::Bits`].
    pub fn max_rank(self, [rows, cols]: [usize; 2], bits: f64) -> usize {
        let full = rows.min(cols);
        match self {
            Rank::Fixed(n) | Rank::Error { max: n, .. } => n.min(full),
            Rank::Bits(b) => {
                let each = bits * (rows as f64 + cols as f64);
                ((b * rows as f64 * cols as f64 / each) as usize).clamp(1.min(full), full)
            }
        }
    }
}

/// The norm of the error `E`, `[out_features, in_features]`, that factors minimize.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Norm {
    /// `‖E‖`: the error of the weights (LQER).
    Plain,
    /// `‖E diag(s)‖` with `s_j = a_j / sqrt(min(a) max(a))` and `a_j` the mean magnitude of input feature `j`, the largest of all calibration batches
    /// (L²QER, arXiv 2402.02446, section 3.2).
    Magnitude,
    /// `‖E L‖` with the Cholesky factor `L` of the damped Gram matrix of the inputs: the error of the outputs.
    Gram,
}

impl Norm {
    /// Returns the statistics of the inputs that the norm needs.
    pub fn needs(self) -> StatNeeds {
        let none = StatNeeds::default();
        match self {
            Norm::Plain => none,
            Norm::Magnitude => StatNeeds { channel: true, ..none },
            Norm::Gram => StatNeeds { gram: true, ..none },
        }
    }
}

/// Unchecked parameters of a factorization `W ≈ up · down` by singular values. By default the norm is [`Norm::Plain`], and factors are stored as f16.
///
/// ```
/// use tersor_lowrank::{LinearOp, LowRank, MatView, Rank, StatSet};
///
/// # fn main() -> tersor_lowrank::Result<()> {
/// let weights: Vec<f32> = (0..24 * 16).map(|i| (i / 16) as f32 * (i % 16) as f32 / 100.0).collect();
/// let (op, report) = LowRank::new(Rank::Fixed(2)).quantize(&MatView::new(&weights, [24, 16])?, &StatSet::none())?;
/// assert_eq!(op.storage_bits(), (24 * 2 + 2 * 16) * 16);
/// assert!(report.relative_error() < 1e-3);
/// # Ok(())
/// # }
/// ```
pub struct LowRank {
    norm: Norm,
    rank: Rank,
    factors: Option<Box<dyn Method>>,
}

impl LowRank {
    /// Returns the parameters of a factorization `up · down` of a matrix with the given rank: the error is minimized in the plain Frobenius norm, and
    /// factors are stored in f16, unless [`norm`](Self::norm) and [`factors`](Self::factors) set otherwise.
    pub fn new(rank: Rank) -> Self {
        Self { norm: Norm::Plain, rank, factors: None }
    }

    /// Sets the norm in which the error is minimized.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// Sets the method that stores each factor, in place of f16. It must need no calibration data.
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and factors `w`, `[out_features, in_features]`, for inputs with the statistics `stats`; [`StatSet::none`] suffices for
    /// [`Norm::Plain`]. Returns a [`Factored`](tersor_operators::Factored). Errors if a parameter is out of range, the statistics lack what the norm
    /// needs, or a weight is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

impl Check for LowRank {
    type Checked = CheckedLowRank;
    fn check(self) -> Result<CheckedLowRank, ParamError> {
        self.rank.check()?;
        let factors = storage(self.factors)?;
        Ok(CheckedLowRank { norm: self.norm, rank: self.rank, factors })
    }
}

/// Checked parameters of a factorization, and its [`Method`]. Compressing fails for weights with a [`Mask`](tersor_core::Mask) that sets some to
/// zero: a product of factors would not keep the zeros.
pub struct CheckedLowRank {
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Box<dyn Method>,
}
