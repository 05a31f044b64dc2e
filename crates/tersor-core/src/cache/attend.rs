//! Attention of a block of queries over the stores of a layer.

use std::ops::Range;
use std::sync::Arc;

use tersor_kernels::{par, vector};

use super::positions::Positions;
use super::{Angles, Heads, KvStore, Prepared, Probs, Product, TokenScorer};
use crate::{Error, Exec, MatView, Result};

/// The amount of work from which the attention of one block of queries (at most 512 query tokens in a [`LayerCache`](super::LayerCache)) is
/// shared between threads. It is counted in multiply-adds of queries and keys, `query_heads * query tokens * cached tokens * key_dim`; a
/// block of less work runs on the calling thread. Inside of a region of `tersor_kernels::par`, whose threads are already awake, a sixteenth
/// suffices.
pub const FORK: usize = 1 << 19;

/// Query tokens of one unit of work: few enough that their scores stay in the processor's cache, and that most later keys are skipped.
const TOKENS: usize = 64;

/// Cached tokens of one unit of work.
const RUN: usize = 1024;

/// Query tokens whose units run concurrently; their partial outputs are in memory together.
const AT_ONCE: usize = 512;

/// A block of queries, and the stores and positions that they attend to.
pub(super) struct Attention<'c> {
    pub heads: &'c Heads,
    pub keys: &'c [Box<dyn KvStore>],
    pub values: &'c [Box<dyn KvStore>],
    pub positions: &'c Positions,
    /// Queries as their projection gives them, `[tokens, query_heads * key_dim]` row-major: before the rotary embedding, and not yet
    /// multiplied by [`Heads::scale`].
    pub queries: &'c [f32],
    /// The position in the text of each query token, `[tokens]`, in any order. A query at position `p` sees the cached tokens at positions
    /// up to `p`; if the layer has a sliding window of `w` positions, only those at positions `p - w + 1` to `p`.
    pub at: &'c [u32],
    /// Cosines and sines of the rotary embedding at the position of each query token, `[tokens]`; empty if the layer has no rotary
    /// embedding.
    pub angles: &'c [Arc<Angles>],
}

/// All queries of one block that share a key head.
struct Group {
    head: usize,
    /// Query tokens, at most [`TOKENS`].
    tokens: Range<usize>,
    /// Their units.
    units: Range<usize>,
}

/// A group of queries, and a range of the cached tokens.
struct Unit {
    group: usize,
    run: Range<usize>,
}

/// The attention of a unit over its own cached tokens alone; rows are `[group heads, tokens]`.
struct Part {
    /// `[rows, value_dim]`.
    out: Vec<f32>,
    /// Maximum of the scores, and sum of exponentials, of each row; empty if the group has one unit.
    norms: Vec<[f32; 2]>,
    /// The cached tokens of `probs`.
    keys: Range<usize>,
    /// Probabilities, reduced if the group has one unit; empty if there is no need for them.
    probs: Vec<f32>,
}

/// Buffers that a thread reuses for its units.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    prepared: Prepared,
    scores: Vec<f32>,
}

