//! Neural networks made smaller and faster, in Rust: every Tersor crate behind a feature, and the registry
//! that knows all their operators.
//!
//! ```
//! use tersor::groupwise::Rtn;
//! use tersor::core::{LinearOp, MatView, MemTensors};
//! # fn main() -> tersor::core::Result<()> {
//! let weights: Vec<f32> = (0..64 * 32).map(|i| (i as f32 * 0.1).cos()).collect();
//! let (op, _) = Rtn::new().bits(3).group(16).quantize(&MatView::new(&weights, [64, 32])?)?;
//! let mut file = MemTensors::new();
//! op.save("w", &mut file)?;
//! let again = tersor::registry().load(&op.spec(), "w", &file)?;
//! assert_eq!(again.storage_bits(), op.storage_bits());
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "blockwise")]
pub use tersor_blockwise as blockwise;
pub use tersor_core as core;
#[cfg(feature = "formats")]
pub use tersor_formats as formats;
#[cfg(feature = "groupwise")]
pub use tersor_groupwise as groupwise;
#[cfg(feature = "kv")]
pub use tersor_kv as kv;
#[cfg(feature = "linalg")]
pub use tersor_linalg as linalg;
#[cfg(feature = "llm")]
pub use tersor_llm as llm;
#[cfg(feature = "lowrank")]
pub use tersor_lowrank as lowrank;
pub use tersor_operators as operators;
pub use tersor_operators::registry;
