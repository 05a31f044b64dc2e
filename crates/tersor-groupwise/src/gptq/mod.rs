//! GPTQ: round one column after another, and let the columns that follow make up for the error, as the inputs that were seen say they can
//! (Frantar et al. 2022, arXiv 2210.17323).

mod algorithm;
mod method;
mod params;

pub(crate) use method::Ready;
pub use params::{CheckedGptq, Dead, Gptq, OnFailure};

pub use crate::coder::Groups;
pub use tersor_linalg::HessianFactor;
