//! What every method of Tersor shares: matrices as views, statistics that add, a network as sites,
//! and the two traits that matter: a [`Method`] compresses a matrix a block of rows at a time, and its
//! result is a [`LinearOp`] that multiplies, is saved, and reopens through a [`Registry`].
//!
//! Weights are `[out_features, in_features]`, activations `[tokens, in_features]`, `y = x Wᵀ`.
//!
//! ```
//! use tersor_core::*;
//! use tersor_core::compose::{Dense, Factored, Residual};
//! # fn main() -> Result<()> {
//! // A 2 by 2 matrix of bf16 weights, corrected by a product of rank 1.
//! let base = Dense::new(vec![1.0, 0.0, 0.0, 1.0], [2, 2], DType::BF16)?;
//! let up = Dense::new(vec![1.0, 2.0], [2, 1], DType::F32)?;
//! let down = Dense::new(vec![0.5, 0.0], [1, 2], DType::F32)?;
//! let op = Residual::new(Box::new(base), Box::new(Factored::new(Box::new(up), Box::new(down))?))?;
//!
//! // Save it, open it again from its specification, multiply.
//! let mut file = MemTensors::new();
//! op.save("w", op.whole(), &mut file)?;
//! assert_eq!(op.storage_bits(), file.bytes() as u64 * 8);
//! let op = Registry::core().load(&op.spec(op.whole()), "w", &file)?;
//! let mut y = [0.0; 2];
//! op.apply(&Input::new(&[2.0, 4.0], [1, 2])?, MatViewMut::new(&mut y, [1, 2])?, &mut Exec::new())?;
//! assert_eq!(y, [3.0, 6.0]);
//! # Ok(())
//! # }
//! ```

mod act;
pub mod cache;
pub mod compose;
pub mod context;
mod dtype;
mod error;
mod exec;
mod limits;
pub mod method;
pub mod metrics;
pub mod op;
pub mod pack;
mod params;
pub mod rewrite;
mod rotation;
pub mod rows;
pub mod site;
mod stats;
pub mod tensors;
pub mod view;

pub use act::{ActPlan, ActQuant, ActRange};
pub use cache::{Angles, Heads, KvBlock, KvCache, MakeCache, Positions, ProbSink};
pub use context::{Cancel, Context, Progress, Silent};
pub use dtype::{DType, Element, power_of_two_above};
pub use error::{Error, ParamError, Result};
pub use exec::{Exec, Input};
pub use limits::Limits;
pub use method::{Compressed, Layout, Method, Prepared, Report};
pub use op::{LinearOp, OpSpec, Registry, Value};
pub use params::{Bits, Check, GroupSize};
pub use rewrite::{Folding, Module, Smoothing};
pub use rotation::Rotation;
pub use rows::{NonFinite, Repaired, RowSource, StoredRows, check_finite, read_finite};
pub use site::{Consumer, Fold, FoldedRows, Producer, Side, Site, Transform};
pub use stats::{ChannelStats, StatNeeds, StatSet};
pub use tensors::{MemTensors, RowSlot, TensorInfo, TensorSink, TensorSource};
pub use tersor_kernels::Isa;
pub use view::{IntoMat, MatView, MatViewMut};

#[cfg(feature = "ndarray")]
pub use ndarray;
