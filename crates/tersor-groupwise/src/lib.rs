//! Quantization of weights on uniform grids: `value = scale * (code - zero)`, one scale for each group of a row, each row, or the tensor; 2 to 8
//! bits; scales in f16, bf16 or f32.
//!
//! ```
//! use tersor_groupwise::{LinearOpExt, Rtn, ndarray::Array2};
//!
//! # fn main() -> tersor_groupwise::Result<()> {
//! let weights = Array2::from_shape_fn((256, 512), |(r, c)| ((r * 512 + c) as f32 * 0.37).sin());
//! let (op, report) = Rtn::new().bits(4).group(128).quantize(&weights)?;
//! let x = Array2::from_shape_fn((3, 512), |(t, c)| ((t + c) as f32 * 0.1).cos());
//! let y = op.matmul(&x)?;
//! println!("{:.3} bits a weight, relative error {:.4}, y {:?}", op.bits_per_weight(), report.relative_error(), y.shape());
//! # assert_eq!(op.bits_per_weight(), 4.0 + (16.0 + 8.0) / 128.0 - 4.0 / 128.0);
//! # let exact = x.dot(&weights.t());
//! # assert!((&y - &exact).iter().all(|d| d.abs() < 1.5));
//! # Ok(())
//! # }
//! ```
//!
//! [`Rtn`] needs no data. [`Gptq`] lets the columns that follow make up for each column's error, as far as the inputs that were seen allow:
//!
//! ```
//! use tersor_groupwise::{Gptq, StatNeeds, StatSet, ndarray::Array2};
//!
//! # fn main() -> tersor_groupwise::Result<()> {
//! let weights = Array2::from_shape_fn((64, 96), |(r, c)| ((r * 96 + c) as f32 * 0.37).sin());
//! let inputs = Array2::from_shape_fn((500, 96), |(t, c)| ((t * c) as f32 * 0.01).cos() + (t as f32).sin());
//! let mut stats = StatSet::new(96, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
//! stats.observe(&inputs)?;
//! let (op, report) = Gptq::new().bits(3).group(32).quantize(&weights, &stats)?;
//! println!("{} bits; error in the outputs {:?} of {:?}", op.storage_bits(), report.data_error, report.data_energy);
//! # assert!(report.data_error < report.data_energy);
//! # Ok(())
//! # }
//! ```
//!
//! Two forms serve 8-bit activations, with rows that stay in integers: [`Dgq`] (integer scales of groups under one of the row, found by a search in
//! two phases) and [`Qqq`] (GPTQ's codes, with tables of bytes for the scales of their groups). They have the same entry:
//! `Dgq::new().group(64).quantize(&weights, &stats)`.
//!
//! Before any of them, [`smooth`] and [`awq`] move magnitude from inputs to weights, as [`Rewrite`](tersor_core::Rewrite)s of a network; [`mixed`]
//! spends a budget of bytes over many matrices.
//!
//! The result is a [`LinearOp`]: it multiplies, is saved, and is loaded again through [`registry`]. Who only loads and multiplies needs
//! `tersor-operators` alone. This crate has no codebooks (see `tersor-blockwise`) and no correction of low rank (`tersor-lowrank`).

pub mod awq;
pub mod coder;
pub mod dgq;
pub mod gptq;
pub mod mixed;
pub mod qqq;
mod rtn;
mod search;
pub mod smooth;

pub use awq::{Awq, OutputClip};
pub use dgq::Dgq;
pub use gptq::Gptq;
pub use qqq::Qqq;
pub use rtn::{CheckedRtn, Rtn};
pub use smooth::{Adaptive, Percentile, SmoothQuant};
pub use tersor_core::{
    Check, Context, DType, Error, Exec, GroupSize, Input, IntoMat, Isa, LinearOp, LinearOpExt, MatView, MatViewMut,
    MemTensors, Method, ParamError, Registry, Report, Result, StatNeeds, StatSet, Write,
};
pub use tersor_operators::{Clip, DualLinear, Grid, GroupFit, GroupSpec, GroupedLinear, TableLinear, registry};

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;
