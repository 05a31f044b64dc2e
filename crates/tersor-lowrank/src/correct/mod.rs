//! Quantization with a correction of low rank: LQER and L²QER (arXiv 2402.02446).

mod method;
mod params;

pub use params::{CheckedCorrected, Corrected};
