//! [`Registry`]: from a specification and stored tensors back to an operator.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::tensors::join;
use crate::{Error, LinearOp, OpSpec, Result, TensorSource};

/// Loads one kind of operator: its specification, the prefix of its tensors, and what else loading needs.
pub type Loader = fn(&OpSpec, &str, &Loading<'_>) -> Result<Box<dyn LinearOp>>;

/// A table from the kind of an operator to its loader.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Loader>);

impl Registry {
    /// Operators that are nested deeper than this are refused.
    pub const MAX_DEPTH: usize = 16;

    /// Returns a registry without kinds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind; a later loader of the same kind replaces an earlier one.
    pub fn register(&mut self, kind: &'static str, loader: Loader) {
        self.0.insert(kind, loader);
    }

    /// Returns the registered kinds, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// Loads an operator whose tensors lie under `prefix`. Errors if its kind is unknown or its tensors are not what the specification says.
    /// Several operators that share parts are loaded through one [`Loading`] instead.
    pub fn load(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn LinearOp>> {
        Loading::new(self, source).load(spec, prefix)
    }
}

/// Length of an axis whose other axis is empty, at most. Such a matrix has no bytes, so that the length of its file bounds nothing.
const MAX_EMPTY_AXIS: usize = 1 << 24;

/// Errors if a matrix of no elements has an axis above [`MAX_EMPTY_AXIS`].
pub(crate) fn check_empty_axes([a, b]: [usize; 2]) -> Result<()> {
    let longest = a.max(b);
    if a.min(b) == 0 && longest > MAX_EMPTY_AXIS {
        let (found, limit) = (longest as u64, MAX_EMPTY_AXIS as u64);
        return Err(Error::Limit { what: "axis of a matrix without elements", found, limit });
    }
    Ok(())
}

/// The loading of one or more operators from a source: the registry, the source, and the parts that operators share, by name.
pub struct Loading<'l> {
    registry: &'l Registry,
    source: &'l dyn TensorSource,
    shared: Shared,
}

impl<'l> Loading<'l> {
    /// Returns a loading without shared parts yet.
    pub fn new(registry: &'l Registry, source: &'l dyn TensorSource) -> Self {
        Self { registry, source, shared: Shared::default() }
    }

    /// Returns where the tensors are read from.
    pub fn source(&self) -> &'l dyn TensorSource {
        self.source
    }

    /// Loads an operator whose tensors lie under `prefix`. Errors as [`Registry::load`].
    pub fn load(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn LinearOp>> {
        if spec.depth() > Registry::MAX_DEPTH {
            let (found, limit) = (spec.depth() as u64, Registry::MAX_DEPTH as u64);
            return Err(Error::Limit { what: "nesting of operators", found, limit }.in_tensor(prefix));
        }
        check_empty_axes(spec.shape).map_err(|e| e.in_tensor(prefix))?;
        let loader = self.registry.0.get(spec.kind.as_str()).ok_or_else(|| {
            let known: Vec<_> = self.registry.kinds().collect();
            let value = format!("`{}` (known here: {})", spec.kind, known.join(", "));
            Error::Unsupported { what: "kind of operator", value }.in_tensor(prefix)
        })?;
        let op = loader(spec, prefix, self).map_err(|e| e.in_tensor(prefix))?;
        if op.shape() != spec.shape {
            return Err(Error::shape("shape of a loaded operator", spec.shape, op.shape()).in_tensor(prefix));
        }
        Ok(op)
    }

    /// Loads the operator `name` inside of one with the specification `spec`; its tensors lie under `prefix.name`.
    pub fn part(&self, spec: &OpSpec, name: &str, prefix: &str) -> Result<Box<dyn LinearOp>> {
        self.load(spec.get_part(name)?, &join(prefix, name))
    }

    /// Returns the shared part `name`, made by `make` the first time that it is asked for. Errors if `make` does, or if the part was made as
    /// another type.
    pub fn shared<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        self.shared.get(name, make)
    }
}

/// Parts that several loaded objects use, by name.
#[derive(Default)]
pub(crate) struct Shared(Mutex<BTreeMap<String, Arc<dyn Any + Send + Sync>>>);

impl Shared {
    pub(crate) fn get<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let lock = || self.0.lock().unwrap_or_else(|e| e.into_inner());
        let found = lock().get(name).map(Arc::clone);
        let part = match found {
            Some(part) => part,
            None => {
                // Outside of the lock: a part may be made of other shared parts.
                let made: Arc<dyn Any + Send + Sync> = Arc::new(make()?);
                Arc::clone(lock().entry(name.to_string()).or_insert(made))
            }
        };
        part.downcast().map_err(|_| Error::format(name, "the objects that share this part disagree on its type"))
    }
}
