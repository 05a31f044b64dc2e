//! Caches of keys and values, which attend: one may keep its keys as codes and never unpack them.

use std::ops::Range;
use std::sync::Arc;

use tersor_kernels::{Isa, attention, par, vector};

use crate::{Error, Exec, Result};

/// Cosines and sines of the pairs of a head at a position: dimension `i` turns with `i + head_dim / 2`.
#[derive(Debug)]
pub struct Angles {
    /// Cosines, `[head_dim / 2]`.
    pub cos: Vec<f32>,
    /// Sines, likewise.
    pub sin: Vec<f32>,
}

impl Angles {
    /// Turns the vector of a head, `[head_dim]`, in place.
    pub fn turn(&self, isa: Isa, head: &mut [f32]) {
        vector::apply_rotary(isa, head, &self.cos, &self.sin);
    }
}

/// How vectors of heads turn with their position in the text: the rotary embedding.
pub trait Positions: Send + Sync {
    /// Of a position, for all heads.
    fn angles(&self, position: u32) -> Arc<Angles>;
}

/// The heads of a layer, as its cache knows them.
#[derive(Clone)]
pub struct Heads {
    /// Heads that ask.
    pub heads: usize,
    /// Heads that are kept; divides `heads`.
    pub kv_heads: usize,
    /// Width of each.
    pub head_dim: usize,
    /// How many tokens back a query sees; all where there is no limit.
    pub window: Option<usize>,
    /// How positions turn queries and keys.
    pub positions: Arc<dyn Positions>,
}

/// Makes the empty cache of a layer, by its number.
pub type MakeCache = dyn Fn(usize, &Heads) -> Result<Box<dyn KvCache>> + Send + Sync;

/// Multiply-adds of attention below which forking costs more than it gives.
pub const FORK: usize = 1 << 19;

/// Tokens whose scores are made at once: few enough that those over a long text stay in the cache, and most keys that come after are left out.
const BLOCK: usize = 64;

impl Heads {
    /// Error unless new tokens fit the heads and come after those that are kept.
    pub fn check(&self, kept: &[u32], block: &KvBlock<'_>) -> Result<()> {
        let want = block.positions.len() * self.kv_heads * self.head_dim;
        if block.keys.len() != want || block.values.len() != want {
            return Err(Error::shape("keys and values", want, (block.keys.len(), block.values.len())));
        }
        let mut last = kept.last().copied();
        for &p in block.positions {
            if last.is_some_and(|l| p <= l) {
                return Err(Error::order("positions of new tokens", "ascending", (last, p)));
            }
            last = Some(p);
        }
        Ok(())
    }

    /// The kept tokens that a query at `position` sees.
    fn visible(&self, kept: &[u32], position: u32) -> Range<usize> {
        let end = kept.partition_point(|&p| p <= position);
        let start = match self.window {
            Some(w) => kept.partition_point(|&p| (p as usize) + w <= position as usize),
            None => 0,
        };
        start.min(end)..end
    }

