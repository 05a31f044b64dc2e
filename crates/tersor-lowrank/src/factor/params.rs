//! Parameters of factorizations: the rank, the norm of the error, and [`LowRank`].

use tersor_core::{Check, Element, IntoMat, LinearOp, Method, ParamError, Report, Result, StatNeeds, StatSet};

use super::storage::storage;

/// How the rank of a factorization `up · down` is chosen: as a fixed number, by the bits that the factors take for each weight, or by the
/// relative error. The rank is the number of singular directions that are kept, which is the number of columns of `up` and of rows of
/// `down`. No variant is the default.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rank {
    /// This rank, at least 1; `min(rows, columns)` of the matrix if that is smaller.
    Fixed(usize),
    /// The largest rank whose factors together take at most this many bits for each weight of the matrix (finite and above 0), but at least
    /// rank 1.
    Bits(f64),
    /// The smallest rank whose relative error, in the [`Norm`] that is minimized, is at most `tolerance`; `max` if no rank up to `max`
    /// reaches that.
    Error {
        /// The norm of the error divided by the norm of the matrix, above 0 and below 1.
        tolerance: f64,
        /// The largest rank, at least 1.
        max: usize,
    },
}

impl Rank {
    /// Checks the numbers in this choice of a rank. Errors if the rank of `Fixed` or `max` of `Error` is 0, the bits of `Bits` are not
    /// finite and above 0, or the `tolerance` of `Error` is not above 0 and below 1.
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

    /// Returns the largest rank that this choice can give a matrix `[rows, cols]`, never above `min(rows, cols)`: the rank of
    /// [`Rank::Fixed`], `max` of [`Rank::Error`], and for [`Rank::Bits`] the largest rank whose factors together take at most its bits for
    /// each weight of the matrix (at least rank 1). Returns 0 if the matrix is empty. `bits` is the number of bits in which one value of a
    /// factor is stored; only [`Rank::Bits`] uses it. Arguments that are out of range do not error: a rank or `max` of 0 gives 0; with
    /// [`Rank::Bits`], if its bits or the argument `bits` are 0, negative or NaN, the result is some number from 1 to `min(rows, cols)`.
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

/// The norm of the error `E`, `[out_features, in_features]` (a matrix minus the product of its factors), that low-rank factors minimize:
/// the plain Frobenius norm of `E`, the norm with each input feature weighted by its mean magnitude in the calibration data, or the norm of
/// the errors of the outputs. No variant is the default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Norm {
    /// The Frobenius norm `‖E‖`: the error of the weights (LQER).
    Plain,
    /// `‖E diag(s)‖` with `s_j = a_j / sqrt(min(a) max(a))` and `a_j` the mean magnitude of input feature `j`, the largest of all
    /// calibration batches but at least 1e-4 (L²QER, arXiv 2402.02446, section 3.2).
    Magnitude,
    /// `‖E L‖` with the Cholesky factor `L` of the Gram matrix of the inputs, to whose diagonal 0.01 of its mean is added: the error of the
    /// outputs.
    Gram,
}

impl Norm {
    /// Returns which statistics of the inputs the norm needs: none for [`Norm::Plain`], those of each feature (`channel`) for
    /// [`Norm::Magnitude`], the Gram matrix for [`Norm::Gram`].
    pub fn needs(self) -> StatNeeds {
        let none = StatNeeds::default();
        match self {
            Norm::Plain => none,
            Norm::Magnitude => StatNeeds { channel: true, ..none },
            Norm::Gram => StatNeeds { gram: true, ..none },
        }
    }
}

/// Parameters, unchecked until `check`, of a low-rank factorization `W ≈ up · down` of a weight matrix by its singular values. By default
/// the plain Frobenius norm of the error is minimized ([`Norm::Plain`]), and the factors are stored in f16.
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
    /// Returns the parameters of a factorization `up · down` whose rank `rank` chooses. The plain Frobenius norm of the error is minimized
    /// and the factors are stored in f16, unless [`norm`](Self::norm) and [`factors`](Self::factors) set otherwise. `check` errors if the
    /// rank of [`Rank::Fixed`] or `max` of [`Rank::Error`] is 0, if the bits of [`Rank::Bits`] are not finite and above 0, or if the
    /// `tolerance` of [`Rank::Error`] is not above 0 and below 1.
    pub fn new(rank: Rank) -> Self {
        Self { norm: Norm::Plain, rank, factors: None }
    }

    /// Sets the norm of the error (the weight matrix minus the product of its two factors) that is minimized, in place of [`Norm::Plain`].
    /// All other norms need statistics of the inputs.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// Sets the method that stores the two factors `up`, `[out_features, rank]`, and `down`, `[rank, in_features]`, in place of f16.
    /// `check` errors if the method needs calibration data.
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and factors `w`, `[out_features, in_features]`. `stats` are the statistics of the inputs that `w` is
    /// multiplied with; [`StatSet::none`] suffices for [`Norm::Plain`]. Returns a [`Factored`](tersor_operators::Factored) (the product of
    /// the two stored factors) and a report of the error of the weights. Errors if a parameter is out of range, or if a weight is not
    /// finite. Errors if `stats` lack what the norm needs, or if statistics that are needed have another number of features than `w`.
    /// Errors if the damped Gram matrix of [`Norm::Gram`] is not positive definite, or if the singular value decomposition does not
    /// converge. Errors if the method that stores the factors errors.
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

/// Checked parameters of a low-rank factorization, made by `check` of [`LowRank`], and the [`Method`] that compresses with them. It
/// compresses whole matrices only, not blocks of rows. Compressing errors if the weights have a [`Mask`](tersor_core::Mask) that sets some
/// of them to zero, because a product of factors would not keep the zeros.
pub struct CheckedLowRank {
    pub(super) norm: Norm,
    pub(super) rank: Rank,
    pub(super) factors: Box<dyn Method>,
}
