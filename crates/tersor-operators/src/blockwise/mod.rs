//! Matrices in blocks under codebooks.

mod linear;
mod map;
mod quantized;

pub(crate) use linear::load;
pub use linear::{BlockwiseForm, BlockwiseLinear};
pub use map::{Map, MapKind};
pub use quantized::{NESTED_BLOCK, Quantized, Scales, inverse_scale};
