#![doc = include_str!("../README.md")]
#![deny(clippy::exit, clippy::print_stderr, clippy::print_stdout)]

pub mod budget;
mod caches;
pub mod calibrate;
mod compare;
pub mod compress;
pub mod evaluate;
pub mod export;
mod inspect;
mod kinds;
pub mod network;
pub mod output;
mod pipeline;
pub mod plan;
pub mod recipe;
pub mod report;
mod rewrite;
mod rows;
mod text;
mod units;
mod verify;

pub use caches::Caches;
pub use compare::{Comparison, Measured, Row, Subject, compare};
pub use compress::compress;
pub use export::export;
pub use inspect::{Inspected, TensorEntry, inspect};
pub use kinds::Kinds;
pub use network::{CompressedNetwork, compress_network};
pub use pipeline::{Pipeline, Planned};
pub use plan::Plan;
pub use recipe::Recipe;
pub use text::Text;
pub use units::megabytes;
pub use verify::{Verified, verify};
