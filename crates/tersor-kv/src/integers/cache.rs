//! The cache.

use std::ops::Range;

use tersor_core::cache::{Kept, Queries};
use tersor_core::{Exec, Heads, KvBlock, KvCache, ProbSink, Result};
use tersor_kernels::{attention, par};

use super::CheckedIntegers;
use super::packed::Rows;

/// Keys (turned, and rotated if asked) and values of one layer as integers.
pub struct IntCache {
    heads: Heads,
    how: CheckedIntegers,
    keys: Vec<Rows>,
    values: Vec<Rows>,
    positions: Vec<u32>,
}

impl IntCache {
    /// Empty. Error when more dimensions have 8 bits than a head has, or a rotation is of another width.
    pub fn new(heads: Heads, how: CheckedIntegers) -> Result<Self> {
        let [keys, values] = how.spans(heads.head_dim)?;
        if let Some(r) = &how.key_rotation
            && r.dim() != heads.head_dim
        {
            return Err(tersor_core::Error::shape("rotation of keys", heads.head_dim, r.dim()));
        }
        let rows = |parts: Vec<(usize, u32)>| (0..heads.kv_heads).map(|_| Rows::new(parts.clone())).collect();
        Ok(Self { keys: rows(keys), values: rows(values), heads, how, positions: Vec::new() })
    }

    fn cut(&mut self, tokens: usize) {
        self.positions.truncate(tokens);
        self.keys.iter_mut().chain(&mut self.values).for_each(|r| r.truncate(tokens));
    }
}

impl KvCache for IntCache {
    fn append(&mut self, block: KvBlock<'_>, exec: &Exec) -> Result<()> {
        self.heads.check(&self.positions, &block)?;
        let (dim, before) = (self.heads.head_dim, self.positions.len());
        let push = |cache: &mut Self| -> Result<()> {
            let mut key = vec![0f32; dim];
            for (t, &p) in block.positions.iter().enumerate() {
                let angles = cache.heads.positions.angles(p);
                for h in 0..cache.heads.kv_heads {
                    let at = (t * cache.heads.kv_heads + h) * dim;
                    key.copy_from_slice(&block.keys[at..at + dim]);
                    angles.turn(exec.isa(), &mut key);
                    if let Some(r) = &cache.how.key_rotation {
                        r.forward(exec.isa(), &mut key);
                    }
                    cache.keys[h].push(exec.isa(), &key)?;
                    cache.values[h].push(exec.isa(), &block.values[at..at + dim])?;
                }
            }
            Ok(())
        };
        let pushed = push(self);
        match pushed {
            Ok(()) => self.positions.extend_from_slice(block.positions),
            Err(_) => self.cut(before),
        }
        pushed
    }

    fn attend(
        &mut self,
        queries: Queries<'_>,
        out: &mut [f32],
        probs: Option<&mut dyn ProbSink>,
        exec: &Exec,
    ) -> Result<()> {
        let isa = exec.isa();
        let rotate = |q: &mut [f32]| {
            if let Some(r) = &self.how.key_rotation {
                r.forward(isa, q);
            }
        };
        let (n, kept) = (self.heads.kv_heads, self.positions.len());
        // For more, a product of matrices of the unpacked layer is worth its memory.
        if queries.positions.len() < attention::FEW {
            let read = |which: Kept, head: usize, rows: Range<usize>, out: &mut [f32]| match which {
                Kept::Keys => self.keys[head].read(isa, rows, out),
                Kept::Values => self.values[head].read(isa, rows, out),
            };
            return self.heads.attend_few(&self.positions, &read, &rotate, queries, out, probs, exec);
        }
        let unpacked = |i: usize, (): &mut ()| {
            let mut out = vec![0f32; kept * self.heads.head_dim];
            if i < n { &self.keys[i] } else { &self.values[i - n] }.read(isa, 0..kept, &mut out);
            out
        };
        let fork = exec.parallel() && par::worth(2 * n * kept * self.heads.head_dim, 1 << 16);
        let mut keys = par::map(2 * n, fork, || (), unpacked);
        let values = keys.split_off(n);
        self.heads.attend(&self.positions, [&keys, &values], &rotate, queries, out, probs, exec)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.cut(len);
        Ok(())
    }

    fn clear(&mut self) {
        self.cut(0);
    }

    fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(Rows::bytes).sum()
    }

    fn len(&self) -> usize {
        self.positions.len()
    }
}
