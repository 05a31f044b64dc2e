//! Activation-aware weight quantization (AWQ, Lin et al., arXiv 2306.00978): [`Awq`] scales up the columns of weights that read large activations
//! before they are rounded; [`OutputClip`] then clips the range of each group of weights where this lowers the error of the outputs.

mod algorithm;
mod method;
mod params;

pub use crate::output_clip::{CheckedOutputClip, OutputClip};
pub use params::Awq;
pub(crate) use params::AwqStage;
