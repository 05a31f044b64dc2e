#![doc = include_str!("../README.md")]

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

/// Returns a registry with the loaders of every [`KvStore`](core::KvStore) and [`CacheSet`](core::CacheSet) kind of the enabled crates, which reads
/// back saved caches.
///
/// ```
/// use tersor::core::{MemTensors, OpSpec};
/// let registry = tersor::cache_registry();
/// let unknown = registry.load_store(&OpSpec::new("no such store", [1, 1]), "keys", &MemTensors::new());
/// assert!(unknown.is_err_and(|e| e.to_string().contains("no such store")));
/// ```
pub fn cache_registry() -> core::CacheRegistry {
    #[allow(unused_mut)]
    let mut registry = tersor_operators::cache_registry();
    #[cfg(feature = "kv")]
    tersor_kv::register_caches(&mut registry);
    registry
}

/// The examples of the design page, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/design.md")]
mod design {}
