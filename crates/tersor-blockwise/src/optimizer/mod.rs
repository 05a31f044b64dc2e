//! Optimizers whose moments take 8 bits (arXiv 2110.02861).

mod group;
mod params;
mod state;
mod step;

pub use group::Group;
pub use params::{CheckedOptimizer, Decay, Optimizer, Rule};
pub use state::State;
