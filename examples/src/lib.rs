//! Shared parts of the example programs: the stable embedding layer, and the included small model.

mod embedding;
pub mod tiny;

pub use embedding::StableEmbedding;
