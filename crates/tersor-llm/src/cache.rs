//! The cache that keeps everything, in f32.

use std::sync::Arc;

use tersor_core::cache::Queries;
use tersor_core::{Error, Exec, KvBlock, KvCache, ProbSink, Result};
use tersor_kernels::dense::{How, Out, Write, product, product_plain};
use tersor_kernels::{Isa, par};

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

/// Multiply-adds of one head below which forking costs more than it gives.
pub(crate) const FORK: usize = 1 << 16;

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
    fn append(&mut self, block: KvBlock<'_>, _: &mut Exec) -> Result<()> {
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
                Rope::turn(&mut keys[end - dim..], &angles);
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
        let head = |h: usize, (): &mut ()| -> (Vec<f32>, Vec<f32>) {
            let mut q = Vec::with_capacity(tokens * dim);
            for (t, angles) in angles.iter().enumerate() {
                q.extend_from_slice(&queries.data[t * width + h * dim..][..dim]);
                Rope::turn(&mut q[t * dim..], angles);
            }
            q.iter_mut().for_each(|v| *v *= scale);
            let (keys, values) = (&self.keys[h / group], &self.values[h / group]);
            let mut scores = vec![0f32; tokens * len];
            let y = Out { data: &mut scores, stride: len };
            let how = How { isa: Isa::detect(), write: Write::Set, parallel: false };
            product(how, &q, [tokens, dim], keys, len, y);
            for (row, visible) in scores.chunks_exact_mut(len).zip(&visible) {
                softmax(row, visible.clone());
            }
            let mut mixed = vec![0f32; tokens * dim];
            product_plain(&scores, [tokens, len], values, dim, &mut mixed);
            (mixed, scores)
        };
        let fork = exec.parallel() && tokens * len * dim >= FORK;
        let results = par::map(self.heads, fork, || (), head);
        for (h, (mixed, scores)) in results.into_iter().enumerate() {
            for (t, row) in mixed.chunks_exact(dim).enumerate() {
                out[t * width + h * dim..][..dim].copy_from_slice(row);
            }
            if let Some(sink) = probs.as_deref_mut() {
                for (row, &p) in scores.chunks_exact(len).zip(queries.positions) {
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

/// Softmax over `visible`, zero elsewhere.
pub(crate) fn softmax(row: &mut [f32], visible: std::ops::Range<usize>) {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    let row = &mut row[visible];
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f32;
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    let norm = sum.recip();
    row.iter_mut().for_each(|v| *v *= norm);
}
