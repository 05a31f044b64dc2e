//! What the example programs share: Tersor's optimizers for candle, the paper's embedding layer, and the small model that ships here.

mod embedding;
mod optimizer;
pub mod tiny;

pub use embedding::StableEmbedding;
pub use optimizer::EightBit;
