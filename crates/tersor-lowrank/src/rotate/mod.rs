//! Rotations of a whole decoder: of the residual stream and of values, merged into the weights, and of the inner activations of the feed-forward
//! part when the network runs.
//!
//! Norms are folded first: their weights go into the matrices that read them, and the normed stream rotates as the stream does (QuaRot, arXiv
//! 2404.00456; SliceGPT, arXiv 2401.15024). A head that is the embedding becomes a matrix of its own.
//!
//! Random rotations need no data. Principal ones (ResQ, arXiv 2412.14363) are found on a calibration text: then values have a rotation for each
//! key/value head, and keys one for each layer, which the cache applies after their rotary embedding.

mod params;
mod parts;
mod rewrite;

pub use params::{By, CheckedRotate, Rotate};

/// Tokens of whole windows that the principal directions of keys and values are found on.
pub const SAMPLE_TOKENS: usize = 4096;

/// Shares of the subspaces unless set otherwise: an eighth of all directions has more bits (arXiv 2412.14363, section 4.1).
pub const SHARES: [f64; 2] = [0.875, 0.125];
