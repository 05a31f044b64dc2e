//! A weight matrix as the product of two factors of low rank. The decomposition and the storage of factors also serve corrections.

mod algorithm;
mod method;
mod params;
mod storage;

pub use algorithm::{Factors, factorize};
pub(crate) use algorithm::{Weights, decompose};
pub use params::{CheckedLowRank, LowRank, Norm, Rank};
pub(crate) use storage::{bits_of, compress_factors, factor_layout, storage, whole};
