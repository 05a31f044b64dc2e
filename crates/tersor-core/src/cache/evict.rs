//! Eviction: which cached tokens are removed, and how removed tokens are merged into others.

use std::ops::Range;
use std::sync::Arc;

use super::{KvStore, LayerCache};
use crate::{Error, Exec, MatView, Result, TensorSink, TensorSource, check_finite};

/// Which attention probabilities (outputs of the softmax) a [`TokenScorer`] receives in [`TokenScorer::observe`]: none, their sums over
/// queries, those of the last queries of each step, or those of every query. The cache stores only the requested ones, until they are
/// passed on. The default is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Probs {
    /// No probabilities.
    #[default]
    None,
    /// The sums over the queries of a block (at most 64 query tokens) and over the query heads that share a key head: one value for each
    /// cached token.
    Sums,
    /// The probabilities of the last queries of each step, in tokens; of every query if the step has fewer tokens, of none if the number is
    /// 0.
    Last(usize),
    /// The probabilities of every query.
    Rows,
}

/// Computes an importance score for each cached token of a layer, from the attention it received, the norm of its key, its position, or
/// another rule. Tokens with the lowest scores are evicted first.
///
/// Each cache of a layer has its own scorer. In the methods, `head` is a key head, counted from 0, and a token is named by its index among
/// the tokens that are cached for that head, counted from 0 in the order of positions. The methods that only record something do nothing by
/// default.
pub trait TokenScorer: Send + Sync {
    /// Returns which attention probabilities [`observe`](Self::observe) receives. Called at every step; the answer should not change.
    fn needs(&self) -> Probs;

    /// Records tokens that were appended to the cache of key head `head`: their keys `[tokens, key_dim]`, as the store received them (after
    /// the rotary embedding if the store has [`Rope::After`](super::Rope::After)), and their positions, `[tokens]`. Called before the
    /// attention of the tokens is observed.
    fn appended(&mut self, head: usize, keys: MatView<'_, f32>, positions: &[u32]) {
        let _ = (head, keys, positions);
    }

    /// Records the attention probabilities of query tokens at `positions` over the cached tokens with the indices `keys`, for key head
    /// `head`. With [`Probs::Sums`], `probs` is `[keys.len()]`; otherwise it is `[group, positions.len(), keys.len()]` row-major, with
    /// `group` the number of query heads that share the key head. A query has probability 0 for tokens that it does not see. One step comes
    /// in several calls if it has more than 64 tokens or the cache more than 1024; never called with [`Probs::None`].
    fn observe(&mut self, head: usize, positions: &[u32], keys: Range<usize>, probs: &[f32]) {
        let _ = (head, positions, keys, probs);
    }

    /// Writes a score for each cached token of key head `head` into `out`, `[tokens]`, given the positions of these tokens, `[tokens]`, and
    /// the store of their keys. Tokens with higher scores are retained; of equal scores the later token is. A token that must be retained
    /// gets `f32::INFINITY`; NaN makes the eviction error. Errors if rows of the store cannot be fetched or something else that the scorer
    /// needs is missing; the cache passes the error on and evicts nothing.
    fn score(&self, head: usize, positions: &[u32], keys: &dyn KvStore, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Records an eviction: of the tokens cached for key head `head`, only those of the ascending indices `keep` remain. Called for every
    /// key head, even if it lost no token.
    fn retain(&mut self, head: usize, keep: &[u32]) {
        let _ = (head, keep);
    }

    /// Records that the last tokens of key head `head` were removed, so that the first `len` remain.
    fn truncate(&mut self, head: usize, len: usize) {
        let _ = (head, len);
    }

    /// Records that the cache was emptied, for a new text: all observations are to be dropped.
    fn clear(&mut self) {}

    /// Writes the observations as tensors whose names begin with `prefix`. Errors if the sink does. The default writes nothing, which suits
    /// a scorer that looks at the cached keys alone.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let _ = (prefix, sink);
        Ok(())
    }

    /// Replaces the observations by those that [`save`](Self::save) wrote under `prefix`; `lengths` has the number of cached tokens of each
    /// key head, `[key_heads]`. Errors if tensors are missing or do not fit these lengths. The default reads nothing.
    fn restore(&mut self, prefix: &str, lengths: &[usize], source: &dyn TensorSource) -> Result<()> {
        let _ = (prefix, lengths, source);
        Ok(())
    }
}

