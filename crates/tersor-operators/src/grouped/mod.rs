//! Uniform grids over groups of weights.

mod grid;
mod linear;

pub use grid::{Clip, Grid, GroupFit, GroupSpec, round_scale};
pub(crate) use linear::load;
pub use linear::{GroupedLinear, spans};
