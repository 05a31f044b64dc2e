//! Round-to-nearest: each group's range gives its grid, each weight its nearest code. No data needed.

mod algorithm;
mod method;
mod params;

pub use params::{CheckedRtn, Rtn};
