#![doc = include_str!("../README.md")]

mod activations;
mod blockwise;
mod cache;
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
pub use cache::{DenseCaches, DenseRows, IntegerRows, cache_registry, integer_row_bytes, register_caches};
pub use composed::{
    Factored, Permuted, QuantizedInputs, Residual, Rotated, ScaledInputs, Split, online, online_layout, split_layout,
};
pub use dense::Dense;
pub use dual::{DualLinear, MAX_EXPANDED};
pub use grouped::{Clip, Grid, GroupSpec, GroupedLinear, QuantParams, round_scale, spans};
pub use half::f16;
pub use methods::{Cast, WithActivations, register_stages};
pub use rowwise::RowwiseInt8;
pub use table::TableLinear;
pub use tersor_core::operator::{apply_all, storage_bits_of};
pub use tersor_core::{
    Bits, Check, Context, DType, Element, Error, Exec, GemmTask, GroupSize, Input, InputChange, IntoMat, Isa, Layout,
    LinearOp, LinearOpExt, Loading, MatView, MatViewMut, MemTensors, Method, OpSpec, ParamError, Registry, Result,
    Rotation, RowSlot, RowSource, StatSet, TensorInfo, TensorSink, TensorSource, Write,
};
pub use tersor_kernels::integer::Padding;

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;

/// Adds the loaders of all operators of this crate to `registry`, each under the `KIND` of its type. Each replaces a loader that the
/// registry has for its kind.
///
/// ```
/// use tersor_operators::{Dense, Registry, register};
/// let mut registry = Registry::new();
/// register(&mut registry);
/// assert!(registry.kinds().any(|kind| kind == Dense::KIND));
/// ```
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

/// Returns a new registry with the loaders of all operators of this crate, as [`register`] adds them.
///
/// ```
/// use tersor_operators::*;
///
/// # fn main() -> Result<()> {
/// let op = Dense::new(vec![1.0, 2.0], [1, 2], DType::F16)?;
/// let mut file = MemTensors::new();
/// op.save("w", &mut file)?;
/// let loaded = registry().load(&op.spec(), "w", &file)?;
/// assert_eq!(loaded.shape(), [1, 2]);
/// # Ok(())
/// # }
/// ```
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    register(&mut registry);
    registry
}
