//! [`LayerCache`]: the cache of a layer over two stores per head.

use std::ops::Range;
use std::sync::Arc;

use tersor_kernels::par;

use super::attend::Attention;
use super::positions::Positions;
use super::{Angles, Eviction, Heads, KvCache, KvStep, KvStore, Rope, TokenScorer};
use crate::{Error, Exec, MatView, Result, check_finite};

/// The key-value cache of one attention layer: a [`KvStore`] of keys for each key head, one of values for each value head, and the
/// positions of the cached tokens. It appends blocks of tokens, computes the attention output of queries, evicts tokens by an [`Eviction`]
/// if it has one, and returns the cached rows. Results do not depend on the number of threads. Stores, and examples of caches over them,
/// are in `tersor-operators`.
pub struct LayerCache {
    pub(super) heads: Heads,
    pub(super) keys: Vec<Box<dyn KvStore>>,
    pub(super) values: Vec<Box<dyn KvStore>>,
    pub(super) positions: Positions,
    /// Tokens seen, evicted ones included.
    pub(super) seen: usize,
    /// Whether tokens were evicted or merged.
    pub(super) evicted: bool,
    pub(super) eviction: Option<Eviction>,
    pub(super) scored: bool,
    pub(super) sealed: bool,
    /// Whether an eviction or a truncation failed after it had changed some stores: the stores no longer agree.
    pub(super) damaged: bool,
}

/// Number of values of a block from which it is appended by several threads.
const FORK_APPEND: usize = 1 << 16;

impl LayerCache {
    /// Returns an empty cache for a layer with these heads. `keys` has an empty store for each key head, of rows of `key_dim` values;
    /// `values` has one for each value head, of rows of `value_dim` values. Errors if the number or width of the stores does not fit the
    /// heads, or a store is not empty.
    pub fn new(heads: Heads, keys: Vec<Box<dyn KvStore>>, values: Vec<Box<dyn KvStore>>) -> Result<Self> {
        let cache = Self::over(heads, keys, values)?;
        if let Some(store) = cache.keys.iter().chain(&cache.values).find(|s| !s.is_empty()) {
            return Err(Error::shape("rows of a new cache's stores", 0, store.len()));
        }
        Ok(cache)
    }

    /// Returns the cache over stores that may have rows; their positions are set by the caller. Errors as [`LayerCache::new`], but for the rows.
    pub(super) fn over(heads: Heads, keys: Vec<Box<dyn KvStore>>, values: Vec<Box<dyn KvStore>>) -> Result<Self> {
        let (expected, found) = ([heads.key_heads(), heads.value_heads()], [keys.len(), values.len()]);
        if expected != found {
            return Err(Error::shape("stores of keys and values", expected, found));
        }
        for (what, dim, stores) in
            [("width of a key store", heads.key_dim(), &keys), ("width of a value store", heads.value_dim(), &values)]
        {
            if let Some(store) = stores.iter().find(|s| s.dim() != dim) {
                return Err(Error::shape(what, dim, store.dim()));
            }
        }
        Ok(Self {
            heads,
            keys,
            values,
            positions: Positions::new(),
            seen: 0,
            evicted: false,
            eviction: None,
            scored: false,
            sealed: false,
            damaged: false,
        })
    }

    /// Returns this cache with `eviction`, which replaces an earlier eviction. The cache should be empty, because the scorer is never told
    /// the keys and attention probabilities of tokens that are cached already. A scorer that relies on them scores wrongly, errors or
    /// panics when the cache evicts. To continue a saved cache with what its scorer has observed, use [`LayerCache::load`].
    pub fn with_eviction(self, eviction: Eviction) -> Self {
        Self { eviction: Some(eviction), ..self }
    }

    /// Returns the sizes of the layer's attention: the numbers of heads, their widths, the window and the rotary embedding.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Returns the store of the keys of key head `head`, counted from 0. Errors if there is no such head.
    pub fn keys(&self, head: usize) -> Result<&dyn KvStore> {
        let store = self.keys.get(head).map(|s| &**s);
        store.ok_or_else(|| Error::range("key head", 0..self.keys.len(), head))
    }

