//! Weights on uniform grids, with a scale for each group.

mod grid;
mod linear;

pub use grid::{Clip, Grid, GroupSpec, QuantParams, round_scale};
pub(crate) use linear::load;
pub use linear::{GroupedLinear, spans};
