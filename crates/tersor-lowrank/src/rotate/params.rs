//! Parameters of rotations.

use tersor_core::{Check, ParamError};

use super::SHARES;

/// The kind of the rotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Random Hadamard matrices.
    Hadamard,
    /// Random orthogonal matrices.
    Orthogonal,
    /// Principal directions of what flows through the network.
    Principal {
        /// Whether coefficients are rotated at random inside each subspace.
        mix: bool,
    },
}

/// Parameters of the rotation of a network, unchecked: subspaces of seven eighths and an eighth, the attention output in its own order.
#[derive(Clone, PartialEq, Debug)]
pub struct Rotate {
    by: By,
    shares: Vec<f64>,
    split_heads: bool,
    head: String,
}

impl Rotate {
    /// Returns the rotation by matrices of this kind.
    pub fn new(by: By) -> Self {
        Self { by, shares: SHARES.to_vec(), split_heads: false, head: "lm_head.weight".into() }
    }

    /// Shares of the subspaces of the principal directions, the one with the smallest variances first; above 0, they add to 1.
    pub fn shares(self, shares: Vec<f64>) -> Self {
        Self { shares, ..self }
    }

    /// Orders the attention output by subspaces, the first one of every head first, for matrices that split their columns.
    pub fn split_heads(self, split_heads: bool) -> Self {
        Self { split_heads, ..self }
    }

    /// Name of the head's weight where the model has none, because its head is the embedding.
    pub fn head(self, name: &str) -> Self {
        Self { head: name.into(), ..self }
    }
}

/// Checked parameters: the rewrite.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRotate {
    pub(super) by: By,
    pub(super) shares: Vec<f64>,
    pub(super) split_heads: bool,
    pub(super) head: String,
}

impl CheckedRotate {
    /// Returns whether the rotations are found on a calibration text.
    pub fn needs_data(&self) -> bool {
        matches!(self.by, By::Principal { .. })
    }
}

impl Check for Rotate {
    type Checked = CheckedRotate;
    fn check(self) -> Result<CheckedRotate, ParamError> {
        let sum: f64 = self.shares.iter().sum();
        if self.shares.iter().any(|s| !s.is_finite() || *s <= 0.0) || (sum - 1.0).abs() > 1e-6 {
            return Err(ParamError::new("shares", format!("{:?}", self.shares), "must be above 0 and add to 1"));
        }
        if self.head.is_empty() {
            return Err(ParamError::new("head", "empty", "must be the name of a weight"));
        }
        Ok(CheckedRotate { by: self.by, shares: self.shares, split_heads: self.split_heads, head: self.head })
    }
}