    /// Returns the store of the values of value head `head`, counted from 0. Errors if there is no such head.
    pub fn values(&self, head: usize) -> Result<&dyn KvStore> {
        let store = self.values.get(head).map(|s| &**s);
        store.ok_or_else(|| Error::range("value head", 0..self.values.len(), head))
    }

    /// Returns the position in the text of each token that is cached for key head `head` (counted from 0), ascending, `[cached tokens]`;
    /// empty if there is no such head. Key heads may differ after an eviction.
    pub fn positions(&self, head: usize) -> &[u32] {
        if head < self.keys.len() { self.positions.of(head) } else { &[] }
    }

    /// Writes the keys of key head `head` (counted from 0) into `out`, `[rows.len(), key_dim]` row-major, in f32 and after the rotary
    /// embedding. `rows` is a range of the cached tokens, counted from 0 in the order of their positions. Errors if the head or rows do not
    /// exist, `out` has another length, or rows cannot be fetched.
    pub fn read_keys(&self, head: usize, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        let store = self.keys(head)?;
        read(store, rows.clone(), out, exec)?;
        if let (Rope::Before, Some(rotary)) = (store.rope(), self.heads.rotary()) {
            let dim = self.heads.key_dim();
            for (row, &p) in out.chunks_exact_mut(dim).zip(&self.positions.of(head)[rows]) {
                rotary.angles(p).apply(exec.isa(), row, dim);
            }
        }
        Ok(())
    }

    /// Writes the values of value head `head` (counted from 0) into `out`, `[rows.len(), value_dim]` row-major, in f32. `rows` is a range
    /// of the cached tokens, counted from 0 in the order of their positions. Errors if the head or rows do not exist, `out` has another
    /// length, or rows cannot be fetched.
    pub fn read_values(&self, head: usize, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        read(self.values(head)?, rows, out, exec)
    }

    /// Appends tokens without computing attention, and without an eviction. `keys` are `[tokens, key_heads * key_dim]` and `values`
    /// `[tokens, value_heads * value_dim]`, row-major, as the projections gave them, before the rotary embedding. `positions` are
    /// `[tokens]`, strictly ascending, and above those of all cached tokens. Zero tokens change nothing.
    ///
    /// Errors, with the cache unchanged, if `keys` or `values` has another length, or if a position is not above those of all cached tokens
    /// and of the new tokens before it. Errors, with the cache unchanged, if a key or value is not finite, or if its store cannot hold it
    /// (for example because it is beyond the range of f16). Errors if the cache is damaged because an earlier step, eviction, truncation or
    /// [`LayerCache::attend`] failed half way; only [`KvCache::clear`] makes it usable again.
    pub fn append(&mut self, keys: &[f32], values: &[f32], positions: &[u32], exec: &Exec) -> Result<()> {
        self.check_block(keys, values, positions)?;
        let angles = self.angles(positions);
        exec.run(|| self.append_checked(keys, values, positions, &angles, exec))
    }

    /// Writes the attention output of queries into `out`, `[tokens, query_heads * value_dim]` row-major, without appending tokens.
    /// `queries` are `[tokens, query_heads * key_dim]` row-major, as the projection gave them, before the rotary embedding. `positions` are
    /// `[tokens]`, in any order; positions may repeat. A query sees the cached tokens at its own and earlier positions, as far back as the
    /// sliding window reaches. If the cache has an eviction, its scorer observes the attention probabilities.
    ///
    /// Errors, with `out` unchanged, if `queries` or `out` has another length, if a query is not finite, or if a query sees no cached token
    /// of some key head. Errors if rows of a store cannot be fetched; `out` may be partly written then. If the scorer has observed some of
    /// the queries before this error, the cache is damaged, as it is after a step, an eviction or a truncation that failed half way. Errors
    /// if the cache is damaged; only [`KvCache::clear`] makes it usable again.
    pub fn attend(&mut self, queries: &[f32], positions: &[u32], out: &mut [f32], exec: &Exec) -> Result<()> {
        self.check_queries(queries, positions, out)?;
        let angles = self.angles(positions);
        exec.run(|| self.attend_checked(queries, positions, &angles, out, exec))
    }

