#![doc = include_str!("../README.md")]

mod integers;

pub use integers::{CheckedIntegers, IntegerCaches, Integers};
pub use tersor_core::{CacheRegistry, Check, Error, KvCache, ParamError, Result};

/// Registers the loader of [`IntegerCaches`], by its kind.
pub fn register_caches(registry: &mut CacheRegistry) {
    registry.register_set(IntegerCaches::KIND, integers::load);
}
