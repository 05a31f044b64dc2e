//! [`CacheRegistry`]: loads stores and cache sets from their specifications and stored tensors.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{CacheSet, KvStore};
use crate::registry::{Shared, check_empty_axes, stored};
use crate::{Error, OpSpec, Result, TensorSource};

/// A function that loads the [`KvStore`]s of one kind (a stored form, such as `dense-rows`). Its arguments are the store's specification,
/// of the shape `[cached tokens, dim]`; the prefix of the names of its tensors; and a [`CacheLoading`], which has the source of tensors and
/// the parts that stores share, such as codebooks. It errors if tensors are missing or differ from the specification.
pub type StoreLoader = fn(&OpSpec, &str, &CacheLoading<'_>) -> Result<Box<dyn KvStore>>;

/// A function that loads the [`CacheSet`]s (the caches of all layers) of one kind, such as `dense-caches`. Its arguments are the set's
/// specification; the prefix of the names of its tensors; and a [`CacheLoading`], which has the source of tensors and the parts that
/// several objects share, such as codebooks. It errors if tensors are missing or differ from the specification.
pub type CacheSetLoader = fn(&OpSpec, &str, &CacheLoading<'_>) -> Result<Box<dyn CacheSet>>;

/// A table of the functions that load saved [`KvStore`]s and [`CacheSet`]s (the caches of all layers), by the kind that is named in a
/// specification ([`OpSpec::kind`]). `tersor-operators` has a function that fills it.
#[derive(Clone, Default)]
pub struct CacheRegistry {
    stores: BTreeMap<&'static str, StoreLoader>,
    sets: BTreeMap<&'static str, CacheSetLoader>,
}

impl CacheRegistry {
    /// Returns a registry without loaders.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the loader of the stores of a kind, the name in [`OpSpec::kind`]; it replaces an earlier loader of the same kind.
    pub fn register_store(&mut self, kind: &'static str, loader: StoreLoader) {
        self.stores.insert(kind, loader);
    }

    /// Adds the loader of the cache sets of a kind. A cache set ([`CacheSet`]) makes the caches of all layers of a network; the loader
    /// returns it, with learned parameters such as codebooks, but without cached rows. `kind` is the name in [`OpSpec::kind`] of the set's
    /// description ([`CacheSet::spec`]). Sets and stores have separate kinds. It replaces an earlier loader of the same kind of set.
    pub fn register_set(&mut self, kind: &'static str, loader: CacheSetLoader) {
        self.sets.insert(kind, loader);
    }

    /// Loads the store that `spec` describes from the tensor `prefix` of `source`, or from tensors of `source` whose names begin with
    /// `prefix.`. Errors if no loader is registered for the kind in `spec`, if tensors are missing or differ from the specification, or if
    /// the loaded store has another shape than `spec`. Errors if one axis of the shape in `spec` is 0 and the other above 2^24. Every call
    /// loads shared parts, such as codebooks, again. To load several stores that share parts, use [`CacheLoading::store`] of one
    /// [`CacheLoading`] for all of them.
    pub fn load_store(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn KvStore>> {
        CacheLoading::new(self, source).store(spec, prefix)
    }

    /// Loads the cache set (the caches of all layers) that `spec` describes from the tensors of `source` whose names begin with `prefix`.
    /// Errors if no loader is registered for its kind, or if tensors are missing or differ from the specification.
    pub fn load_set(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn CacheSet>> {
        CacheLoading::new(self, source).set(spec, prefix)
    }
}

fn find<L: Copy>(loaders: &BTreeMap<&'static str, L>, what: &'static str, kind: &str) -> Result<L> {
    loaders.get(kind).copied().ok_or_else(|| {
        let known: Vec<_> = loaders.keys().copied().collect();
        Error::Unsupported { what, value: format!("`{kind}` (registered: {})", known.join(", ")) }
    })
}

/// The loading of one or more stores from a source of tensors. It holds the registry of loaders, the source, and, by name, the parts that
/// the loaded stores share, such as codebooks.
pub struct CacheLoading<'l> {
    registry: &'l CacheRegistry,
    source: &'l dyn TensorSource,
    shared: Shared,
}

impl<'l> CacheLoading<'l> {
    /// Returns a loading of tensors in `source` by the loaders of `registry`, without shared parts.
    pub fn new(registry: &'l CacheRegistry, source: &'l dyn TensorSource) -> Self {
        Self { registry, source, shared: Shared::default() }
    }

    /// Returns the source that stored tensors are read from.
    pub fn source(&self) -> &'l dyn TensorSource {
        self.source
    }

    /// Loads the store that `spec` describes (kind, shape `[cached tokens, dim]`, parameters) from the tensor `prefix`, or from tensors
    /// whose names begin with `prefix.`. Errors if no loader is registered for its kind, if tensors are missing or differ from the
    /// specification, if the loaded store has another shape than `spec`, or if a shape without elements has an axis above 2^24.
    pub fn store(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn KvStore>> {
        check_empty_axes(spec.shape).map_err(|e| e.in_tensor(prefix))?;
        let loader = find(&self.registry.stores, "kind of key-value store", &spec.kind);
        let store = loader.and_then(|load| load(spec, prefix, self)).map_err(|e| stored(e).in_tensor(prefix))?;
        let shape = [store.len(), store.dim()];
        if shape != spec.shape {
            return Err(Error::shape("shape of a loaded store", spec.shape, shape).in_tensor(prefix));
        }
        Ok(store)
    }

    /// Loads the cache set (the caches of all layers) that `spec` describes from tensors whose names begin with `prefix.`. Errors if no
    /// loader is registered for its kind, or if tensors are missing or differ from the specification.
    pub fn set(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn CacheSet>> {
        let loader = find(&self.registry.sets, "kind of cache", &spec.kind).map_err(|e| e.in_tensor(prefix))?;
        loader(spec, prefix, self).map_err(|e| stored(e).in_tensor(prefix))
    }

    /// Returns the part `name`, such as a codebook, that stores of this loading share; `make` computes it if no store has requested it
    /// before. Errors if `make` does, or if the part exists with another type than `T`.
    pub fn shared<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        self.shared.get(name, make)
    }
}