    /// Errors if the stores no longer agree.
    pub(super) fn check_intact(&self) -> Result<()> {
        if self.damaged {
            let value = "clear the cache and start again".into();
            return Err(Error::Unsupported {
                what: "a cache whose last step, eviction or truncation failed half way",
                value,
            });
        }
        Ok(())
    }

    fn check_block(&self, keys: &[f32], values: &[f32], positions: &[u32]) -> Result<()> {
        self.check_intact()?;
        let h = &self.heads;
        let tokens = positions.len();
        let length = |heads: usize, dim: usize| crate::view::elements([tokens, heads * dim]);
        let expected = [length(h.key_heads(), h.key_dim())?, length(h.value_heads(), h.value_dim())?];
        if [keys.len(), values.len()] != expected {
            return Err(Error::shape("keys and values", expected, [keys.len(), values.len()]));
        }
        let mut last = self.positions.last();
        for &p in positions {
            if last.is_some_and(|l| p <= l) {
                return Err(Error::order("positions of new tokens", "ascending", (last, p)));
            }
            last = Some(p);
        }
        Ok(())
    }

    fn check_queries(&self, queries: &[f32], positions: &[u32], out: &[f32]) -> Result<()> {
        self.check_intact()?;
        let h = &self.heads;
        let length = |dim: usize| crate::view::elements([positions.len(), h.query_heads() * dim]);
        let expected = [length(h.key_dim())?, length(h.value_dim())?];
        if [queries.len(), out.len()] != expected {
            return Err(Error::shape("queries and output", expected, [queries.len(), out.len()]));
        }
        check_finite(queries, h.query_heads() * h.key_dim(), 0)
    }

    fn angles(&self, positions: &[u32]) -> Vec<Arc<Angles>> {
        let rotary = self.heads.rotary();
        rotary.map_or_else(Vec::new, |r| positions.iter().map(|&p| r.angles(p)).collect())
    }

    fn append_checked(
        &mut self,
        keys: &[f32],
        values: &[f32],
        positions: &[u32],
        angles: &[Arc<Angles>],
        exec: &Exec,
    ) -> Result<()> {
        let (n, tokens) = (self.heads.key_heads(), positions.len());
        let (dim, value_dim) = (self.heads.key_dim(), self.heads.value_dim());
        if tokens == 0 {
            return Ok(());
        }
        let after = !angles.is_empty() && self.keys.iter().any(|s| s.rope() == Rope::After);
        let mut rotated = exec.scratch(if after { keys.len() } else { 0 });
        if after {
            rotated.copy_from_slice(keys);
            for (row, a) in rotated.chunks_exact_mut(n * dim).zip(angles) {
                a.apply(exec.isa(), row, dim);
            }
        }
        let rotated: &[f32] = if after { &rotated } else { keys };
        let value_heads = self.heads.value_heads();
        let key_block = |store: &dyn KvStore, h: usize| {
            let data = if store.rope() == Rope::After { rotated } else { keys };
            MatView::strided(data, h * dim, [tokens, dim], [(n * dim) as isize, 1])
        };
        let value_block = |h: usize| {
            MatView::strided(values, h * value_dim, [tokens, value_dim], [(value_heads * value_dim) as isize, 1])
        };
        for (h, store) in self.keys.iter().enumerate() {
            store.admit(key_block(&**store, h)?)?;
        }
        for (h, store) in self.values.iter().enumerate() {
            store.admit(value_block(h)?)?;
        }
        let fork = exec.parallel() && par::worth(tokens * (n * dim + value_heads * value_dim), FORK_APPEND);
        let append = |store: &mut dyn KvStore, block: Result<MatView<'_, f32>>| {
            if let Ok(block) = block {
                store.append(block, positions, exec);
            }
        };
        let mut work: Vec<(usize, &mut Box<dyn KvStore>)> =
            self.keys.iter_mut().enumerate().chain(self.values.iter_mut().enumerate()).collect();
        let count = work.len();
        par::pairs(&mut work, 1, &mut vec![(); count], 1, fork, |i, work, _| {
            for (h, store) in work {
                let block = if i < n { key_block(&***store, *h) } else { value_block(*h) };
                append(&mut ***store, block);
            }
        });
        if let Some(eviction) = &mut self.eviction {
            for (h, store) in self.keys.iter().enumerate() {
                eviction.scorer.appended(h, key_block(&**store, h)?, positions);
            }
        }
        self.positions.extend(positions);
        self.seen += tokens;
        Ok(())
    }

    /// Removes the last `tokens` rows of every store. Errors if a store refuses.
    fn remove_last(&mut self, tokens: usize) -> Result<()> {
        for (done, store) in self.keys.iter_mut().chain(&mut self.values).enumerate() {
            if let Err(e) = store.truncate(store.len().saturating_sub(tokens)) {
                self.damaged |= done > 0;
                return Err(e);
            }
        }
        self.positions.remove_last(tokens);
        self.seen = self.seen.saturating_sub(tokens);
        if let Some(e) = &mut self.eviction {
            self.keys.iter().enumerate().for_each(|(h, store)| e.scorer.truncate(h, store.len()));
        }
        Ok(())
    }

    fn attend_checked(
        &mut self,
        queries: &[f32],
        positions: &[u32],
        angles: &[Arc<Angles>],
        out: &mut [f32],
        exec: &Exec,
    ) -> Result<()> {
        let attention = Attention {
            heads: &self.heads,
            keys: &self.keys,
            values: &self.values,
            positions: &self.positions,
            queries,
            at: positions,
            angles,
        };
        let scorer = self.eviction.as_mut().map(|e| &mut *e.scorer as &mut dyn TokenScorer);
        let mut observed = false;
        let done = attention.run(out, scorer, &mut observed, exec);
        // A scorer cannot forget the probabilities of the queries before the failure.
        self.damaged |= done.is_err() && observed;
        done
    }
}

