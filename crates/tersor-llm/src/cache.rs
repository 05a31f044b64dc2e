//! The cache that keeps everything, in f32.

use tersor_core::cache::Queries;
use tersor_core::{Exec, Heads, KvBlock, KvCache, ProbSink, Result};

/// Keys (turned) and values of one layer, `[kv_heads, tokens, head_dim]` each.
pub struct DenseCache {
    heads: Heads,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    positions: Vec<u32>,
}

impl DenseCache {
    /// Empty.
    pub fn new(heads: Heads) -> Self {
        let empty = vec![Vec::new(); heads.kv_heads];
        Self { heads, keys: empty.clone(), values: empty, positions: Vec::new() }
    }
}

impl KvCache for DenseCache {
    fn append(&mut self, block: KvBlock<'_>, exec: &Exec) -> Result<()> {
        self.heads.check(&self.positions, &block)?;
        let dim = self.heads.head_dim;
        let width = self.keys.len() * dim;
        for (t, &p) in block.positions.iter().enumerate() {
            let angles = self.heads.positions.angles(p);
            for (h, (keys, values)) in self.keys.iter_mut().zip(&mut self.values).enumerate() {
                let span = t * width + h * dim..t * width + (h + 1) * dim;
                keys.extend_from_slice(&block.keys[span.clone()]);
                let end = keys.len();
                angles.turn(exec.isa(), &mut keys[end - dim..]);
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
        probs: Option<&mut dyn ProbSink>,
        exec: &Exec,
    ) -> Result<()> {
        let kept = [&self.keys[..], &self.values[..]];
        self.heads.attend(&self.positions, kept, &|_| {}, queries, out, probs, exec)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.positions.truncate(len);
        let n = self.positions.len() * self.heads.head_dim;
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