impl Attention<'_> {
    /// Writes the attention output of all queries into `out`, `[tokens, query_heads * value_dim]` row-major. Panics if `out` is shorter
    /// than this; if it is longer, its other values are unchanged. A scorer, if there is one, receives the attention probabilities that it
    /// requests through [`TokenScorer::observe`]. `observed` becomes true if a block of queries (up to 512 query tokens) was computed of
    /// which the scorer requests probabilities; otherwise it is unchanged.
    ///
    /// Errors, with `out` unchanged, if a query sees no cached token of some key head. Errors if rows of a store cannot be fetched; `out`
    /// may be partly written and the scorer may have observed some of the queries then.
    pub fn run(
        &self,
        out: &mut [f32],
        mut scorer: Option<&mut dyn TokenScorer>,
        observed: &mut bool,
        exec: &Exec,
    ) -> Result<()> {
        let scorer = &mut scorer;
        let visible: Vec<Vec<Range<usize>>> = self.positions.lists().iter().map(|l| self.visible(l)).collect();
        for list in &visible {
            if let Some(t) = list.iter().position(|v| v.is_empty()) {
                return Err(Error::range("position of a query", "those with a visible key", self.at[t]));
            }
        }
        let probs = scorer.as_ref().map_or(Probs::None, |s| s.needs());
        // Partial probabilities of a long cache wait until all of their parts are known.
        let waits = probs != Probs::None && self.positions.longest() > RUN;
        let step = if waits { TOKENS } else { AT_ONCE };
        for first in (0..self.at.len()).step_by(step) {
            let tokens = first..self.at.len().min(first + step);
            let seen = !self.observed(probs, &tokens).is_empty();
            self.some(tokens, &visible, probs, out, scorer, exec)?;
            *observed |= seen;
        }
        Ok(())
    }

    fn visible(&self, cached: &[u32]) -> Vec<Range<usize>> {
        self.at.iter().map(|&p| self.heads.visible(cached, p)).collect()
    }

    fn some(
        &self,
        tokens: Range<usize>,
        visible: &[Vec<Range<usize>>],
        probs: Probs,
        out: &mut [f32],
        scorer: &mut Option<&mut dyn TokenScorer>,
        exec: &Exec,
    ) -> Result<()> {
        let seen = |head: usize| if visible.len() == 1 { &visible[0] } else { &visible[head] };
        let (groups, units) = self.cut(tokens.clone(), &seen);
        let work = self.heads.query_heads() * tokens.len() * self.positions.longest() * self.heads.key_dim();
        let fork = exec.parallel() && par::worth(work, FORK);
        let split = units.len() > groups.len();
        // Queries of a group with several units are prepared once for all of them.
        let prepare = |i: usize, queries: &mut Vec<f32>| {
            let mut prepared = Prepared::default();
            self.prepare(&groups[i], queries, &mut prepared, exec).map(|()| prepared)
        };
        let ready = if split { par::map(groups.len(), fork, Vec::new, prepare) } else { Vec::new() };
        let ready = ready.into_iter().collect::<Result<Vec<_>>>()?;
        let unit = |i: usize, s: &mut Scratch| -> Result<Part> {
            let (unit, group) = (&units[i], &groups[units[i].group]);
            if !split {
                self.prepare(group, &mut s.queries, &mut s.prepared, exec)?;
            }
            let prepared = if split { &ready[unit.group] } else { &s.prepared };
            self.unit(group, unit, prepared, &seen(group.head)[group.tokens.clone()], probs, &mut s.scores, exec)
        };
        let parts = par::map(units.len(), fork, Scratch::default, unit);
        let mut parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
        for group in groups.iter().rev() {
            let parts = &mut parts[group.units.clone()];
            let joined;
            let rows = match &mut *parts {
                [one] => &one.out,
                several => {
                    joined = self.join(group, several, probs, exec);
                    &joined
                }
            };
            self.write(group, rows, out);
            if let Some(scorer) = scorer {
                let chosen = self.observed(probs, &group.tokens);
                for part in parts.iter().filter(|p| !p.probs.is_empty()) {
                    scorer.observe(group.head, &self.at[chosen.clone()], part.keys.clone(), &part.probs);
                }
            }
        }
        Ok(())
    }

    /// Cuts the work by blocks of query tokens, key heads, and ranges of cached tokens, by shape alone. The last group comes first: it sees
    /// the most tokens, and long units should start early.
    fn cut<'v>(
        &self,
        tokens: Range<usize>,
        visible: &impl Fn(usize) -> &'v Vec<Range<usize>>,
    ) -> (Vec<Group>, Vec<Unit>) {
        let (mut groups, mut units) = (Vec::new(), Vec::new());
        for first in tokens.clone().step_by(TOKENS).rev() {
            let block = first..tokens.end.min(first + TOKENS);
            for head in (0..self.keys.len()).rev() {
                let before = units.len();
                let span = union(visible(head)[block.clone()].iter().cloned());
                for run in span.start / RUN..span.end.div_ceil(RUN) {
                    units.push(Unit { group: groups.len(), run: run * RUN..(run + 1) * RUN });
                }
                groups.push(Group { head, tokens: block.clone(), units: before..units.len() });
            }
        }
        (groups, units)
    }

    /// Prepares the queries of a group: gathers them, applies the rotary embedding of their positions, and lets the store of keys transform them.
    fn prepare(&self, group: &Group, queries: &mut Vec<f32>, out: &mut Prepared, exec: &Exec) -> Result<()> {
        let (dim, heads) = (self.heads.key_dim(), self.heads.group());
        let count = heads * group.tokens.len();
        queries.clear();
        for head in group.head * heads..(group.head + 1) * heads {
            for t in group.tokens.clone() {
                let at = queries.len();
                queries.extend_from_slice(&self.queries[(t * self.heads.query_heads() + head) * dim..][..dim]);
                if let Some(angles) = self.angles.get(t) {
                    angles.apply(exec.isa(), &mut queries[at..], dim);
                }
            }
        }
        out.queries = count;
        out.product = Product::of(group.tokens.len());
        self.keys[group.head].prepare(MatView::new(queries, [count, dim])?, self.heads.scale(), out, exec)
    }

    #[allow(clippy::too_many_arguments)]
    fn unit(
        &self,
        group: &Group,
        unit: &Unit,
        queries: &Prepared,
        visible: &[Range<usize>],
        probs: Probs,
        scores: &mut Vec<f32>,
        exec: &Exec,
    ) -> Result<Part> {
        let alone = group.units.len() == 1;
        let (tokens, dim) = (group.tokens.len(), self.heads.value_dim());
        let rows = self.heads.group() * tokens;
        let seen = |v: &Range<usize>| {
            let start = v.start.clamp(unit.run.start, unit.run.end);
            start..v.end.clamp(start, unit.run.end)
        };
        let span = union(visible.iter().map(seen));
        if span.is_empty() {
            let norms = vec![[f32::NEG_INFINITY, 0.0]; rows];
            return Ok(Part { out: vec![0f32; rows * dim], norms, keys: span, probs: Vec::new() });
        }
        // Every score is written below.
        scores.resize(rows * span.len(), 0.0);
        self.keys[group.head].dot(queries, span.clone(), scores, exec)?;
        let mut norms = Vec::new();
        for (row, p) in scores.chunks_exact_mut(span.len()).enumerate() {
            let v = seen(&visible[row % tokens]);
            let v = if v.is_empty() { 0..0 } else { v.start - span.start..v.end - span.start };
            p[..v.start].fill(0.0);
            p[v.end..].fill(0.0);
            let norm = vector::softmax(exec.isa(), &mut p[v]);
            if !alone {
                norms.push(norm);
            }
        }
        let mut out = vec![0f32; rows * dim];
        let share = self.heads.value_heads() / self.heads.key_heads();
        let stores = &self.values[group.head * share..(group.head + 1) * share];
        let (n, width) = (rows / share, rows / share * span.len());
        for (i, (store, out)) in stores.iter().zip(out.chunks_exact_mut(n * dim)).enumerate() {
            store.add_weighted(&scores[i * width..(i + 1) * width], queries.product, span.clone(), out, exec)?;
            if alone {
                store.finish(out, exec);
            }
        }
        let probs = match probs {
            Probs::None => Vec::new(),
            _ if self.observed(probs, &group.tokens).is_empty() => Vec::new(),
            _ if alone => self.reduce(probs, &group.tokens, scores, span.len(), exec),
            _ => scores.clone(),
        };
        Ok(Part { out, norms, keys: span, probs })
    }

    /// Returns the query tokens of a block whose probabilities the scorer observes.
    fn observed(&self, probs: Probs, tokens: &Range<usize>) -> Range<usize> {
        match probs {
            Probs::None => tokens.end..tokens.end,
            Probs::Last(n) => self.at.len().saturating_sub(n).clamp(tokens.start, tokens.end)..tokens.end,
            Probs::Sums | Probs::Rows => tokens.clone(),
        }
    }

    /// Returns the probabilities that the scorer needs, reduced from all of a unit, `[rows, width]`.
    fn reduce(&self, probs: Probs, tokens: &Range<usize>, p: &[f32], width: usize, exec: &Exec) -> Vec<f32> {
        let mut out = Vec::new();
        let chosen = self.observed(probs, tokens);
        for (row, p) in p.chunks_exact(width.max(1)).enumerate() {
            match probs {
                Probs::None => {}
                Probs::Sums => {
                    out.resize(width, 0.0);
                    vector::axpy(exec.isa(), 1.0, p, &mut out);
                }
                Probs::Last(_) | Probs::Rows => {
                    if chosen.contains(&(tokens.start + row % tokens.len())) {
                        out.extend_from_slice(p);
                    }
                }
            }
        }
        out
    }

    /// Returns the attention output of a group from its parts, in order: each is weighted by its share of the exponentials of the whole softmax.
    fn join(&self, group: &Group, parts: &mut [Part], probs: Probs, exec: &Exec) -> Vec<f32> {
        let (isa, dim) = (exec.isa(), self.heads.value_dim());
        let rows = self.heads.group() * group.tokens.len();
        let mut out = vec![0f32; rows * dim];
        let mut weights = vec![0f32; parts.len()];
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let max = parts.iter().fold(f32::NEG_INFINITY, |m, p| m.max(p.norms[row][0]));
            for (weight, part) in weights.iter_mut().zip(parts.iter()) {
                let [own, sum] = part.norms[row];
                *weight = if sum > 0.0 { sum * vector::exp(own - max) } else { 0.0 };
            }
            let total: f32 = weights.iter().sum();
            for (weight, part) in weights.iter().zip(parts.iter_mut()) {
                let weight = weight / total;
                vector::axpy(isa, weight, &part.out[row * dim..][..dim], out);
                let width = part.keys.len();
                if !part.probs.is_empty() {
                    vector::scale(isa, weight, &mut part.probs[row * width..][..width]);
                }
            }
        }
        for part in parts.iter_mut().filter(|p| !p.probs.is_empty()) {
            part.probs = self.reduce(probs, &group.tokens, &part.probs, part.keys.len(), exec);
        }
        let share = self.heads.value_heads() / self.heads.key_heads();
        let stores = &self.values[group.head * share..(group.head + 1) * share];
        for (store, out) in stores.iter().zip(out.chunks_exact_mut(rows / share * dim)) {
            store.finish(out, exec);
        }
        out
    }

    /// Copies rows `[group heads, tokens, value_dim]` to their places in the output.
    fn write(&self, group: &Group, rows: &[f32], out: &mut [f32]) {
        let (dim, heads, tokens) = (self.heads.value_dim(), self.heads.group(), group.tokens.len());
        for (row, values) in rows.chunks_exact(dim).enumerate() {
            let (head, t) = (group.head * heads + row / tokens, group.tokens.start + row % tokens);
            out[(t * self.heads.query_heads() + head) * dim..][..dim].copy_from_slice(values);
        }
    }
}

/// Returns the smallest range that contains all ranges that are not empty.
fn union(ranges: impl Iterator<Item = Range<usize>> + Clone) -> Range<usize> {
    let full = ranges.filter(|r| !r.is_empty());
    let start = full.clone().map(|r| r.start).min().unwrap_or(0);
    start..full.map(|r| r.end).max().unwrap_or(start)
}
