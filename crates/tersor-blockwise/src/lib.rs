#![doc = include_str!("../README.md")]

pub mod bitsandbytes;
mod int8;
pub mod optimizer;
mod quantize;
mod stages;

pub use int8::LlmInt8;
pub use quantize::{Blockwise, CheckedBlockwise, Stream};
pub use stages::register_stages;
pub use tersor_core::{
    Check, DType, Element, Error, Exec, Input, IntoMat, Isa, LinearOp, LinearOpExt, MatView, MatViewMut, MemTensors,
    Method, ParamError, Registry, Report, Result, Write,
};
pub use tersor_operators::{BlockwiseLinear, Map, MapKind, Quantized, RowwiseInt8, Scales, registry};

/// Errors if a value of `x` is not finite, naming the first one's index as the column; `first` is the index of `x[0]` in the whole tensor.
pub(crate) fn check_finite<T: Element>(x: &[T], first: usize) -> Result<()> {
    match x.iter().position(|v| !v.to_f32().is_finite()) {
        Some(i) => Err(Error::NonFinite { row: 0, col: first + i, value: x[i].to_f32() }),
        None => Ok(()),
    }
}