    /// Attention over keys (turned already) and values in f32, `[tokens, head_dim]` of each kept head. `also` changes queries after they were
    /// turned, as the keys were. Error when lengths do not fit, or a query sees nothing.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &self,
        kept: &[u32],
        [keys, values]: [&[Vec<f32>]; 2],
        also: &(dyn Fn(&mut [f32]) + Sync),
        queries: Queries<'_>,
        out: &mut [f32],
        probs: Option<&mut dyn ProbSink>,
        exec: &Exec,
    ) -> Result<()> {
        if [keys.len(), values.len()] != [self.kv_heads; 2] {
            return Err(Error::shape("heads of keys and values", self.kv_heads, (keys.len(), values.len())));
        }
        let asked = self.asked(kept, also, queries, out.len(), exec.isa())?;
        let (tokens, dim, len) = (queries.positions.len(), self.head_dim, kept.len());
        let (group, isa, blocks) = (self.heads / self.kv_heads, exec.isa(), tokens.div_ceil(BLOCK));
        let wanted = probs.is_some();
        // A block of tokens of a head.
        let unit = |i: usize, probs: &mut Vec<f32>| -> Result<Done> {
            let (head, block) = (i / blocks, i % blocks * BLOCK..tokens.min((i % blocks + 1) * BLOCK));
            let mut q = Vec::with_capacity(block.len() * dim);
            block.clone().for_each(|t| asked.query(t, head, &mut q));
            let (keys, values) = (&keys[head / group], &values[head / group]);
            let mut mixed = vec![0f32; block.len() * dim];
            let first = block.start;
            let seen = attention::attend(isa, [&q, keys, values], dim, &asked.visible[block], probs, &mut mixed);
            let seen = seen?;
            let scores = if wanted { spread(seen, probs, mixed.len() / dim, len) } else { Vec::new() };
            Ok(Done { head, first, mixed, scores })
        };
        let fork = exec.parallel() && par::worth(self.heads * tokens * len * dim, FORK);
        let done = par::map(self.heads * blocks, fork, Vec::new, unit);
        self.write(done.into_iter().collect::<Result<_>>()?, len, queries, out, probs);
        Ok(())
    }

    /// [`Heads::attend`] of a few tokens, where keys and values are kept in some other form: `read` writes rows of keys (turned already) or values of a
    /// kept head. They are read once for all heads that share them. As many results as there, the same to the bit for up to three tokens.
    #[allow(clippy::too_many_arguments)]
    pub fn attend_few(
        &self,
        kept: &[u32],
        read: &ReadKept<'_>,
        also: &(dyn Fn(&mut [f32]) + Sync),
        queries: Queries<'_>,
        out: &mut [f32],
        probs: Option<&mut dyn ProbSink>,
        exec: &Exec,
    ) -> Result<()> {
        let asked = self.asked(kept, also, queries, out.len(), exec.isa())?;
        let (tokens, dim, len) = (queries.positions.len(), self.head_dim, kept.len());
        let (group, isa, wanted) = (self.heads / self.kv_heads, exec.isa(), probs.is_some());
        let visible: Vec<_> = (0..group).flat_map(|_| asked.visible.iter().cloned()).collect();
        let unit = |i: usize, probs: &mut Vec<f32>| -> Result<Vec<Done>> {
            let mut q = Vec::with_capacity(group * tokens * dim);
            for head in i * group..(i + 1) * group {
                (0..tokens).for_each(|t| asked.query(t, head, &mut q));
            }
            let mut mixed = vec![0f32; q.len()];
            let keys = |rows: Range<usize>, out: &mut [f32]| read(Kept::Keys, i, rows, out);
            let values = |rows: Range<usize>, out: &mut [f32]| read(Kept::Values, i, rows, out);
            let seen = attention::attend_few(isa, &q, [&keys, &values], [len, dim], &visible, probs, &mut mixed);
            let seen = seen?;
            let part = |g: usize| {
                let probs = &probs[g * tokens * seen.len()..(g + 1) * tokens * seen.len()];
                let scores = if wanted { spread(seen.clone(), probs, tokens, len) } else { Vec::new() };
                let mixed = mixed[g * tokens * dim..(g + 1) * tokens * dim].to_vec();
                Done { head: i * group + g, first: 0, mixed, scores }
            };
            Ok((0..group).map(part).collect())
        };
        let fork = exec.parallel() && par::worth(self.heads * tokens * len * dim, FORK);
        let done = par::map(self.kv_heads, fork, Vec::new, unit);
        let done = done.into_iter().collect::<Result<Vec<_>>>()?;
        self.write(done.into_iter().flatten().collect(), len, queries, out, probs);
        Ok(())
    }

    /// Queries that were checked.
    fn asked<'q>(
        &'q self,
        kept: &[u32],
        also: &'q (dyn Fn(&mut [f32]) + Sync),
        queries: Queries<'q>,
        out: usize,
        isa: Isa,
    ) -> Result<Asked<'q>> {
        let want = queries.positions.len() * self.heads * self.head_dim;
        if [queries.data.len(), out] != [want; 2] || self.kv_heads == 0 || self.head_dim == 0 {
            return Err(Error::shape("queries and output", want, (queries.data.len(), out)));
        }
        let visible: Vec<_> = queries.positions.iter().map(|&p| self.visible(kept, p)).collect();
        if let Some(i) = visible.iter().position(|v| v.is_empty()) {
            return Err(Error::shape("keys that a query sees", "at least one", queries.positions[i]));
        }
        let angles = queries.positions.iter().map(|&p| self.positions.angles(p)).collect();
        Ok(Asked { heads: self, data: queries.data, visible, angles, also, isa })
    }

    /// Puts what each head made in its place, in order.
    fn write(
        &self,
        done: Vec<Done>,
        len: usize,
        queries: Queries<'_>,
        out: &mut [f32],
        mut probs: Option<&mut dyn ProbSink>,
    ) {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        for Done { head, first, mixed, scores } in done {
            for (t, row) in mixed.chunks_exact(dim).enumerate() {
                out[(first + t) * width + head * dim..][..dim].copy_from_slice(row);
            }
            if let Some(sink) = probs.as_deref_mut() {
                for (row, &p) in scores.chunks_exact(len).zip(&queries.positions[first..]) {
                    sink.probs(head, p, row);
                }
            }
        }
    }
}

