//! A matrix as a product of two thin ones.

mod decompose;
mod method;
mod params;

pub use decompose::{Factors, factorize};
pub(crate) use decompose::{Weights, bits_of, compress_factors, decompose, factor_layout};
pub use method::{CheckedLowRank, LowRank};
pub(crate) use method::{storage as method_storage, whole};
pub use params::{Norm, Rank};
