//! Round-to-nearest: each group's range gives its grid, each weight its nearest code. No data needed.

mod params;
mod quantize;

pub use params::{CheckedRtn, Rtn};
