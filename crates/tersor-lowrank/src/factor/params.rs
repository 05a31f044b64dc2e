//! Parameters of factorizations: the rank, and the norm of the error.

use tersor_core::{ParamError, Result, StatNeeds};

/// How many singular directions are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rank {
    /// This many, or all of a matrix that has fewer.
    Fixed(usize),
    /// As many as fit into this many bits for each weight of the matrix, at least 1.
    Bits(f64),
    /// The fewest whose product is within a relative tolerance of the matrix (in the [`Norm`] that is minimized), at most `max`.
    Error {
        /// The share of the norm that may remain, above 0 and below 1.
        tolerance: f64,
        /// The largest rank.
        max: usize,
    },
}

impl Rank {
    /// Errors if the rank is 0, or a number is out of its range.
    pub fn check(self) -> Result<(), ParamError> {
        match self {
            Rank::Fixed(0) | Rank::Error { max: 0, .. } => Err(ParamError::new("rank", 0, "must be at least 1")),
            Rank::Bits(b) if !(b.is_finite() && b > 0.0) => {
                Err(ParamError::new("rank_bits", b, "must be a finite number of bits a weight above 0"))
            }
            Rank::Error { tolerance, .. } if !(tolerance > 0.0 && tolerance < 1.0) => {
                Err(ParamError::new("tolerance", tolerance, "must be above 0 and below 1"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the largest rank for a matrix `[rows, cols]` whose factors take `bits` bits a value.
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

/// The norm of the error that the factors minimize.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Norm {
    /// `‖E‖`: of the weights (LQER).
    Plain,
    /// `‖E diag(s)‖`, `s` the mean magnitude of each input feature over its scale (L²QER; arXiv 2402.02446, section 3.2).
    Magnitude,
    /// `‖E L‖` where `L Lᵀ` is the Gram matrix of the inputs: the error of the outputs.
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
