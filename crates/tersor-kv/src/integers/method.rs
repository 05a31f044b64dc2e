//! Integer caches as a method: a cache of one layer, and of all.

use std::sync::Arc;

use tersor_core::cache::{CacheLayout, CacheLoading, CacheNeeds, CacheSample};
use tersor_core::tensors::join;
use tersor_core::{
    Bits, CacheMethod, CacheSet, Context, Error, Heads, KvCache, KvStore, LayerCache, Layout, OpSpec, Result, Rotation,
    TensorSink,
};
use tersor_operators::IntegerRows;

use super::CheckedIntegers;

impl CheckedIntegers {
    /// Returns the empty cache of one attention layer with the given heads. It stores the keys of each key head and the values of each
    /// value head as integers. Errors if a key or a value has fewer dimensions than these parameters store in 8 bits
    /// ([`Integers::high`](crate::Integers::high)), or if these parameters have a rotation of keys that is not as wide as a key.
    pub fn layer(&self, heads: &Heads) -> Result<LayerCache> {
        let [keys, values] = self.parts(heads)?;
        let stores = |n: usize, parts: &[(usize, u32)], rotation: Option<&Arc<Rotation>>| {
            let store = |_| -> Result<Box<dyn KvStore>> { Ok(Box::new(IntegerRows::new(parts, rotation.cloned())?)) };
            (0..n).map(store).collect::<Result<Vec<_>>>()
        };
        let keys = stores(heads.key_heads(), &keys, self.key_rotation.as_ref())?;
        LayerCache::new(heads.clone(), keys, stores(heads.value_heads(), &values, None)?)
    }

    fn spec(&self) -> OpSpec {
        let spec = OpSpec::new("integers", [0, 0])
            .int("key_bits", self.key_bits.get())
            .int("value_bits", self.value_bits.get())
            .size("high", self.high);
        match &self.key_rotation {
            Some(r) => spec.part("key_rotation", r.describe(OpSpec::new("rotation", [r.dim(); 2]))),
            None => spec,
        }
    }
}

impl CacheMethod for CheckedIntegers {
    fn needs(&self) -> CacheNeeds {
        CacheNeeds::default()
    }
    fn fit(&self, _: &CacheSample<'_>, _: &Context) -> Result<Box<dyn CacheSet>> {
        Ok(Box::new(IntegerCaches::new(self.clone())))
    }
    fn layout(&self, layers: &[Heads]) -> Result<CacheLayout> {
        let caches = IntegerCaches::new(self.clone());
        Ok(CacheLayout { bytes_per_token: caches.bytes_per_token(layers)?, tensors: caches.layout() })
    }
}

/// The caches of all attention layers of a network, which store keys and values as integers. All layers have the same parameters
/// ([`IntegerCaches::new`]), or each layer has its own ([`IntegerCaches::by_layer`]).
///
/// ```
/// use tersor_core::{CacheSet, Heads};
/// use tersor_kv::{Check, IntegerCaches, Integers};
/// # fn main() -> tersor_kv::Result<()> {
/// let layers = [Heads::new(8, 2, 64)?, Heads::new(8, 2, 64)?];
/// let caches = IntegerCaches::by_layer(vec![Integers::new(8).check()?, Integers::new(4).check()?])?;
/// assert_eq!(caches.make(&layers)?.len(), 2);
/// assert_eq!(caches.bytes_per_token(&layers)?, (2 + 2) * ((64 + 4) + (32 + 4)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IntegerCaches {
    /// One for all layers, or one for each.
    layers: Vec<CheckedIntegers>,
}

impl IntegerCaches {
    /// The `kind` of these caches in an [`OpSpec`], their description without the cached rows. A `CacheRegistry` finds their loader by it.
    pub const KIND: &'static str = "integer-caches";

