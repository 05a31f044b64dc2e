#![doc = include_str!("../README.md")]

mod integers;
#[cfg(feature = "fit")]
mod stages;

#[cfg(feature = "fit")]
pub use stages::register_stages;

pub use integers::{CheckedIntegers, IntegerCaches, Integers};
pub use tersor_core::{CacheRegistry, Check, Error, KvCache, ParamError, Result};

/// Adds the loader of [`IntegerCaches`] to `registry`, under the kind [`IntegerCaches::KIND`]. It replaces a loader that the registry has
/// for this kind.
pub fn register_caches(registry: &mut CacheRegistry) {
    registry.register_set(IntegerCaches::KIND, integers::load);
}
