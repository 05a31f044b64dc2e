//! Block-wise quantized values: codebooks, values with scales of blocks, and matrices of them.

mod linear;
mod map;
mod quantized;

pub(crate) use linear::load;
pub use linear::{BlockwiseForm, BlockwiseLinear};
pub use map::{Map, MapKind};
pub use quantized::{NESTED_BLOCK, Quantized, Scales, inverse_scale};
