//! Block-wise quantization: tensors as codes of a small codebook and one scale for every so many values.
//!
//! [`Blockwise`] quantizes with the 8-bit dynamic map of "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), QLoRA's NF4 and FP4
//! (arXiv 2305.14314), linear maps, quantiles of the data, or values of your own.
//!
//! ```
//! use tersor_blockwise::{Blockwise, Map};
//! # fn main() -> tersor_core::Result<()> {
//! let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
//! let q = Blockwise::nf4().block(64).nested(true).quantize_values(&x)?;
//! let back: Vec<f32> = q.dequantize()?;
//! assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.17));
//! assert!(q.bits_per_value() < 4.2);
//!
//! // Eight bits for a state of an optimizer: seven decades below the largest value of each 256.
//! let q = Blockwise::new(Map::dynamic(true)).block(256).quantize_values(&x)?;
//! let back: Vec<f32> = q.dequantize()?;
//! assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.0071));
//! # Ok(())
//! # }
//! ```
//!
//! A matrix becomes a [`BlockwiseLinear`], or by [`LlmInt8`] a [`RowwiseInt8`]: they multiply, are saved in the form of [`bitsandbytes`], and are loaded
//! again through [`registry`].
//!
//! ```
//! use tersor_blockwise::{Blockwise, LinearOpExt, MatView};
//! # fn main() -> tersor_blockwise::Result<()> {
//! let weights: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let (op, _) = Blockwise::nf4().quantize(&MatView::new(&weights, [96, 64])?)?;
//! let y = op.matmul_vec(&MatView::new(&[1f32; 64], [1, 64])?)?;
//! let exact: f32 = weights[..64].iter().sum();
//! assert!((y[0] - exact).abs() < 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! [`optimizer`] steps parameters with moments in that form: two bytes and a bit a parameter, where Adam in f32 takes eight.
//!
//! ```
//! use tersor_blockwise::optimizer::{Group, Optimizer};
//! # fn main() -> tersor_core::Result<()> {
//! let mut adam = Group::new(Optimizer::adam().lr(0.02))?;
//! adam.keep_f32("embedding")?;
//! // The minimum of (w - 3)^2.
//! let mut w = vec![0f32; 5000];
//! for _ in 0..800 {
//!     let gradient: Vec<f32> = w.iter().map(|w| 2.0 * (w - 3.0)).collect();
//!     adam.step("weight", &mut w, &gradient)?;
//! }
//! assert!(w.iter().all(|w| (w - 3.0).abs() < 0.1));
//! assert_eq!(adam.bytes(), 2 * (5000 + 4 * 20));
//! # Ok(())
//! # }
//! ```
//!
//! This crate fits no codebooks to calibration data and corrects no errors; see `tersor-groupwise` and `tersor-lowrank`.

pub mod bitsandbytes;
mod int8;
pub mod optimizer;
mod quantize;

pub use int8::LlmInt8;
pub use quantize::{Blockwise, CheckedBlockwise, Stream};
pub use tersor_core::{
    Check, DType, Element, Error, Exec, Input, IntoMat, Isa, LinearOp, LinearOpExt, MatView, MatViewMut, MemTensors,
    Method, ParamError, Registry, Report, Result, Write,
};
pub use tersor_operators::{BlockwiseLinear, Map, MapKind, Quantized, RowwiseInt8, Scales, registry};

/// Errors on the first value that is not finite; `first` is the index of `x[0]` in the whole.
pub(crate) fn check_finite<T: Element>(x: &[T], first: usize) -> Result<()> {
    match x.iter().position(|v| !v.to_f32().is_finite()) {
        Some(i) => Err(Error::NonFinite { row: 0, col: first + i, value: x[i].to_f32() }),
        None => Ok(()),
    }
}
