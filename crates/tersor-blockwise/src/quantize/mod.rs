//! Block-wise quantization: values as codes of a codebook and a scale for each block.

mod algorithm;
mod method;
mod params;
mod stream;

pub use params::{Blockwise, CheckedBlockwise};
pub use stream::Stream;
