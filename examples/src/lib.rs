//! Shared parts of the example programs: Tersor's optimizers for candle, the stable embedding layer, and the included small model.

mod embedding;
mod optimizer;
pub mod tiny;

pub use embedding::StableEmbedding;
pub use optimizer::EightBit;
