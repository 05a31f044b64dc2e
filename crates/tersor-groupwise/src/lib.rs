//! Uniform grids over groups of weights: `value = scale * (code - zero)`, one scale for each group of a
//! row, each row, or the tensor; 2 to 8 bits; scales in f16, bf16 or f32.
//!
//! ```
//! use tersor_groupwise::{LinearOp, Rtn, ndarray::Array2};
//!
//! # fn main() -> tersor_groupwise::Result<()> {
//! let weights = Array2::from_shape_fn((256, 512), |(r, c)| ((r * 512 + c) as f32 * 0.37).sin());
//! let quantized = Rtn::new().bits(4).group(128).quantize(&weights)?;
//! let mut row = [0.0; 512];
//! quantized.decompress_rows(7..8, &mut row)?;
//! println!("{:.3} bits a weight; {} came back as {}", quantized.bits_per_weight(), weights[[7, 3]], row[3]);
//! # assert_eq!(quantized.bits_per_weight(), 4.0 + (16.0 + 8.0) / 128.0 - 4.0 / 128.0);
//! # assert!((weights[[7, 3]] - row[3]).abs() < 0.07);
//! # Ok(())
//! # }
//! ```
//!
//! [`Rtn`] needs no data; [`Gptq`] makes the columns that follow make up for each column's error, as the inputs that
//! were seen say they can:
//!
//! ```
//! use tersor_groupwise::{Check, Gptq, Rtn, ndarray::Array2};
//!
//! # fn main() -> tersor_groupwise::Result<()> {
//! let weights = Array2::from_shape_fn((64, 96), |(r, c)| ((r * 96 + c) as f32 * 0.37).sin());
//! let inputs = Array2::from_shape_fn((500, 96), |(t, c)| ((t * c) as f64 * 0.01).cos() + (t as f64).sin());
//! let hessian = inputs.t().dot(&inputs);
//! let done = Gptq::new().bits(3).group(32).check()?.quantize(&weights, hessian.as_slice().unwrap_or_default())?;
//! println!("{} bits; error in the outputs {:?}", done.op.storage_bits(), done.report.data_error);
//! # Ok(())
//! # }
//! ```
//!
//! For 8-bit activations there are two forms whose rows stay in integers: [`Dgq`] (integer scales of groups under one of the row, found by a
//! search in two phases) and [`Qqq`] (GPTQ's codes, their groups' scales as tables of bytes):
//!
//! ```
//! use tersor_core::{Context, MatView, Method, StatNeeds, StatSet};
//! use tersor_groupwise::{Check, Dgq};
//!
//! # fn main() -> tersor_groupwise::Result<()> {
//! let weights: Vec<f32> = (0..64 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
//! let inputs: Vec<f32> = (0..300 * 256).map(|i| (i as f32 * 0.11).cos()).collect();
//! let mut seen = StatSet::new(256, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
//! seen.observe(&MatView::new(&inputs, [300, 256])?)?;
//! let (method, cx) = (Dgq::new().group(64).check()?, Context::new());
//! let done = method.prepare(Some(&seen), &cx)?.compress(&MatView::new(&weights, [64, 256])?, 0..64, &cx)?;
//! println!("{:.3} bits a weight", done.op.storage_bits() as f64 / (64.0 * 256.0));
//! # assert!(done.op.storage_bits() < 64 * 256 * 9 / 2);
//! # Ok(())
//! # }
//! ```
//!
//! Before either, [`smooth`] and [`awq`] move magnitude from inputs to weights, and [`mixed`] spends a budget of bytes over many matrices.
//!
//! The result is a [`LinearOp`]: it multiplies, is saved, and reopens through a [`Registry`] in which
//! [`register`] has put this crate's kinds.

pub mod awq;
pub mod dgq;
pub mod gptq;
mod grid;
mod linear;
pub mod mixed;
mod packing;
pub mod qqq;
mod rtn;
mod search;
pub mod smooth;

pub use awq::{Awq, OutputClip};
pub use dgq::{Dgq, DualLinear};
pub use gptq::Gptq;
pub use grid::{Clip, Grid, GroupFit, GroupSpec};
pub use linear::GroupedLinear;
pub use qqq::{Qqq, TableLinear};
pub use rtn::{CheckedRtn, Rtn};
pub use smooth::{Adaptive, Percentile, SmoothQuant};
pub use tersor_core::{Check, DType, Error, GroupSize, LinearOp, MatView, ParamError, Registry, Result};

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;

/// Adds the kinds of this crate to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(GroupedLinear::KIND, linear::load);
    registry.register(DualLinear::KIND, dgq::load);
    registry.register(TableLinear::KIND, qqq::load);
}