/// Which of what is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Keys, turned already.
    Keys,
    /// Values.
    Values,
}

/// Writes rows of what is kept of a head, `[rows, head_dim]`.
pub type ReadKept<'a> = dyn Fn(Kept, usize, Range<usize>, &mut [f32]) + Sync + 'a;

/// What queries see, and how they turn.
struct Asked<'q> {
    heads: &'q Heads,
    data: &'q [f32],
    visible: Vec<Range<usize>>,
    angles: Vec<Arc<Angles>>,
    also: &'q (dyn Fn(&mut [f32]) + Sync),
    isa: Isa,
}

impl Asked<'_> {
    /// Appends the query of a token and a head, turned and scaled.
    fn query(&self, token: usize, head: usize, q: &mut Vec<f32>) {
        let (dim, at) = (self.heads.head_dim, q.len());
        q.extend_from_slice(&self.data[(token * self.heads.heads + head) * dim..][..dim]);
        self.angles[token].turn(self.isa, &mut q[at..]);
        (self.also)(&mut q[at..]);
        vector::scale(self.isa, (dim as f32).sqrt().recip(), &mut q[at..]);
    }
}

/// What a head made of tokens from `first` on: outputs, and probabilities over all that is kept, where they are wanted.
struct Done {
    head: usize,
    first: usize,
    mixed: Vec<f32>,
    scores: Vec<f32>,
}

/// Probabilities over a range, as rows over all of `len`.
fn spread(seen: Range<usize>, probs: &[f32], rows: usize, len: usize) -> Vec<f32> {
    let mut scores = vec![0f32; rows * len];
    let rows = scores.chunks_exact_mut(len.max(1)).zip(probs.chunks_exact(seen.len().max(1)));
    rows.for_each(|(row, p)| row[seen.clone()].copy_from_slice(p));
    scores
}

/// Keys and values of new tokens, as the projections gave them.
#[derive(Clone, Copy, Debug)]
pub struct KvBlock<'a> {
    /// `[tokens, kv_heads * head_dim]`, before the rotary embedding.
    pub keys: &'a [f32],
    /// `[tokens, kv_heads * head_dim]`.
    pub values: &'a [f32],
    /// Position of each token in the text.
    pub positions: &'a [u32],
}

/// Queries of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[tokens, heads * head_dim]`, before the rotary embedding.
    pub data: &'a [f32],
    /// Position of each token in the text; a token attends to keys at its own and earlier positions.
    pub positions: &'a [u32],
}

/// Hears the attention probabilities, for policies that score tokens by them.
pub trait ProbSink {
    /// The probabilities of one query of one head over the cached tokens, in their order.
    fn probs(&mut self, head: usize, position: u32, probs: &[f32]);
}

/// The cache of one layer, built with its rotary embedding.
pub trait KvCache: Send {
    /// Adds tokens. Error, with the cache unchanged, when lengths do not fit.
    fn append(&mut self, block: KvBlock<'_>, exec: &Exec) -> Result<()>;
    /// Writes the attention output `[tokens, heads * head_dim]`. Error when lengths do not fit, or a query has nothing to attend to.
    fn attend(
        &mut self,
        queries: Queries<'_>,
        out: &mut [f32],
        probs: Option<&mut dyn ProbSink>,
        exec: &Exec,
    ) -> Result<()>;
    /// The prompt has ended: policies that decide once do it here.
    fn seal(&mut self) -> Result<()> {
        Ok(())
    }
    /// Forgets all tokens from number `len` on. Refused by caches that have merged or evicted some of them.
    fn truncate(&mut self, len: usize) -> Result<()>;
    /// Forgets everything.
    fn clear(&mut self);
    /// Bytes of what is kept.
    fn bytes(&self) -> usize;
    /// Tokens seen.
    fn len(&self) -> usize;
    /// Whether none were.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
