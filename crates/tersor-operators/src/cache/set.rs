//! [`DenseCaches`]: caches of all layers in f32 or f16.

use tersor_core::cache::CacheLoading;
use tersor_core::{CacheSet, DType, Error, Heads, KvCache, KvStore, LayerCache, OpSpec, Result, TensorSink};

use super::DenseRows;

/// The caches of all attention layers of a network, which store keys and values in f32 or f16, the same type in every layer.
///
/// ```
/// use tersor_core::{CacheSet, Heads};
/// use tersor_operators::DenseCaches;
/// # fn main() -> tersor_operators::Result<()> {
/// let layers = [Heads::new(8, 2, 64)?, Heads::new(8, 2, 64)?];
/// assert_eq!(DenseCaches::f32().make(&layers)?.len(), 2);
/// assert_eq!(DenseCaches::f32().bytes_per_token(&layers)?, 2 * (2 + 2) * 64 * 4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DenseCaches {
    dtype: DType,
}

impl DenseCaches {
    /// The `kind` of these caches in an [`OpSpec`], their description without the cached rows. A `CacheRegistry` finds their loader by it.
    pub const KIND: &'static str = "dense-caches";

    /// Returns caches that store keys and values as `dtype`. Errors unless `dtype` is f32 or f16.
    pub fn new(dtype: DType) -> Result<Self> {
        DenseRows::new(1, dtype)?;
        Ok(Self { dtype })
    }

    /// Returns caches that store keys and values in f32.
    pub fn f32() -> Self {
        Self { dtype: DType::F32 }
    }

    /// Returns the empty cache of one attention layer with the given heads: a [`DenseRows`] for the keys of each key head, and one for the
    /// values of each value head. Does not fail for heads that [`Heads::new`] accepts.
    pub fn layer(&self, heads: &Heads) -> Result<LayerCache> {
        let stores = |n: usize, dim: usize| {
            let store = |_| -> Result<Box<dyn KvStore>> { Ok(Box::new(DenseRows::new(dim, self.dtype)?)) };
            (0..n).map(store).collect::<Result<Vec<_>>>()
        };
        let keys = stores(heads.key_heads(), heads.key_dim())?;
        LayerCache::new(heads.clone(), keys, stores(heads.value_heads(), heads.value_dim())?)
    }
}

impl CacheSet for DenseCaches {
    fn make(&self, layers: &[Heads]) -> Result<Vec<Box<dyn KvCache>>> {
        layers.iter().map(|heads| Ok(Box::new(self.layer(heads)?) as Box<dyn KvCache>)).collect()
    }
    fn bytes_per_token(&self, layers: &[Heads]) -> Result<usize> {
        let values = |h: &Heads| h.key_heads() * h.key_dim() + h.value_heads() * h.value_dim();
        Ok(layers.iter().map(values).sum::<usize>() * self.dtype.size())
    }
    fn spec(&self) -> OpSpec {
        OpSpec::new(Self::KIND, [0, 0]).text("dtype", self.dtype.name())
    }
    fn save(&self, _: &str, _: &mut dyn TensorSink) -> Result<()> {
        Ok(())
    }
}

pub(super) fn load(spec: &OpSpec, _: &str, _: &CacheLoading<'_>) -> Result<Box<dyn CacheSet>> {
    let name = spec.get_text("dtype")?;
    let dtype = DType::from_name(name);
    let dtype = dtype.ok_or_else(|| Error::Unsupported { what: "type of cached rows", value: name.to_string() })?;
    Ok(Box::new(DenseCaches::new(dtype)?))
}
