//! [`MixedCaches`]: layers with caches of different kinds.

use std::sync::Arc;

use super::{CacheLoading, CacheRegistry, CacheSet, Heads, KvCache};
use crate::tensors::join;
use crate::{Error, OpSpec, Result, TensorSink};

/// The caches of all attention layers of a network in which layers take them from different [`CacheSet`]s, for example f32 caches in the
/// first layer and 4-bit ones in the others.
#[derive(Clone)]
pub struct MixedCaches {
    sets: Vec<Arc<dyn CacheSet>>,
    layers: Vec<MixedLayer>,
}

/// The layer of a network with [`MixedCaches`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MixedLayer {
    /// The index of the set that makes the cache of the layer, counted from 0.
    pub set: usize,
    /// The bytes that one token takes in this cache, before eviction.
    pub bytes_per_token: usize,
}

impl MixedCaches {
    /// The `kind` of these caches in an [`OpSpec`], their description without the cached rows.
    pub const KIND: &'static str = "mixed-caches";

    /// Returns caches in which layer `i` has the cache that the set `sets[layers[i].set]` makes for layer `i`. Every set is for all layers.
    /// Errors if there is no layer, or a layer has a set that is not among `sets`.
    pub fn new(sets: Vec<Arc<dyn CacheSet>>, layers: Vec<MixedLayer>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::shape("layers of a cache", "at least one", 0));
        }
        match layers.iter().find(|l| l.set >= sets.len()) {
            Some(layer) => Err(Error::shape("set of a layer's cache", format!("below {}", sets.len()), layer.set)),
            None => Ok(Self { sets, layers }),
        }
    }

    /// Adds the loader of these caches to `registry`, under the kind [`MixedCaches::KIND`]. It replaces a loader that the registry has for
    /// this kind. The sets of the layers need loaders of their own.
    pub fn register(registry: &mut CacheRegistry) {
        registry.register_set(Self::KIND, load);
    }

    fn check(&self, layers: &[Heads]) -> Result<()> {
        let own = self.layers.len();
        if layers.len() == own { Ok(()) } else { Err(Error::shape("layers of a cache", own, layers.len())) }
    }
}

impl CacheSet for MixedCaches {
    fn make(&self, layers: &[Heads]) -> Result<Vec<Box<dyn KvCache>>> {
        self.check(layers)?;
        let made = self.sets.iter().map(|set| Ok(set.make(layers)?.into_iter().map(Some).collect()));
        let mut made = made.collect::<Result<Vec<Vec<_>>>>()?;
        let of_layer = |(i, layer): (usize, &MixedLayer)| {
            let cache = made.get_mut(layer.set).and_then(|all| all.get_mut(i)).and_then(Option::take);
            cache.ok_or_else(|| Error::missing(format!("the cache of layer {i}"), "the set of caches"))
        };
        self.layers.iter().enumerate().map(of_layer).collect()
    }
    fn bytes_per_token(&self, layers: &[Heads]) -> Result<usize> {
        self.check(layers)?;
        Ok(self.layers.iter().map(|l| l.bytes_per_token).sum())
    }
    fn spec(&self) -> OpSpec {
        let mut spec = OpSpec::new(Self::KIND, [0, 0]).size("layers", self.layers.len()).size("sets", self.sets.len());
        for (i, layer) in self.layers.iter().enumerate() {
            spec = spec.size(&format!("set.{i}"), layer.set).size(&format!("bytes.{i}"), layer.bytes_per_token);
        }
        self.sets.iter().enumerate().fold(spec, |spec, (i, set)| spec.part(&format!("set.{i}"), set.spec()))
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        self.sets.iter().enumerate().try_for_each(|(i, set)| set.save(&join(prefix, &format!("set.{i}")), sink))
    }
}

/// Loads [`MixedCaches`].
fn load(spec: &OpSpec, prefix: &str, loading: &CacheLoading<'_>) -> Result<Box<dyn CacheSet>> {
    let set = |i: usize| {
        let name = format!("set.{i}");
        Ok(loading.set(spec.get_part(&name)?, &join(prefix, &name))?.into())
    };
    let layer = |i: usize| {
        let (set, bytes) = (spec.get_size(&format!("set.{i}"))?, spec.get_size(&format!("bytes.{i}"))?);
        Ok(MixedLayer { set, bytes_per_token: bytes })
    };
    // A file may claim any number; parts and parameters end it.
    let sets = (0..spec.get_size("sets")?).map(set).collect::<Result<Vec<_>>>()?;
    let layers = (0..spec.get_size("layers")?).map(layer).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(MixedCaches::new(sets, layers)?))
}
