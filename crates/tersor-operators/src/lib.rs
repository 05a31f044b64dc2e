//! Compressed weight matrices that multiply: every stored form of Tersor with its loader, and operators composed of others. A program that only
//! runs compressed weights needs this crate and no method.
//!
//! ```
//! use tersor_operators::ndarray::array;
//! use tersor_operators::{DType, Dense, Factored, LinearOp, LinearOpExt, MemTensors, Residual, registry};
//!
//! # fn main() -> tersor_operators::Result<()> {
//! // A 2 by 2 matrix of bf16 weights, corrected by a product of rank 1.
//! let base = Dense::new(vec![1.0, 0.0, 0.0, 1.0], [2, 2], DType::BF16)?;
//! let up = Dense::new(vec![1.0, 2.0], [2, 1], DType::F32)?;
//! let down = Dense::new(vec![0.5, 0.0], [1, 2], DType::F32)?;
//! let op = Residual::new(Box::new(base), Box::new(Factored::new(Box::new(up), Box::new(down))?))?;
//!
//! // Save it, load it again by its specification, multiply.
//! let mut file = MemTensors::new();
//! op.save("w", &mut file)?;
//! assert_eq!(op.storage_bits(), file.bytes() as u64 * 8);
//! let again = registry().load(&op.spec(), "w", &file)?;
//! assert_eq!(again.matmul(&array![[2.0, 4.0]])?, array![[3.0, 6.0]]);
//! # Ok(())
//! # }
//! ```
//!
//! | form | weight |
//! | --- | --- |
//! | [`Dense`] | f32, f16 or bf16 |
//! | [`GroupedLinear`] | `scale * (code - zero)`, a scale for each group of a row; 2 to 8 bits |
//! | [`DualLinear`] | integer scales of groups under one float scale a row (DGQ) |
//! | [`TableLinear`] | 4-bit codes into a table of bytes for each group (QQQ) |
//! | [`BlockwiseLinear`] | a codebook (NF4, FP4, dynamic) and a scale for each block of values |
//! | [`RowwiseInt8`] | 8-bit integers with a scale a row (LLM.int8) |
//! | [`Factored`] | `up · down` of low rank |
//! | [`Residual`] | the sum of two operators |
//! | [`Split`] | operators side by side, each on its own run of the features |
//! | [`Rotated`], [`Permuted`], [`ScaledInputs`], [`QuantizedInputs`] | an operator behind a change of its inputs |
//!
//! This crate chooses no codes: the method crates (`tersor-groupwise`, `tersor-blockwise`, `tersor-lowrank`) make these forms. It reads and writes
//! tensors through [`TensorSource`] and [`TensorSink`]; file formats are in `tersor-formats`.

mod activations;
mod blockwise;
mod composed;
mod dense;
mod dual;
mod grouped;
mod integer;
mod methods;
pub mod packing;
mod rowwise;
mod table;

pub use activations::{ActPlan, ActQuant, ActRange, integers};
pub use blockwise::{BlockwiseForm, BlockwiseLinear, Map, MapKind, NESTED_BLOCK, Quantized, Scales, inverse_scale};
pub use composed::{
    Factored, Permuted, QuantizedInputs, Residual, Rotated, ScaledInputs, Split, online, online_layout, split_layout,
};
pub use dense::Dense;
pub use dual::{DualLinear, MAX_EXPANDED};
pub use grouped::{Clip, Grid, GroupFit, GroupSpec, GroupedLinear, round_scale, spans};
pub use methods::{Cast, WithActivations};
pub use rowwise::RowwiseInt8;
pub use table::TableLinear;
pub use tersor_core::{
    Check, DType, Error, Exec, GroupSize, Input, IntoMat, Isa, LinearOp, LinearOpExt, Loading, MatView, MatViewMut,
    MemTensors, OpSpec, ParamError, Registry, Result, Rotation, RowSlot, TensorInfo, TensorSink, TensorSource, Write,
};

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;

/// Adds every kind of this crate to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(Dense::KIND, dense::load);
    registry.register(GroupedLinear::KIND, grouped::load);
    registry.register(DualLinear::KIND, dual::load);
    registry.register(TableLinear::KIND, table::load);
    registry.register(BlockwiseLinear::KIND, blockwise::load);
    registry.register(RowwiseInt8::KIND, rowwise::load);
    registry.register(Factored::KIND, composed::load_factored);
    registry.register(Residual::KIND, composed::load_residual);
    registry.register(Split::KIND, composed::load_split);
    registry.register(Rotated::KIND, composed::load_rotated);
    registry.register(Permuted::KIND, composed::load_permuted);
    registry.register(ScaledInputs::KIND, composed::load_scaled);
    registry.register(QuantizedInputs::KIND, composed::load_quantized);
}

/// Returns a registry with every kind of this crate.
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    register(&mut registry);
    registry
}
