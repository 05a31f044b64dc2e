//! Optimizers with block-wise 8-bit moments (Dettmers et al., arXiv 2110.02861): [`OptimizerConfig`] with a [`State`] for each tensor, or a
//! [`BlockwiseOptimizer`] for all tensors of a model.

mod algorithm;
mod method;
mod params;
mod state;

pub use method::BlockwiseOptimizer;
pub use params::{CheckedConfig, Decay, OptimizerConfig, Rule, StepOptions};
pub use state::State;
