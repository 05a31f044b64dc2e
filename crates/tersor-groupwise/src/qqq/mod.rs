//! QQQ's weights for 8-bit activations (Zhang et al., arXiv 2406.09904): GPTQ's codes, with scales that let a product stay in integers.
//!
//! With one scale a row this is [`Gptq`](crate::Gptq) on the grid `SymNarrow` and needs nothing more. With groups, [`Qqq`] stores each group's
//! scale as a share of the row's, in f16, and each code stands for the product of the two rounded to 8 bits.

mod method;
mod params;

pub use params::{CheckedQqq, Qqq};
