//! [`Registry`]: loads operators from their specification and stored tensors.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::tensors::join;
use crate::{Error, LinearOp, OpSpec, Result, TensorSource};

/// A function that loads operators of one kind (one stored form). It gets the specification of an operator (kind, shape and parameters),
/// the prefix of the names of its tensors, and a [`Loading`], which has the source of the tensors and loads operators inside of this one.
/// The result must have the specified shape. Errors if tensors are missing or do not match the specification.
pub type Loader = fn(&OpSpec, &str, &Loading<'_>) -> Result<Box<dyn LinearOp>>;

/// A table of the functions that load operators ([`Loader`]), by the kind of operator, which is the name of a stored form, such as
/// `grouped`. The [front page](crate) shows how a loader is registered.
///
/// ```
/// use tersor_core::{MemTensors, OpSpec, Registry};
/// let registry = Registry::new();
/// let refused = registry.load(&OpSpec::new("grouped", [4, 4]), "w", &MemTensors::new()).err();
/// assert!(refused.is_some_and(|e| e.to_string().contains("`grouped`")), "no loader is registered for this kind");
/// ```
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Loader>);

impl Registry {
    /// The maximum number of levels of operators inside of operators; an operator without others inside has one level. Deeper operators are
    /// neither loaded nor saved: that errors.
    pub const MAX_DEPTH: usize = 16;

    /// Returns a registry without loaders; [`Registry::register`] adds them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `loader` for operators of the kind `kind`. It replaces the loader that this kind had before.
    pub fn register(&mut self, kind: &'static str, loader: Loader) {
        self.0.insert(kind, loader);
    }

    /// Returns the kinds of operators that have a loader, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// Errors if the operators of a specification are nested deeper than [`Registry::MAX_DEPTH`].
    pub(crate) fn check_depth(spec: &OpSpec) -> Result<()> {
        match spec.depth() {
            0..=Registry::MAX_DEPTH => Ok(()),
            found => Err(Error::Limit {
                what: "nesting of operators",
                found: found as u64,
                limit: Registry::MAX_DEPTH as u64,
            }),
        }
    }

    /// Loads the operator with the specification `spec`. Its tensors are read from `source`, and their names begin with `prefix`. Every
    /// call loads its own copy of the parts that operators share, such as a codebook; operators that are loaded through one [`Loading`] use
    /// one copy. Errors if no loader is registered for the operator's kind, if a tensor is missing or does not match the specification, if
    /// operators are nested deeper than [`Registry::MAX_DEPTH`], or if the matrix has no elements and an axis longer than 2^24.
    pub fn load(&self, spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Box<dyn LinearOp>> {
        Loading::new(self, source).load(spec, prefix)
    }
}

/// Maximum length of an axis whose other axis has length 0. Such a matrix has no bytes, so the length of its file does not bound the axis.
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

/// Returns the error of loading something stored: a parameter that is invalid in a file is the fault of the file, not bad usage.
pub(crate) fn stored(error: Error) -> Error {
    if error.is_usage() { Error::format("what is stored", error.to_string()) } else { error }
}

/// The state of loading one or more operators from one source of tensors: the registry of loaders, the source, and the parts that several
/// operators share, such as a codebook, by name. A shared part is loaded once.
///
/// ```
/// use tersor_core::{Loading, MemTensors, Registry};
/// # fn main() -> tersor_core::Result<()> {
/// let (registry, file) = (Registry::new(), MemTensors::new());
/// let loading = Loading::new(&registry, &file);
/// // The first operator that needs the codebook loads it, later ones get the same.
/// let codebook = loading.shared("codebook", || Ok(vec![1.0f32, 2.0]))?;
/// let again = loading.shared("codebook", || Ok(vec![0.0f32]))?;
/// assert_eq!((&*codebook, &*again), (&vec![1.0, 2.0], &vec![1.0, 2.0]));
/// # Ok(())
/// # }
/// ```
pub struct Loading<'l> {
    registry: &'l Registry,
    source: &'l dyn TensorSource,
    shared: Shared,
}

impl<'l> Loading<'l> {
    /// Returns the state of loading from `source` with the loaders of `registry`, before any part that several operators share, such as a
    /// codebook, is loaded.
    pub fn new(registry: &'l Registry, source: &'l dyn TensorSource) -> Self {
        Self { registry, source, shared: Shared::default() }
    }

    /// Returns the source that the operators' tensors are read from.
    pub fn source(&self) -> &'l dyn TensorSource {
        self.source
    }

    /// Loads the operator with the specification `spec`, whose tensors' names begin with `prefix`. Errors if no loader is registered for
    /// the operator's kind, if a tensor is missing or does not match the specification, if operators are nested deeper than
    /// [`Registry::MAX_DEPTH`], or if the matrix has no elements and an axis longer than 2^24.
    pub fn load(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn LinearOp>> {
        Registry::check_depth(spec).map_err(|e| e.in_tensor(prefix))?;
        check_empty_axes(spec.shape).map_err(|e| e.in_tensor(prefix))?;
        let loader = self.registry.0.get(spec.kind.as_str()).ok_or_else(|| {
            let known: Vec<_> = self.registry.kinds().collect();
            let value = format!("`{}` (registered: {})", spec.kind, known.join(", "));
            Error::Unsupported { what: "kind of operator", value }.in_tensor(prefix)
        })?;
        let op = loader(spec, prefix, self).map_err(|e| stored(e).in_tensor(prefix))?;
        if op.shape() != spec.shape {
            return Err(Error::shape("shape of a loaded operator", spec.shape, op.shape()).in_tensor(prefix));
        }
        Ok(op)
    }

    /// Loads the operator `name` that is a part of an outer operator. `spec` and `prefix` are those of the outer operator: its
    /// specification, and the prefix of its tensors' names. The names of the part's tensors begin with `prefix.name`. Errors with
    /// [`Error::Missing`] if `spec` has no part `name`. Errors if the part cannot be loaded: no loader is registered for its kind, a tensor
    /// is missing or does not match, or operators are nested deeper than [`Registry::MAX_DEPTH`].
    pub fn part(&self, spec: &OpSpec, name: &str, prefix: &str) -> Result<Box<dyn LinearOp>> {
        self.load(spec.get_part(name)?, &join(prefix, name))
    }

    /// Returns the part `name` that several operators share, such as a codebook. If there is no part of this name yet, `make` computes it,
    /// and it is stored; later calls return the stored value and do not call `make`. Errors if `make` errors; nothing is stored then.
    /// Errors if the stored part is not of type `T`.
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
        part.downcast()
            .map_err(|_| Error::format(name, "the operators that share this part require different types of it"))
    }
}
