//! Saving and loading of a [`LayerCache`].

use super::positions::Positions;
use super::{CacheLoading, Eviction, Heads, KvStore, LayerCache};
use crate::tensors::{join, read_expected};
use crate::{DType, Error, OpSpec, Result, TensorInfo, TensorSink};

impl LayerCache {
    /// Describes the cache: its heads, and the specifications of its stores as the parts `keys.0`, `keys.1`, …, `values.0`, ….
    pub fn spec(&self) -> OpSpec {
        let lists = self.positions.lists();
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let mut spec = OpSpec::new("layer-cache", [longest, self.heads.key_dim()])
            .size("query_heads", self.heads.query_heads())
            .size("value_dim", self.heads.value_dim())
            .size("seen", self.seen)
            .int("evicted", i64::from(self.evicted))
            .int("sealed", i64::from(self.sealed))
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

    /// Writes positions, stores, and what the scorer of an eviction has observed, under `prefix`. Errors if the sink does, or if an eviction or a
    /// truncation failed half way.
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

    /// Returns the cache that [`LayerCache::save`] wrote under `prefix`. It goes on evicting tokens by `eviction`, whose scorer is restored. Errors if
    /// the specification does not fit the heads, a kind of store is unknown, or tensors are not what the specification says.
    pub fn load(
        heads: Heads,
        eviction: Option<Eviction>,
        spec: &OpSpec,
        prefix: &str,
        loading: &CacheLoading<'_>,
    ) -> Result<Self> {
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
        cache.scored = cache.sealed;
        if let Some(mut eviction) = eviction {
            let lengths: Vec<usize> = cache.keys.iter().map(|s| s.len()).collect();
            eviction.scorer.restore(&join(prefix, "scorer"), &lengths, loading.source())?;
            cache.eviction = Some(eviction);
        }
        Ok(cache)
    }
}
