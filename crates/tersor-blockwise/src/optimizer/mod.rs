//! Optimizers whose moments take 8 bits (arXiv 2110.02861).

mod group;
mod params;
mod state;
mod step;

pub use group::BlockwiseOptimizer;
pub use params::{CheckedConfig, Decay, OptimizerConfig, Rule};
pub use state::State;
pub use step::StepOptions;
