//! Quantization of activations: quantizers, static scales from calibration data, and the integer forms of an input.

mod input;
mod quantizer;
mod ranges;

pub use input::integers;
pub(crate) use input::{offsets, quantized, tokens};
pub use quantizer::ActQuant;
pub(crate) use quantizer::Codes;
pub use ranges::{ActPlan, ActRange};
