//! Dual-grained quantization (DGQ, Zhang et al., arXiv 2310.04836): 4-bit codes with integer scales of groups under one float scale of the row. A row
//! expands exactly to 8-bit integers with one scale, so products with 8-bit activations accumulate in integers.

mod algorithm;
mod method;
mod params;

pub(crate) use params::four_bit_segments;
pub use params::{CheckedDgq, Dgq};
