//! Eviction: which cached tokens are removed, and how removed tokens are merged into others.

use std::ops::Range;
use std::sync::Arc;

use super::{KvStore, LayerCache};
use crate::{Error, Exec, MatView, Result, TensorSink, TensorSource, check_finite};

/// The attention probabilities that a [`TokenScorer`] observes: none, sums over queries, those of the last queries of a step, or all. Only these are
/// stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Probs {
    /// No probabilities.
    #[default]
    None,
    /// The sums over the queries of a block and the query heads that share a key head: one value for each cached token.
    Sums,
    /// The probabilities of the last queries of each step, as many as the number given.
    Last(usize),
    /// The probabilities of every query.
    Rows,
}

/// Computes an importance score for each cached token of a layer, from the attention it received, the norm of its key, its position, or another
/// rule. Tokens with the lowest scores are evicted first.
pub trait TokenScorer: Send + Sync {
    /// Returns which attention probabilities [`observe`](Self::observe) receives.
    fn needs(&self) -> Probs;

    /// Records tokens that were appended to a key head: their keys `[tokens, key_dim]` in the form in which the store received them, and positions.
    fn appended(&mut self, head: usize, keys: MatView<'_, f32>, positions: &[u32]) {
        let _ = (head, keys, positions);
    }

    /// Records the attention probabilities of queries at `positions` over the cached tokens `keys` of a key head. With [`Probs::Sums`] `probs` is
    /// `[keys.len()]`; otherwise `[group, positions.len(), keys.len()]`, one matrix per query head of the group. A long cache comes in several calls.
    fn observe(&mut self, head: usize, positions: &[u32], keys: Range<usize>, probs: &[f32]) {
        let _ = (head, positions, keys, probs);
    }

    /// Writes a score for each token that is cached for a key head, given their positions and the store of their keys; tokens with higher scores are
    /// retained. A token that must be retained has the score `f32::INFINITY`. Errors if something that it needs is missing.
    fn score(&self, head: usize, positions: &[u32], keys: &dyn KvStore, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Records that all tokens of a key head were evicted except those of the ascending numbers `keep`.
    fn retain(&mut self, head: usize, keep: &[u32]) {
        let _ = (head, keep);
    }

    /// Records that the tokens of a key head from number `len` on were removed.
    fn truncate(&mut self, head: usize, len: usize) {
        let _ = (head, len);
    }

    /// Records that the cache was cleared.
    fn clear(&mut self) {}

    /// Writes what was observed under `prefix`. Errors if the sink does. A scorer that looks at the cached keys alone writes nothing, the default.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let _ = (prefix, sink);
        Ok(())
    }

    /// Reads what [`save`](Self::save) wrote under `prefix`, for `lengths[head]` cached tokens of each key head. Errors if it is missing or does not fit.
    fn restore(&mut self, prefix: &str, lengths: &[usize], source: &dyn TensorSource) -> Result<()> {
        let _ = (prefix, lengths, source);
        Ok(())
    }
}

/// Chooses how many tokens each key head retains. One budget may serve all layers; it receives the scores of each layer before the first eviction.
pub trait Budget: Send + Sync {
    /// Records the scores of a layer at the end of the prompt, `[key_heads][cached tokens]`.
    fn sealed(&self, layer: usize, scores: &[Vec<f32>]) {
        let _ = (layer, scores);
    }

    /// Returns the number of tokens that each key head of a layer retains, after `seen` tokens of text, by the scores of its cached tokens. Called at
    /// the end of the prompt and after every later step. Errors if the budget cannot be met.
    fn keep(&self, layer: usize, seen: usize, scores: &[Vec<f32>]) -> Result<Vec<usize>>;
}

/// A merge of evicted tokens into one that is retained: `row[into] = own * row[into] + Σ weight * row[from]`, of keys and of values.
#[derive(Clone, PartialEq, Debug)]
pub struct Merge {
    /// Number of the retained token of a merge among the cached tokens of its head, counted before the eviction.
    pub into: u32,
    /// The factor on the row of the token `into` in a merge.
    pub own: f32,
    /// The evicted tokens that are merged into the token `into`: the number of each among the cached tokens before the eviction, and the factor on
    /// its row.
    pub from: Vec<(u32, f32)>,
}

/// A rule that merges evicted tokens into retained ones.
pub trait Recall: Send + Sync {
    /// Returns the merges of each key head, `[key_heads][merges]`, given the stores of keys and, for each key head, the ascending numbers of the
    /// evicted and of the retained tokens among the cached ones. Errors if rows of a store cannot be fetched.
    fn merges(
        &mut self,
        keys: &[Box<dyn KvStore>],
        evicted: &[Vec<u32>],
        retained: &[Vec<u32>],
        exec: &Exec,
    ) -> Result<Vec<Vec<Merge>>>;
}

/// How a [`LayerCache`] evicts tokens: a scorer, a budget of tokens per head, and optionally a rule that merges evicted tokens into retained ones.
pub struct Eviction {
    pub(super) layer: usize,
    pub(super) scorer: Box<dyn TokenScorer>,
    pub(super) budget: Arc<dyn Budget>,
    recall: Option<Box<dyn Recall>>,
}

impl Eviction {
    /// Returns the eviction of layer `layer` of a network, counted from 0 and passed to the budget, without merges.
    pub fn new(layer: usize, scorer: Box<dyn TokenScorer>, budget: Arc<dyn Budget>) -> Self {
        Self { layer, scorer, budget, recall: None }
    }

    /// Returns the same with a rule that merges evicted tokens into retained ones.
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
        for (merges, store) in merges.iter().zip(&self.keys) {
            merges.iter().try_for_each(|m| check_merge(m, store.len()))?;
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

fn check_merge(merge: &Merge, len: usize) -> Result<()> {
    let mut rows = merge.from.iter().map(|f| f.0).chain([merge.into]);
    if let Some(row) = rows.find(|r| *r as usize >= len) {
        return Err(Error::range("token of a merge", 0..len, row));
    }
    let factors: Vec<f32> = merge.from.iter().map(|f| f.1).chain([merge.own]).collect();
    check_finite(&factors, factors.len(), 0)
}
