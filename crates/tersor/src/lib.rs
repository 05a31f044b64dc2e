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

/// Returns a registry with every kind of cache store and cache set.
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
