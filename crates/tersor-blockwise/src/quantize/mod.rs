//! Tensors as codes and a scale a block.

mod params;
mod quantized;
mod stream;

pub(crate) use params::inverse;
pub use params::{Blockwise, CheckedBlockwise};
pub(crate) use quantized::NESTED_BLOCK;
pub use quantized::{Quantized, Scales};
pub use stream::Stream;
