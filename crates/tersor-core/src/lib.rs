//! What every crate of Tersor shares: matrices as views, statistics that add, a network as sites, and the traits. A [`Method`] compresses a
//! matrix, a block of rows at a time; its result is a [`LinearOp`], which multiplies, is saved, and is loaded again through a [`Registry`].
//!
//! Weights are `[out_features, in_features]`, activations `[tokens, in_features]`, `y = x Wᵀ`.
//!
//! The stored forms are in `tersor-operators`; this crate has no form of its own. The smallest one takes a screen:
//!
//! ```
//! use tersor_core::*;
//! use std::ops::Range;
//!
//! /// A matrix whose weights are all the same.
//! struct Constant(f32, [usize; 2]);
//!
//! impl LinearOp for Constant {
//!     fn shape(&self) -> [usize; 2] {
//!         self.1
//!     }
//!     fn storage_bits(&self) -> u64 {
//!         32
//!     }
//!     fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
//!         rows::check_range(self.1, &rows, out.len())?;
//!         out.fill(self.0);
//!         Ok(())
//!     }
//!     fn spec_block(&self, at: RowSlot) -> OpSpec {
//!         OpSpec::new("constant", [at.total, self.1[1]])
//!     }
//!     fn save_block(&self, prefix: &str, _: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
//!         tensors::write_floats(sink, &tensors::join(prefix, "value"), &[1], &[self.0])
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let mut registry = Registry::new();
//! registry.register("constant", |spec, prefix, loading| {
//!     let value = tensors::read_floats(loading.source(), &tensors::join(prefix, "value"), &[1])?;
//!     Ok(Box::new(Constant(value[0], spec.shape)))
//! });
//! let op = Constant(0.5, [3, 2]);
//! let mut file = MemTensors::new();
//! op.save("w", &mut file)?;
//! let again = registry.load(&op.spec(), "w", &file)?;
//! let x = MatView::new(&[2.0f32, 4.0], [1, 2])?;
//! assert_eq!(again.matmul_vec(&x)?, [3.0, 3.0, 3.0]);
//! # Ok(())
//! # }
//! ```

pub mod cache;
mod coder;
pub mod context;
mod coupling;
mod dtype;
mod error;
mod exec;
mod features;
mod folds;
mod input;
mod limits;
mod mask;
pub mod method;
pub mod metrics;
pub mod operator;
pub mod pack;
mod params;
mod prune;
mod registry;
pub mod rewrite;
mod rotation;
pub mod rows;
mod site;
mod spec;
mod stats;
pub mod tensors;
pub mod view;

pub use cache::{Angles, Heads, KvBlock, KvCache, MakeCache, Positions, ProbSink};
pub use coder::{Ahead, ColumnCoder};
pub use context::{Cancel, Context, Progress, Silent};
pub use coupling::{Coupled, Coupling, Unit};
pub use dtype::{DType, Element, power_of_two_above};
pub use error::{Error, ParamError, Result};
pub use exec::{Exec, Scratch};
pub use features::FeatureMap;
pub use folds::{Fold, FoldedRows, InputChange, Side, Transform};
pub use input::Input;
pub use limits::Limits;
pub use mask::{Mask, Masked};
pub use method::{Compressed, Extent, Layout, Method, Prepared, Report};
pub use operator::{LinearOp, LinearOpExt};
pub use params::{Bits, Check, GroupSize};
pub use prune::{PreparedPruner, Pruned, Pruner};
pub use registry::{Loader, Loading, Registry};
pub use rewrite::{Changes, Effect, Rewrite, Scope, Seen, SeenSite, Unseen, Weights};
pub use rotation::Rotation;
pub use rows::{NonFinite, Repaired, RowSource, StoredRows, check_finite, read_finite, read_masked};
pub use site::{Consumer, Folding, Producer, Role, Site, bias_name};
pub use spec::{OpSpec, Value};
pub use stats::{ChannelStats, StatExtent, StatNeeds, StatSet, WindowStats, little_endian};
pub use tensors::{MemTensors, RowSlot, TensorInfo, TensorSink, TensorSource};
pub use tersor_kernels::Isa;
pub use tersor_kernels::{GemmTask, Tile, Write};
pub use view::{IntoMat, MatView, MatViewMut};

#[cfg(feature = "ndarray")]
pub use ndarray;
