#![doc = include_str!("../README.md")]

mod embedding;
mod error;
mod function;
mod linear;
mod matrix;
#[cfg(feature = "models")]
mod model;
mod network;
mod observe;
#[cfg(feature = "optimizer")]
mod optimizer;
mod storage;

pub use embedding::CompressedEmbedding;
pub use error::{Error, Result};
pub use function::Function;
pub use linear::CompressedLinear;
pub use matrix::Matrix;
#[cfg(feature = "models")]
pub use model::Compressed;
pub use network::{CandleNetwork, TapLinear, Taps};
pub use observe::{ObservedLinear, Observer};
#[cfg(feature = "optimizer")]
pub use optimizer::{VarOptimizer, VarParams};
pub use tersor_core as core;

#[cfg(feature = "optimizer")]
pub use tersor_blockwise::optimizer::OptimizerConfig;