/// Chooses how many cached tokens each key head of a layer retains at an eviction, for example a fixed number, or a number that depends on
/// the scores. One budget may serve the caches of all layers: it then receives the scores of every layer before the first eviction of any.
pub trait Budget: Send + Sync {
    /// Records the scores of the cached tokens of layer `layer` (counted from 0) at the end of the prompt, `[key_heads][cached tokens]`.
    /// Does nothing by default. Called once for each text, but not for a cache that was saved after its prompt had ended and loaded again.
    fn sealed(&self, layer: usize, scores: &[Vec<f32>]) {
        let _ = (layer, scores);
    }

    /// Returns the number of tokens that each key head of layer `layer` retains, `[key_heads]`; a number that is not below the number of
    /// cached tokens evicts none. `seen` is the number of tokens appended so far, evicted ones included; `scores` are those of the cached
    /// tokens, `[key_heads][cached tokens]`. Called at the end of the prompt and after every later step. Errors if the budget cannot be
    /// met; the cache passes the error on and evicts nothing, as it does for a result of another length.
    fn keep(&self, layer: usize, seen: usize, scores: &[Vec<f32>]) -> Result<Vec<usize>>;
}

/// A merge of the rows of evicted tokens into the row of one retained token: `row[into] = own * row[into] + Σ weight * row[from]`. It is
/// applied to the keys of one key head and to the values that belong to it.
#[derive(Clone, PartialEq, Debug)]
pub struct Merge {
    /// Index of the retained token into whose row the rows of evicted tokens are merged, among the tokens that were cached for the key head
    /// before the eviction, counted from 0. The eviction errors, and evicts nothing, if this token is not one that it retains.
    pub into: u32,
    /// The factor by which the retained token's own row (of its key, and of its values) is multiplied before the rows of evicted tokens are
    /// added to it. The eviction errors, and evicts nothing, if it is not finite.
    pub own: f32,
    /// The evicted tokens whose rows (of keys, and of values) are added to the row of one retained token. Each has its index among the
    /// tokens that were cached for the key head before the eviction, counted from 0, and the factor on its row. If an index is not that of
    /// an evicted token, or a factor is not finite, the eviction errors and evicts nothing.
    pub from: Vec<(u32, f32)>,
}

/// A rule that merges the keys and values of evicted tokens into those of retained tokens. It returns the [`Merge`]s; the cache applies
/// them, then removes the evicted tokens.
pub trait Recall: Send + Sync {
    /// Returns the merges of each key head, `[key_heads][merges]`; they are applied in order. `keys` has the store of each key head.
    /// `evicted` and `retained` have, for each key head, the ascending indices of these tokens among the cached ones, counted from 0.
    /// Called at evictions that remove at least one token, before anything changes. Errors if rows of a store cannot be fetched; the cache
    /// passes the error on and evicts nothing.
    fn merges(
        &mut self,
        keys: &[Box<dyn KvStore>],
        evicted: &[Vec<u32>],
        retained: &[Vec<u32>],
        exec: &Exec,
    ) -> Result<Vec<Vec<Merge>>>;
}

/// How a [`LayerCache`] evicts tokens, at the end of the prompt and after every later step: a [`TokenScorer`] ranks the cached tokens of
/// each key head, a [`Budget`] chooses how many of them remain, and an optional [`Recall`] merges evicted tokens into retained ones.
pub struct Eviction {
    pub(super) layer: usize,
    pub(super) scorer: Box<dyn TokenScorer>,
    pub(super) budget: Arc<dyn Budget>,
    recall: Option<Box<dyn Recall>>,
}

impl Eviction {
    /// Returns an eviction without merges for the cache of layer `layer`, counted from 0; the number is passed to the methods of `budget`,
    /// which layers may share.
    pub fn new(layer: usize, scorer: Box<dyn TokenScorer>, budget: Arc<dyn Budget>) -> Self {
        Self { layer, scorer, budget, recall: None }
    }

