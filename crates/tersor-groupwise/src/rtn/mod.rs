//! Round-to-nearest: the range of a group's weights gives its scale and zero point, and each weight its nearest code. It needs no calibration data.

mod algorithm;
mod method;
mod params;

pub use params::{CheckedRtn, Rtn};
pub(crate) use params::{Mxint, grid_segments};
