//! AWQ's clip search (Lin et al., arXiv 2306.00978, released code): the range of each group of weights is cut where this lowers the error of the
//! outputs, before another method quantizes them.

mod algorithm;
mod method;
mod params;

pub use params::{CheckedOutputClip, OutputClip};
pub(crate) use params::{ClipStage, clip_part};
