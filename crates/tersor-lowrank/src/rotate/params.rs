//! Parameters of rotations.

use tersor_core::{Check, ParamError};

/// Number of calibration tokens on whose keys and values their principal directions are computed ([`By::Principal`]). They are whole windows:
/// sequences that attention is computed over.
pub const SAMPLE_TOKENS: usize = 4096;

/// Default shares of all features in the two subspaces of principal directions: 7/8 with the smallest variances, for few bits, and 1/8 with the
/// largest, for more bits (ResQ, arXiv 2412.14363, section 4.1).
pub const SHARES: [f64; 2] = [0.875, 0.125];

/// The kind of rotation matrices of [`Rotate`]: random ones, or principal directions of calibration data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Random Hadamard matrices.
    Hadamard,
    /// Random orthogonal matrices.
    Orthogonal,
    /// The principal directions of the residual stream, of values and of keys.
    Principal {
        /// Whether a random rotation is applied inside each subspace.
        mix: bool,
    },
}

/// Unchecked parameters of the rotation of a decoder. By default the subspaces are those of [`SHARES`], the features of the attention output keep
/// their order, and an output head that is tied to the embedding becomes a weight of its own, `lm_head.weight`.
///
/// ```
/// use tersor_core::Rewrite;
/// use tersor_lowrank::{By, Check, Rotate};
/// # fn main() -> tersor_lowrank::Result<()> {
/// let rewrite = Rotate::new(By::Principal { mix: true }).shares(vec![0.75, 0.25]).check()?;
/// assert!(rewrite.needs_data());
/// assert_eq!(rewrite.name(), "rotate into principal directions");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Rotate {
    by: By,
    shares: Vec<f64>,
    split_heads: bool,
    head: String,
}

impl Rotate {
    /// Returns the default parameters for matrices of this kind.
    pub fn new(by: By) -> Self {
        Self { by, shares: SHARES.to_vec(), split_heads: false, head: "lm_head.weight".into() }
    }

    /// Sets the shares of the subspaces of principal directions, the one of the smallest variances first. They must be above 0 and add to 1.
    pub fn shares(self, shares: Vec<f64>) -> Self {
        Self { shares, ..self }
    }

    /// Sets whether the features of the attention output are permuted so that the first subspace of every head comes first, then the second: the
    /// order that [`Subspaces::heads`](crate::Subspaces::heads) expects. The permutation is applied when the network runs.
    pub fn split_heads(self, split_heads: bool) -> Self {
        Self { split_heads, ..self }
    }

    /// Sets the name of the output head's weight if the head was tied to the embedding: it becomes a weight of its own. Must not be empty.
    pub fn head(self, name: &str) -> Self {
        Self { head: name.into(), ..self }
    }
}

/// Checked parameters of the rotation of a decoder, and its [`Rewrite`](tersor_core::Rewrite): it folds norms and rotations into the weights, and
/// rotates the inputs of the down projections when the network runs.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRotate {
    pub(super) by: By,
    pub(super) shares: Vec<f64>,
    pub(super) split_heads: bool,
    pub(super) head: String,
}

impl CheckedRotate {
    /// Returns whether the rotations need calibration data: true for [`By::Principal`].
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
