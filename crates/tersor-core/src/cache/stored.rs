//! Saving and loading of a [`LayerCache`].

use super::positions::Positions;
use super::{CacheLoading, Eviction, Heads, KvStore, LayerCache};
use crate::tensors::{join, read_expected};
use crate::{DType, Error, OpSpec, Result, TensorInfo, TensorSink};

/// The kind of the specification of a [`LayerCache`].
const KIND: &str = "layer-cache";

impl LayerCache {
    /// Returns the specification that [`LayerCache::load`] needs: the kind `layer-cache`, the shape
    /// `[cached tokens of the longest head, key_dim]`, parameters, and the specifications of the stores. The parameters are the number of
    /// query heads, the width of a value, the number of lists of positions, the number of tokens seen (evicted ones included), whether
    /// tokens were evicted or merged, whether the tokens of the prompt were scored, and whether the prompt has ended. The stores are the
    /// parts `keys.0`, `keys.1` and so on for each key head, and `values.0`, `values.1` and so on for each value head. Window and rotary
    /// embedding are not in the specification.
    pub fn spec(&self) -> OpSpec {
        let lists = self.positions.lists();
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let mut spec = OpSpec::new(KIND, [longest, self.heads.key_dim()])
            .size("query_heads", self.heads.query_heads())
            .size("value_dim", self.heads.value_dim())
            .size("seen", self.seen)
            .int("evicted", i64::from(self.evicted))
            .int("sealed", i64::from(self.sealed))
            .int("scored", i64::from(self.scored))
            .size("positions", lists.len());
        for (name, stores) in self.sides() {
            for (h, store) in stores.iter().enumerate() {
                spec = spec.part(&format!("{name}.{h}"), store.spec());
            }
        }
        spec
    }

    fn sides(&self) -> [(&'static str, &[Box<dyn KvStore>]); 2] {
        [("keys", &self.keys), ("values", &self.values)]
    }

    /// Writes the positions of the cached tokens, the rows of all stores, and what the scorer of an eviction has observed, as tensors whose
    /// names begin with `prefix.`. Errors if the sink does, or if an earlier step, eviction, truncation or [`LayerCache::attend`] failed
    /// half way.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        self.check_intact()?;
        for (i, list) in self.positions.lists().iter().enumerate() {
            let bytes: Vec<u8> = list.iter().flat_map(|p| p.to_le_bytes()).collect();
            let info = TensorInfo { dtype: DType::U32, shape: vec![list.len()] };
            sink.write_shared(&join(prefix, &format!("positions.{i}")), &info, &bytes)?;
        }
        for (name, stores) in self.sides() {
            for (h, store) in stores.iter().enumerate() {
                store.save(&join(prefix, &format!("{name}.{h}")), sink)?;
            }
        }
        match &self.eviction {
            Some(e) => e.scorer.save(&join(prefix, "scorer"), sink),
            None => Ok(()),
        }
    }

    /// Returns the cache that [`LayerCache::save`] wrote under `prefix` and that [`LayerCache::spec`] describes; `loading` has the source
    /// of its tensors. Window and rotary embedding are those of `heads`. With an `eviction`, the observations of its scorer are restored
    /// from the saved ones, and the cache evicts tokens from then on. With None, saved observations are ignored and the cache does not
    /// evict.
    ///
    /// Errors if the kind of `spec` is not `layer-cache`, if a number of heads or a width differs between `spec` and `heads`, or if `spec`
    /// lacks a parameter or the specification of a store. Errors if the numbers of tokens in `spec` and in the stores contradict each
    /// other. Errors if [`CacheLoading::store`] errors for a store, or if stores that cache the same tokens differ in length. Errors if the
    /// positions of the tokens are missing, are not a u32 for each token, or do not ascend strictly. Errors if the scorer cannot be
    /// restored.
    pub fn load(
        heads: Heads,
        eviction: Option<Eviction>,
        spec: &OpSpec,
        prefix: &str,
        loading: &CacheLoading<'_>,
    ) -> Result<Self> {
        if spec.kind != KIND {
            return Err(Error::format("cache", format!("it is a `{}`, not a `{KIND}`", spec.kind)));
        }
        let stores = heads.key_heads() + heads.value_heads();
        if spec.parts.len() != stores {
            return Err(Error::shape("key and value heads of a stored cache", stores, spec.parts.len()));
        }
        let expected = [heads.query_heads(), heads.key_dim(), heads.value_dim()];
        let found = [spec.get_size("query_heads")?, spec.shape[1], spec.get_size("value_dim")?];
        if expected != found {
            return Err(Error::shape("query heads and widths of a stored cache", expected, found));
        }
        let side = |name: &str, heads: usize| -> Result<Vec<Box<dyn KvStore>>> {
            let store = |h: usize| {
                let name = format!("{name}.{h}");
                loading.store(spec.get_part(&name)?, &join(prefix, &name))
            };
            (0..heads).map(store).collect()
        };
        let (keys, values) = (side("keys", heads.key_heads())?, side("values", heads.value_heads())?);
        let mut cache = Self::over(heads, keys, values)?;
        let lists = spec.get_size("positions")?;
        if lists != 1 && lists != cache.keys.len() {
            return Err(Error::shape("lists of positions", [1, cache.keys.len()], lists));
        }
        let share = cache.values.len() / cache.keys.len();
        let mut all = Vec::with_capacity(lists);
        for i in 0..lists {
            // The stores know their lengths: nothing is read before they agree.
            let own = if lists == 1 { 0..cache.keys.len() } else { i..i + 1 };
            let len = cache.keys.get(i).map_or(0, |s| s.len());
            let values = &cache.values[own.start * share..own.end * share];
            if let Some(store) = cache.keys[own].iter().chain(values).find(|s| s.len() != len) {
                return Err(Error::shape("rows of the stores of one cache", len, store.len()));
            }
            let name = join(prefix, &format!("positions.{i}"));
            let bytes = read_expected(loading.source(), &name, DType::U32, &[len])?;
            let list: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            if let Some(pair) = list.windows(2).find(|p| p[0] >= p[1]) {
                return Err(Error::order("stored positions", "ascending", pair).in_tensor(&name));
            }
            all.push(list);
        }
        cache.positions = match <[Vec<u32>; 1]>::try_from(all) {
            Ok([list]) => Positions::Shared(list),
            Err(lists) => Positions::ByHead(lists),
        };
        let flag = |name: &str| spec.get_int(name).map(|v| v != 0);
        (cache.seen, cache.evicted, cache.sealed) = (spec.get_size("seen")?, flag("evicted")?, flag("sealed")?);
        let (len, seen) = (cache.positions.longest(), cache.seen);
        if seen < len || (!cache.evicted && (seen > len || lists > 1)) {
            return Err(Error::shape("tokens seen by a stored cache", len, seen));
        }
        cache.scored = cache.sealed || flag("scored")?;
        if let Some(mut eviction) = eviction {
            let lengths: Vec<usize> = cache.keys.iter().map(|s| s.len()).collect();
            eviction.scorer.restore(&join(prefix, "scorer"), &lengths, loading.source())?;
            cache.eviction = Some(eviction);
        }
        Ok(cache)
    }
}
