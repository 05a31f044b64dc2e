//! SmoothQuant (Xiao et al., arXiv 2211.10438): factors from the largest magnitudes of activations and weights.

mod algorithm;
mod method;
mod params;

pub use params::{CheckedSmoothQuant, SmoothQuant};
