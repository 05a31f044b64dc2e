//! Activation-aware weight quantization (Lin et al., arXiv 2306.00978): columns that read large inputs are enlarged before they are rounded, by as
//! much as serves the module's outputs best; then ranges of groups are cut where that serves the outputs of a matrix.

mod clip;
mod scales;

pub use clip::{CheckedOutputClip, OutputClip};
pub use scales::Awq;
