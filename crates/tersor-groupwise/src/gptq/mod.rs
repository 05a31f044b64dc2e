//! GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and each rounding error is compensated by an update of the columns
//! not yet rounded, by the inverse Hessian of the layer's inputs.

mod algorithm;
mod method;
mod params;

pub(crate) use method::Ready;
pub use params::{CheckedGptq, Dead, Gptq, OnFailure};

pub use crate::coder::Groups;
pub use tersor_linalg::HessianFactor;