    /// Returns this eviction with `recall`, a rule that merges evicted tokens into retained ones; it replaces an earlier rule.
    pub fn with_recall(self, recall: Box<dyn Recall>) -> Self {
        Self { recall: Some(recall), ..self }
    }
}

impl LayerCache {
    /// Returns the scores of the cached tokens, `[key_heads][tokens]`; nothing without eviction. Errors if a score is NaN.
    pub(super) fn scores(&self, exec: &Exec) -> Result<Vec<Vec<f32>>> {
        let Some(e) = &self.eviction else { return Ok(Vec::new()) };
        let mut all = Vec::with_capacity(self.keys.len());
        for (h, store) in self.keys.iter().enumerate() {
            let mut out = vec![0f32; store.len()];
            e.scorer.score(h, self.positions.of(h), &**store, &mut out, exec)?;
            if out.iter().any(|v| v.is_nan()) {
                return Err(Error::Numerical(format!("a token of key head {h} has the score NaN")));
            }
            all.push(out);
        }
        Ok(all)
    }

    /// Evicts the tokens of the lowest scores until each head meets its budget. Of equal scores the later token is retained.
    pub(super) fn evict(&mut self, exec: &Exec) -> Result<()> {
        let scores = self.scores(exec)?;
        let Some(e) = &mut self.eviction else { return Ok(()) };
        let counts = e.budget.keep(e.layer, self.seen, &scores)?;
        if counts.len() != scores.len() {
            return Err(Error::shape("heads of a budget", scores.len(), counts.len()));
        }
        if counts.iter().zip(&scores).all(|(count, scores)| *count >= scores.len()) {
            return Ok(());
        }
        let (keep, gone): (Vec<_>, Vec<_>) = counts.iter().zip(&scores).map(|(n, s)| select(s, *n)).unzip();
        let merges = match &mut e.recall {
            Some(recall) => recall.merges(&self.keys, &gone, &keep, exec)?,
            None => Vec::new(),
        };
        if !merges.is_empty() && merges.len() != keep.len() {
            return Err(Error::shape("heads of a recall", keep.len(), merges.len()));
        }
        for ((merges, keep), gone) in merges.iter().zip(&keep).zip(&gone) {
            merges.iter().try_for_each(|m| check_merge(m, keep, gone))?;
        }
        let done = self.merge_and_retain(&keep, &merges, exec);
        self.damaged = done.is_err();
        done
    }

    /// Merges rows of each head, then removes all rows except the retained ones.
    fn merge_and_retain(&mut self, keep: &[Vec<u32>], merges: &[Vec<Merge>], exec: &Exec) -> Result<()> {
        let share = self.heads.value_heads() / self.heads.key_heads();
        self.evicted = true;
        for (h, keep) in keep.iter().enumerate() {
            let values = &mut self.values[h * share..(h + 1) * share];
            for store in std::iter::once(&mut self.keys[h]).chain(values) {
                for m in merges.get(h).into_iter().flatten() {
                    store.merge(m.into, m.own, &m.from, exec)?;
                }
                if keep.len() < store.len() {
                    store.retain(keep)?;
                }
            }
            if let Some(e) = &mut self.eviction {
                e.scorer.retain(h, keep);
            }
        }
        self.positions.retain(keep);
        Ok(())
    }
}

/// Returns the indices of the `count` highest scores, ascending, and the remaining indices, ascending.
fn select(scores: &[f32], count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(b.cmp(&a)));
    let mut gone = order.split_off(count.min(order.len()));
    order.sort_unstable();
    gone.sort_unstable();
    (order, gone)
}

/// Errors unless evicted tokens are merged into a retained one, by finite factors. `keep` and `gone` ascend.
fn check_merge(merge: &Merge, keep: &[u32], gone: &[u32]) -> Result<()> {
    if keep.binary_search(&merge.into).is_err() {
        return Err(Error::range("token that others are merged into", "the retained tokens", merge.into));
    }
    if let Some((row, _)) = merge.from.iter().find(|f| gone.binary_search(&f.0).is_err()) {
        return Err(Error::range("token that is merged into another", "the evicted tokens", *row));
    }
    let factors: Vec<f32> = merge.from.iter().map(|f| f.1).chain([merge.own]).collect();
    check_finite(&factors, factors.len(), 0)
}
