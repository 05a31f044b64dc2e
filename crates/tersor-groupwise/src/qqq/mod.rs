//! QQQ's 4-bit weights for 8-bit activations (Zhang et al., arXiv 2406.09904): GPTQ's codes, with scales that keep products in integers.
//!
//! Per-channel QQQ is [`Gptq`](crate::Gptq) with one scale a row on the grid [`SymNarrow`](crate::Grid::SymNarrow). Per-group QQQ is [`Qqq`]: it
//! stores the scale of each group relative to that of its row, in f16; a code times its group's scale, rounded to 8 bits, is looked up in a table.

mod algorithm;
mod method;
mod params;

pub(crate) use params::QqqStage;
pub use params::{CheckedQqq, Qqq};