fn read(store: &dyn KvStore, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
    crate::rows::check_range([store.len(), store.dim()], &rows, out.len())?;
    store.read(rows, out, exec)
}

impl KvCache for LayerCache {
    fn step(&mut self, step: KvStep<'_>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.check_block(step.keys, step.values, step.positions)?;
        self.check_queries(step.queries, step.positions, out)?;
        let angles = self.angles(step.positions);
        exec.run(|| {
            self.append_checked(step.keys, step.values, step.positions, &angles, exec)?;
            let done = self.attend_checked(step.queries, step.positions, &angles, out, exec);
            if done.is_err() && self.remove_last(step.positions.len()).is_err() {
                self.damaged = true;
            }
            done
        })?;
        if self.sealed { self.evict(exec) } else { Ok(()) }
    }

    fn score_prompt(&mut self, exec: &Exec) -> Result<()> {
        self.check_intact()?;
        if self.sealed || self.scored {
            return Ok(());
        }
        let scores = self.scores(exec)?;
        if let Some(e) = &self.eviction {
            e.budget.sealed(e.layer, &scores);
        }
        self.scored = true;
        Ok(())
    }

    fn seal(&mut self, exec: &Exec) -> Result<()> {
        self.score_prompt(exec)?;
        self.sealed = true;
        self.evict(exec)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.seen {
            return Ok(());
        }
        self.check_intact()?;
        if self.evicted {
            let value = "tokens were evicted or merged; clear the cache and start again".into();
            return Err(Error::Unsupported { what: "truncation of a cache", value });
        }
        self.remove_last(self.seen - len)
    }

    fn clear(&mut self) {
        self.keys.iter_mut().chain(&mut self.values).for_each(|s| s.clear());
        self.positions = Positions::new();
        (self.seen, self.evicted, self.scored, self.sealed, self.damaged) = (0, false, false, false, false);
        if let Some(e) = &mut self.eviction {
            e.scorer.clear();
        }
    }

    fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(|s| s.bytes()).sum()
    }

    fn len(&self) -> usize {
        self.seen
    }
}
