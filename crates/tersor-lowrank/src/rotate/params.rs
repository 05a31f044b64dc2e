//! Parameters of rotations.

use tersor_core::{Check, ParamError};

/// The number of calibration tokens, 4096, from whose keys and values the principal directions of keys and values are computed
/// ([`By::Principal`]). The tokens are those of the first whole windows (the sequences that the calibration text is cut into) that together
/// have at most this many tokens, but of one window at least.
pub const SAMPLE_TOKENS: usize = 4096;

/// The default of [`Rotate::shares`]: the fractions of all features in the two subspaces of principal directions. The first subspace has
/// 7/8 of the features, with the smallest variances, for few bits; the second has 1/8, with the largest variances, for more bits (ResQ,
/// arXiv 2412.14363, section 4.1).
pub const SHARES: [f64; 2] = [0.875, 0.125];

/// The kind of matrices that [`Rotate`] rotates a network with: random Hadamard or orthogonal matrices, which need no data, or the
/// principal directions of calibration data.
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

/// Parameters, unchecked until `check`, of the rotation of a whole decoder: of its residual stream, of the values of its attention and of
/// the inputs of its down projections, and with [`By::Principal`] also of its keys. By default principal directions are cut into two
/// subspaces, with the fractions [`SHARES`] of the features and the smallest variances first; the features of the attention output keep
/// their order; and an output head that is tied to the embedding gets a weight of its own with the name `lm_head.weight`.
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
    /// Returns parameters for rotation matrices of the kind `by`. The other parameters have their defaults: the fractions [`SHARES`] of the
    /// features in the two subspaces of principal directions, the features of the attention output in their own order, and `lm_head.weight`
    /// as the name of the weight that an output head tied to the token embedding gets.
    pub fn new(by: By) -> Self {
        Self { by, shares: SHARES.to_vec(), split_heads: false, head: "lm_head.weight".into() }
    }

    /// Sets the fractions of features in the subspaces of principal directions, with the subspace of the smallest variances first;
    /// [`SHARES`] by default. `check` errors unless there is at least one, each is finite and above 0, and they add to 1 (to 1e-6). Random
    /// rotations use them only for the order that [`split_heads`](Self::split_heads) sets.
    pub fn shares(self, shares: Vec<f64>) -> Self {
        Self { shares, ..self }
    }

    /// Sets whether the features of the attention output (the inputs of its output projection) are permuted when the network runs. False,
    /// the default, leaves them head after head. True cuts the features of each head into consecutive ranges with the fractions of
    /// [`shares`](Self::shares), and puts the first range of every head first, then the second range of every head, and so on.
    /// [`Subspaces::heads`](crate::Subspaces::heads) expects this order.
    pub fn split_heads(self, split_heads: bool) -> Self {
        Self { split_heads, ..self }
    }

    /// Sets the name of the weight that the output head gets if the network ties it to the token embedding; `lm_head.weight` by default.
    /// Such a head must be stored as a weight of its own, because the weight of the last norm is multiplied into the head but not into the
    /// embedding. If the head is not tied, it keeps its name and this one is ignored. `check` errors if `name` is empty.
    pub fn head(self, name: &str) -> Self {
        Self { head: name.into(), ..self }
    }
}

/// Checked parameters of the rotation of a decoder, made by `check` of [`Rotate`], and the [`Rewrite`](tersor_core::Rewrite) (a change of a
/// network before its matrices are compressed) that applies them. It merges the weights of norms and the rotations into the stored weights,
/// so that the outputs of the network are unchanged up to rounding. Three changes are not merged, but take place when the network runs: the
/// inputs of the down projections are rotated; with [`Rotate::split_heads`] the features of the attention output are permuted; and with
/// [`By::Principal`] the keys in the cache are rotated, after the rotary embedding.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedRotate {
    pub(super) by: By,
    pub(super) shares: Vec<f64>,
    pub(super) split_heads: bool,
    pub(super) head: String,
}

impl CheckedRotate {
    /// Returns whether the rotations are computed from calibration data: true for [`By::Principal`], false for the random matrices of
    /// [`By::Hadamard`] and [`By::Orthogonal`].
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
