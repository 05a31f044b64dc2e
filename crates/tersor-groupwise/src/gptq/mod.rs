//! GPTQ: round one column after another, and let the columns that follow make up for the error, as the inputs that
//! were seen say they can (Frantar et al. 2022, arXiv 2210.17323).

mod factor;
mod params;
mod quantize;

pub use factor::Factor;
pub use params::{CheckedGptq, Dead, Gptq, Groups, OnFailure};
pub(crate) use quantize::Ready;
