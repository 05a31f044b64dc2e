//! QQQ's adaptive smoothing (Zhang et al., arXiv 2406.09904, section 3.1): only channels above a threshold are smoothed, and the threshold is
//! searched.

mod algorithm;
mod method;
mod params;

pub use params::Adaptive;
pub(crate) use params::AdaptiveStage;
