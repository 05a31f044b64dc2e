//! Low-rank correction of a quantized matrix: LQER and L²QER (Zhang et al., arXiv 2402.02446).

mod algorithm;
mod method;
mod params;

pub use params::{CheckedCorrected, Corrected};
