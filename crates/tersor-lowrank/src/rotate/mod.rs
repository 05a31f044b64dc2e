//! Rotations of a whole decoder (QuaRot, arXiv 2404.00456; SliceGPT, arXiv 2401.15024; ResQ, arXiv 2412.14363).
//!
//! Rotations of the residual stream and of values are merged into the weights; the inner activations of the feed-forward part are rotated when the
//! network runs. Before that the weights of norms are folded into the matrices that read them, and a head tied to the embedding becomes a matrix of
//! its own.
//!
//! Random rotations need no data. Principal ones are found on a calibration text; then each key/value head has a rotation of its values, and each
//! layer one of its keys, which the cache applies after the rotary embedding.

mod algorithm;
mod method;
mod params;
mod parts;
mod stage;

pub(crate) use stage::RotateStage;

pub use params::{By, CheckedRotate, Rotate, SAMPLE_TOKENS, SHARES};
