//! Dual-grained quantization (Zhang et al., arXiv 2310.04836): groups of 4-bit codes whose scales are integers, so that a row expands exactly into
//! 8-bit weights with one scale, and a product with 8-bit activations is one integer sum a row.

mod algorithm;
mod method;
mod params;

pub use params::{CheckedDgq, Dgq};
