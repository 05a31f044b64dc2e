//! Block-wise quantization: tensors as codes of a small codebook and one scale for every so many values.
//!
//! [`Blockwise`] quantizes with the 8-bit dynamic map of "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), QLoRA's NF4 and FP4
//! (arXiv 2305.14314), linear maps, quantiles of the data, or values of your own.
//!
//! ```
//! use tersor_blockwise::{Blockwise, Map};
//! # fn main() -> tersor_core::Result<()> {
//! let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
//! let q = Blockwise::nf4().block(64).nested(true).quantize(&x)?;
//! let back: Vec<f32> = q.dequantize()?;
//! assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.17));
//! assert!(q.bits_per_value() < 4.2);
//!
//! // Eight bits for a state of an optimizer: seven decades below the largest value of each 256.
//! let q = Blockwise::new(Map::dynamic(true)).block(256).quantize(&x)?;
//! let back: Vec<f32> = q.dequantize()?;
//! assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.0071));
//! # Ok(())
//! # }
//! ```
//!
//! A matrix becomes a [`BlockwiseLinear`], or [`RowwiseInt8`]: they multiply, are saved in the form of [`bitsandbytes`], and reopen through a
//! [`Registry`] in which [`register`] has put them.
//!
//! ```
//! use tersor_blockwise::Blockwise;
//! use tersor_core::{Exec, Input, LinearOp, MatView, MatViewMut};
//! # fn main() -> tersor_core::Result<()> {
//! let weights: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let op = Blockwise::nf4().matrix(&MatView::new(&weights, [96, 64])?)?;
//! let (x, mut y) = (vec![1f32; 64], vec![0f32; 96]);
//! op.apply(&Input::new(&x, [1, 64])?, MatViewMut::new(&mut y, [1, 96])?, &mut Exec::new())?;
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

pub mod bitsandbytes;
mod linear;
mod map;
pub mod optimizer;
mod quantize;
mod rowwise;

pub use linear::BlockwiseLinear;
pub use map::{Map, MapKind};
pub use quantize::{Blockwise, CheckedBlockwise, Quantized, Scales, Stream};
pub use rowwise::{LlmInt8, RowwiseInt8};

use tersor_core::{Element, Error, Registry, Result};

/// Adds the kinds of this crate to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(BlockwiseLinear::KIND, linear::load);
    registry.register(RowwiseInt8::KIND, rowwise::load);
}

/// Error on the first value that is not finite; `first` is the index of `x[0]` in the whole.
pub(crate) fn check_finite<T: Element>(x: &[T], first: usize) -> Result<()> {
    match x.iter().position(|v| !v.to_f32().is_finite()) {
        Some(i) => Err(Error::NonFinite { row: 0, col: first + i, value: x[i].to_f32() }),
        None => Ok(()),
    }
}
