//! The cache that keeps everything, in f32.

use std::sync::Arc;

use tersor_core::cache::Queries;
use tersor_core::{Error, Exec, KvBlock, KvCache, ProbSink, Result};
use tersor_kernels::{attention, par, vector};

use crate::{DecoderConfig, Rope};

/// Keys (rotated) and values of one layer, `[kv_heads, tokens, head_dim]` each.
pub struct DenseCache {
    rope: Arc<Rope>,
    heads: usize,
    head_dim: usize,
    window: Option<usize>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    positions: Vec<u32>,
}

/// Multiply-adds below which forking costs more than it gives.
pub(crate) const FORK: usize = 1 << 19;

/// Tokens whose scores are made at once: few enough that those over a long text stay in the cache, and most keys that come after are left out.
const BLOCK: usize = 64;

impl DenseCache {
    /// Empty, for the heads of a configuration.
    pub fn new(config: &DecoderConfig, rope: Arc<Rope>) -> Self {
        Self {
            rope,
            heads: config.heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
            keys: vec![Vec::new(); config.kv_heads],
            values: vec![Vec::new(); config.kv_heads],
            positions: Vec::new(),
        }
    }

    /// The cached tokens that a query at `position` sees.
    fn visible(&self, position: u32) -> std::ops::Range<usize> {
        let end = self.positions.partition_point(|&p| p <= position);
        let start = match self.window {
            Some(w) => self.positions.partition_point(|&p| (p as usize) + w <= position as usize),
            None => 0,
        };
        start.min(end)..end
    }
}

impl KvCache for DenseCache {
    fn append(&mut self, block: KvBlock<'_>, exec: &mut Exec) -> Result<()> {
        let (tokens, dim) = (block.positions.len(), self.head_dim);
        let want = tokens * self.keys.len() * dim;
        if block.keys.len() != want || block.values.len() != want {
            return Err(Error::shape("keys and values", want, (block.keys.len(), block.values.len())));
        }
        let mut last = self.positions.last().copied();
        for &p in block.positions {
            if last.is_some_and(|l| p <= l) {
                return Err(Error::shape("positions of new tokens", "ascending", (last, p)));
            }
            last = Some(p);
        }
        let width = self.keys.len() * dim;
        for (t, &p) in block.positions.iter().enumerate() {
            let angles = self.rope.angles(p);
            for (h, (keys, values)) in self.keys.iter_mut().zip(&mut self.values).enumerate() {
                let span = t * width + h * dim..t * width + (h + 1) * dim;
                keys.extend_from_slice(&block.keys[span.clone()]);
                let end = keys.len();
                vector::turn(exec.isa(), &mut keys[end - dim..], &angles.cos, &angles.sin);
                values.extend_from_slice(&block.values[span]);
            }
        }
        self.positions.extend_from_slice(block.positions);
        Ok(())
    }

    fn attend(
        &mut self,
        queries: Queries<'_>,
        out: &mut [f32],
        mut probs: Option<&mut dyn ProbSink>,
        exec: &mut Exec,
    ) -> Result<()> {
        let (tokens, dim, len) = (queries.positions.len(), self.head_dim, self.positions.len());
        let width = self.heads * dim;
        if queries.data.len() != tokens * width || out.len() != tokens * width {
            return Err(Error::shape("queries and output", tokens * width, (queries.data.len(), out.len())));
        }
        let visible: Vec<_> = queries.positions.iter().map(|&p| self.visible(p)).collect();
        if let Some(i) = visible.iter().position(|v| v.is_empty()) {
            return Err(Error::shape("keys that a query sees", "at least one", queries.positions[i]));
        }
        let angles: Vec<_> = queries.positions.iter().map(|&p| self.rope.angles(p)).collect();
        let scale = (dim as f32).sqrt().recip();
        let group = self.heads / self.keys.len();
        let (isa, blocks) = (exec.isa(), tokens.div_ceil(BLOCK));
        let wanted = probs.is_some();
        // A block of tokens of a head.
        let unit = |i: usize, probs: &mut Vec<f32>| -> (Vec<f32>, Vec<f32>) {
            let (h, block) = (i / blocks, i % blocks * BLOCK..tokens.min((i % blocks + 1) * BLOCK));
            let mut q = Vec::with_capacity(block.len() * dim);
            for t in block.clone() {
                q.extend_from_slice(&queries.data[t * width + h * dim..][..dim]);
                let at = q.len() - dim;
                vector::turn(isa, &mut q[at..], &angles[t].cos, &angles[t].sin);
            }
            vector::scale(isa, scale, &mut q);
            let (keys, values) = (&self.keys[h / group], &self.values[h / group]);
            let mut mixed = vec![0f32; block.len() * dim];
            let seen = attention::attend(isa, [&q, keys, values], dim, &visible[block], probs, &mut mixed);
            let (seen, mut scores) = (seen.unwrap_or(0..0), Vec::new());
            if wanted {
                scores.resize(mixed.len() / dim * len, 0.0);
                let rows = scores.chunks_exact_mut(len).zip(probs.chunks_exact(seen.len().max(1)));
                rows.for_each(|(row, p)| row[seen.clone()].copy_from_slice(p));
            }
            (mixed, scores)
        };
        let fork = exec.parallel() && par::worth(self.heads * tokens * len * dim, FORK);
        let results = par::map(self.heads * blocks, fork, Vec::new, unit);
        for (i, (mixed, scores)) in results.into_iter().enumerate() {
            let (h, first) = (i / blocks, i % blocks * BLOCK);
            for (t, row) in mixed.chunks_exact(dim).enumerate() {
                out[(first + t) * width + h * dim..][..dim].copy_from_slice(row);
            }
            if let Some(sink) = probs.as_deref_mut() {
                for (row, &p) in scores.chunks_exact(len).zip(&queries.positions[first..]) {
                    sink.probs(h, p, row);
                }
            }
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.positions.truncate(len);
        let n = self.positions.len() * self.head_dim;
        self.keys.iter_mut().chain(&mut self.values).for_each(|v| v.truncate(n));
        Ok(())
    }

    fn clear(&mut self) {
        self.positions.clear();
        self.keys.iter_mut().chain(&mut self.values).for_each(Vec::clear);
    }

    fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(|v| v.len() * size_of::<f32>()).sum()
    }

    fn len(&self) -> usize {
        self.positions.len()
    }
}
