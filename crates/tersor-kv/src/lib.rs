//! Caches of keys and values in few bits.
//!
//! [`Integers`] keeps each token of each head as integers with a scale and a minimum of its own; some dimensions may have 8 bits where the others
//! have less, and keys may be rotated after their rotary embedding (queries follow, so scores stay what they were).
//!
//! ```
//! use std::sync::Arc;
//! use tersor_core::cache::Queries;
//! use tersor_core::{Angles, Exec, Heads, KvBlock, KvCache, Positions};
//! use tersor_kv::{Check, IntCache, Integers};
//!
//! struct None;
//! impl Positions for None {
//!     fn angles(&self, _: u32) -> Arc<Angles> {
//!         Arc::new(Angles { cos: vec![1.0; 32], sin: vec![0.0; 32] })
//!     }
//! }
//! # fn main() -> tersor_core::Result<()> {
//! let heads = Heads { heads: 4, kv_heads: 2, head_dim: 64, window: Option::None, positions: Arc::new(None) };
//! let mut cache = IntCache::new(heads, Integers::new(4).check()?)?;
//! let (keys, values) = ([0.5; 2 * 64], [1.0; 2 * 64]);
//! cache.append(KvBlock { keys: &keys, values: &values, positions: &[0] }, &Exec::new())?;
//! let mut out = [0.0; 4 * 64];
//! cache.attend(Queries { data: &[0.1; 4 * 64], positions: &[0] }, &mut out, Option::None, &Exec::new())?;
//! // 64 codes of 4 bits, a scale and a minimum in f16, for keys and values of two heads.
//! assert_eq!(cache.bytes(), 2 * 2 * (32 + 4));
//! assert!((out[0] - 1.0).abs() < 1e-3);
//! # Ok(())
//! # }
//! ```

mod integers;

pub use integers::{CheckedIntegers, IntCache, Integers};
pub use tersor_core::{Check, Error, KvCache, ParamError, Result};
