//! Rows of 8-bit integers with one scale each, as LLM.int8 stores weights (Dettmers et al., arXiv 2208.07339, section 2.2).

mod algorithm;
mod method;
mod params;

pub use params::LlmInt8;
