//! How many directions are kept, and which error counts.

use tersor_core::{ParamError, Result, StatNeeds};

/// How many singular directions are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rank {
    /// So many; of a matrix that has fewer, all.
    Fixed(usize),
    /// As many as fit into so many bits a weight of the matrix, at least 1.
    Bits(f64),
    /// The fewest that leave at most this part of the norm (in the [`Norm`] that counts), but no more than `most`.
    Error {
        /// Above 0 and below 1.
        left: f64,
        /// The largest rank.
        most: usize,
    },
}

impl Rank {
    /// Error when the number is not one that it can be.
    pub fn check(self) -> Result<(), ParamError> {
        match self {
            Rank::Fixed(0) | Rank::Error { most: 0, .. } => Err(ParamError::new("rank", 0, "must be at least 1")),
            Rank::Bits(b) if !(b.is_finite() && b > 0.0) => {
                Err(ParamError::new("rank_bits", b, "must be a finite number of bits a weight above 0"))
            }
            Rank::Error { left, .. } if !(left > 0.0 && left < 1.0) => {
                Err(ParamError::new("left", left, "must be above 0 and below 1"))
            }
            _ => Ok(()),
        }
    }

    /// The largest rank for a matrix `[rows, cols]` whose factors take `bits` a value.
    pub fn most(self, [rows, cols]: [usize; 2], bits: f64) -> usize {
        let full = rows.min(cols);
        match self {
            Rank::Fixed(n) | Rank::Error { most: n, .. } => n.min(full),
            Rank::Bits(b) => {
                let each = bits * (rows as f64 + cols as f64);
                ((b * rows as f64 * cols as f64 / each) as usize).clamp(1.min(full), full)
            }
        }
    }
}

/// Which error the factors are best for.
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
    /// What must be known of the inputs.
    pub fn needs(self) -> StatNeeds {
        let none = StatNeeds { whole_matrix: true, ..StatNeeds::default() };
        match self {
            Norm::Plain => none,
            Norm::Magnitude => StatNeeds { channel: true, ..none },
            Norm::Gram => StatNeeds { gram: true, ..none },
        }
    }
}
