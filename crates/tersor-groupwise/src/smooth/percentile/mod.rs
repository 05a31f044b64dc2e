//! DGQ's percentile clipping of activations (Zhang et al., arXiv 2310.04836, section 3.3): outlier channels are scaled down to a baseline.

mod algorithm;
mod method;
mod params;

pub use params::Percentile;
