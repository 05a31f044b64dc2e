//! Asymmetric integers per token and head (ResQ, arXiv 2412.14363, section 4.1; KIVI's values, arXiv 2402.02750).

mod method;
mod params;

pub use method::IntegerCaches;
pub(crate) use method::load;
pub use params::{CheckedIntegers, Integers};
