//! Asymmetric integers for each token and head (ResQ, arXiv 2412.14363, section 4.1; KIVI's values, arXiv 2402.02750).

mod cache;
mod packed;
mod params;

pub use cache::IntCache;
pub use params::{CheckedIntegers, Integers};