    /// Returns caches with the parameters `params` in every layer, for a network with any number of layers. Does not fail.
    /// [`CacheSet::make`] errors later if a key or a value of a layer has fewer dimensions than `params` stores in 8 bits
    /// ([`Integers::high`](crate::Integers::high)), or if `params` has a rotation of keys that is not as wide as a key.
    pub fn new(params: CheckedIntegers) -> Self {
        Self { layers: vec![params] }
    }

    /// Returns caches in which layer `i`, counted from 0, has the parameters `layers[i]`. If `layers` has a single element, every layer has
    /// the parameters `layers[0]`, for a network with any number of layers. Errors if `layers` is empty. [`CacheSet::make`] errors later if
    /// `layers` has two or more elements and the network has another number of layers. [`CacheSet::make`] also errors if a key or a value
    /// of a layer has fewer dimensions than the parameters of that layer store in 8 bits ([`Integers::high`](crate::Integers::high)), or if
    /// these parameters have a rotation of keys that is not as wide as a key.
    pub fn by_layer(layers: Vec<CheckedIntegers>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::shape("layers of a cache", "at least one", 0));
        }
        Ok(Self { layers })
    }

    fn pairs<'l>(&'l self, heads: &'l [Heads]) -> Result<impl Iterator<Item = (&'l CheckedIntegers, &'l Heads)>> {
        let one = self.layers.len() == 1;
        if !one && self.layers.len() != heads.len() {
            return Err(Error::shape("layers of a cache", self.layers.len(), heads.len()));
        }
        Ok(heads.iter().enumerate().map(move |(i, h)| (&self.layers[if one { 0 } else { i }], h)))
    }

    /// Returns the tensors that [`save`](CacheSet::save) writes: the rotations of keys.
    pub(crate) fn layout(&self) -> Layout {
        let mut layout = Layout::exact([]);
        for (i, layer) in self.layers.iter().enumerate() {
            for (suffix, info) in layer.key_rotation.iter().flat_map(|r| r.layout()) {
                layout.tensors.push((format!("layer.{i}.key_rotation.{suffix}"), info));
            }
        }
        layout
    }
}

impl CacheSet for IntegerCaches {
    fn make(&self, layers: &[Heads]) -> Result<Vec<Box<dyn KvCache>>> {
        self.pairs(layers)?.map(|(params, heads)| Ok(Box::new(params.layer(heads)?) as Box<dyn KvCache>)).collect()
    }
    fn bytes_per_token(&self, layers: &[Heads]) -> Result<usize> {
        self.pairs(layers)?.map(|(params, heads)| Ok(params.bytes_per_token(heads)?)).sum()
    }
    fn spec(&self) -> OpSpec {
        let layers = self.layers.iter().enumerate();
        let spec = OpSpec::new(Self::KIND, [0, 0]).size("layers", self.layers.len());
        layers.fold(spec, |spec, (i, params)| spec.part(&format!("layer.{i}"), params.spec()))
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(r) = &layer.key_rotation {
                r.save(&join(prefix, &format!("layer.{i}.key_rotation")), sink)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &CacheLoading<'_>) -> Result<Box<dyn CacheSet>> {
    let mut layers = Vec::new();
    for i in 0..spec.get_size("layers")? {
        let name = format!("layer.{i}");
        let (part, prefix) = (spec.get_part(&name)?, join(prefix, &name));
        let bits = |name: &str| -> Result<Bits> {
            Ok(Bits::within(u32::try_from(part.get_size(name)?).unwrap_or(u32::MAX), 2, 8)?)
        };
        let key_rotation = match part.parts.get("key_rotation") {
            Some(r) => Some(Arc::new(Rotation::load(r, &join(&prefix, "key_rotation"), loading.source())?)),
            None => None,
        };
        layers.push(CheckedIntegers {
            key_bits: bits("key_bits")?,
            value_bits: bits("value_bits")?,
            high: part.get_size("high")?,
            key_rotation,
        });
    }
    Ok(Box::new(IntegerCaches::by_layer(layers)?))
}
