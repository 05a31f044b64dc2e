//! [`CacheRegistry`]: loads stores and cache sets from their specifications and stored tensors.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{CacheSet, KvStore};
use crate::registry::{Shared, check_empty_axes};
use crate::{Error, OpSpec, Result, TensorSource};

/// A function that loads one kind of [`KvStore`] from its specification, the prefix of the names of its tensors, and a [`CacheLoading`] that has the
/// source and the shared parts. Errors if tensors are missing or not what the specification says.
pub type StoreLoader = fn(&OpSpec, &str, &CacheLoading<'_>) -> Result<Box<dyn KvStore>>;

/// A function that loads one kind of [`CacheSet`] from its specification, the prefix of the names of its tensors, and a [`CacheLoading`] that has
/// the source and the shared parts. Errors if tensors are missing or not what the specification says.
pub type CacheSetLoader = fn(&OpSpec, &str, &CacheLoading<'_>) -> Result<Box<dyn CacheSet>>;

/// A table from the kinds of stores, and of cache sets, to their loaders.
#[derive(Clone, Default)]
pub struct CacheRegistry {
    stores: BTreeMap<&'static str, StoreLoader>,
    sets: BTreeMap<&'static str, CacheSetLoader>,
}

impl CacheRegistry {
    /// Returns an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind of store; a later loader of the same kind replaces an earlier one.
    pub fn register_store(&mut self, kind: &'static str, loader: StoreLoader) {
        self.stores.insert(kind, loader);
    }

    /// Adds a kind of cache set; a later loader of the same kind replaces an earlier one.
    pub fn register_set(&mut self, kind: &'static str, loader: CacheSetLoader) {
        self.sets.insert(kind, loader);
    }

    /// Loads a store whose tensors lie under `prefix`. Errors if its kind is unknown or its tensors are not what the specification says.
    pub fn load_store(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn KvStore>> {
        CacheLoading::new(self, source).store(spec, prefix)
    }

    /// Loads a cache set whose tensors lie under `prefix`. Errors if its kind is unknown or its tensors are not what the specification says.
    pub fn load_set(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn CacheSet>> {
        let loader = find(&self.sets, "kind of cache", &spec.kind).map_err(|e| e.in_tensor(prefix))?;
        loader(spec, prefix, &CacheLoading::new(self, source)).map_err(|e| e.in_tensor(prefix))
    }
}

fn find<L: Copy>(loaders: &BTreeMap<&'static str, L>, what: &'static str, kind: &str) -> Result<L> {
    loaders.get(kind).copied().ok_or_else(|| {
        let known: Vec<_> = loaders.keys().copied().collect();
        Error::Unsupported { what, value: format!("`{kind}` (registered: {})", known.join(", ")) }
    })
}

/// One loading of several stores: the registry, the source of tensors, and the parts that stores share, such as codebooks, by name.
pub struct CacheLoading<'l> {
    registry: &'l CacheRegistry,
    source: &'l dyn TensorSource,
    shared: Shared,
}

impl<'l> CacheLoading<'l> {
    /// Returns a loading that has no shared parts yet.
    pub fn new(registry: &'l CacheRegistry, source: &'l dyn TensorSource) -> Self {
        Self { registry, source, shared: Shared::default() }
    }

    /// Returns the source of the stored tensors.
    pub fn source(&self) -> &'l dyn TensorSource {
        self.source
    }

    /// Loads the store that `spec` describes (kind, shape, parameters) from the tensors `prefix` and `prefix.…` of the source. Errors as
    /// [`CacheRegistry::load_store`], and if the loaded store has another shape than `spec`.
    pub fn store(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn KvStore>> {
        check_empty_axes(spec.shape).map_err(|e| e.in_tensor(prefix))?;
        let loader = find(&self.registry.stores, "kind of key-value store", &spec.kind);
        let store = loader.and_then(|load| load(spec, prefix, self)).map_err(|e| e.in_tensor(prefix))?;
        let shape = [store.len(), store.dim()];
        if shape != spec.shape {
            return Err(Error::shape("shape of a loaded store", spec.shape, shape).in_tensor(prefix));
        }
        Ok(store)
    }

    /// Returns the shared part `name` (a codebook), made by `make` the first time. Errors if `make` does, or if the part was made as another type.
    pub fn shared<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        self.shared.get(name, make)
    }
}
