//! Smoothing: the features of activations are divided by factors, and the columns of weights multiplied by them, before either is quantized. The
//! rewrites [`SmoothQuant`], [`Percentile`] (DGQ), [`Adaptive`] (QQQ) and [`Awq`](crate::Awq) choose the factors; [`smoothed`] applies given ones.

mod adaptive;
mod percentile;
mod rewrite;
mod smoothquant;
mod trial;

pub use adaptive::Adaptive;
pub(crate) use adaptive::AdaptiveStage;
pub use percentile::Percentile;
pub use rewrite::smoothed;
pub(crate) use rewrite::{Factors, largest_magnitudes};
pub use smoothquant::{CheckedSmoothQuant, SmoothQuant};
pub(crate) use trial::Trial;
