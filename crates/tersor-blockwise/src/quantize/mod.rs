//! Block-wise quantization (Dettmers et al., arXiv 2110.02861 and 2305.14314): each value becomes a code of a codebook, each block of values shares a
//! scale.

mod algorithm;
mod method;
mod params;
mod stream;

pub use params::{Blockwise, CheckedBlockwise};
pub use stream::Stream;
