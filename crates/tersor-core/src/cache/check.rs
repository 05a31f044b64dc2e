//! Tests of [`KvStore`] implementations.

use std::ops::Range;
use std::sync::Arc;

use super::{Heads, KvCache, KvStep, KvStore, LayerCache, Rotary};
use crate::{Error, Exec, Result};

/// Width of each key and value head in the cases of [`store_equals_its_rows`], in values. The test passes it as `dim` to the
/// caller's function `make(dim)`, which returns an empty store of rows of `dim` values.
pub const DIM: usize = 32;

/// The largest absolute deviation of an attention output from attention computed in f64 over the same cached rows that
/// [`store_equals_its_rows`] allows, as a fraction of the largest magnitude of the f64 outputs, or of 1e-3 if all are smaller.
pub const TOLERANCE: f64 = 1e-4;

/// Tests an implementation of [`KvStore`]. The attention output of a [`LayerCache`], whose keys and values are in such stores, must equal
/// attention computed in f64 over the rows that the stores read back. `make(dim)` returns an empty store of rows of `dim` values, where
/// `dim` is always [`DIM`]. Each case calls `make` for two key heads and two value heads.
///
/// The cases append 1 to 40 tokens to a cache, divided into blocks: all tokens at once, one by one, and divided in other ways. For up to
/// five tokens every division is tested. There are 1, 3 or 4 query heads per key head. Some cases have a sliding window; the rotary
/// embedding covers all values of a head, a quarter of them, or none.
///
/// Errors, naming the case, if a store errors, is not empty at first, or has rows of another width than [`DIM`]. Errors if an output
/// deviates by more than [`TOLERANCE`] times the largest magnitude of the outputs (or times 1e-3 if that is larger). Errors if two
/// divisions of the same tokens lead to different rows that are read back, or to different sizes in bytes.
///
/// ```ignore
/// #[test]
/// fn attention_over_my_store_is_attention_over_its_rows() {
///     store_equals_its_rows(|dim| Box::new(MyStore::new(dim))).unwrap();
/// }
/// ```
pub fn store_equals_its_rows(make: impl Fn(usize) -> Box<dyn KvStore>) -> Result<()> {
    let exec = &Exec::new();
    let rotary = [Some(DIM), Some(DIM / 4), None];
    for tokens in 1..=40usize {
        for (g, group) in [1usize, 3, 4].into_iter().enumerate() {
            let mut heads = Heads::new(2 * group, 2, DIM)?;
            if let Some(dims) = rotary[(tokens + g) % 3] {
                heads = heads.with_rotary(Arc::new(Rotary::new(dims, 10_000.0)?))?;
            }
            if (tokens / 3 + g).is_multiple_of(2) {
                heads = heads.with_window(1 + (tokens * 7 + g) % 13)?;
            }
            let case = Case::new(heads, tokens, (tokens * 3 + g) as u64);
            let (mut first, mut bytes) = (None, None);
            for split in splits(tokens) {
                let name = || format!("{tokens} tokens in {split:?}, {group} query heads per key head");
                let (rows, size) = case.run(&make, &split, exec).map_err(|e| failed(name(), &e.to_string()))?;
                if *first.get_or_insert_with(|| rows.clone()) != rows {
                    return Err(failed(name(), "rows depend on the split"));
                }
                if bytes.is_some_and(|bytes| bytes != size) {
                    return Err(failed(name(), "sizes depend on the split"));
                }
                bytes = Some(size);
            }
        }
    }
    Ok(())
}

fn failed(case: String, what: &str) -> Error {
    Error::Numerical(format!("{case}: {what}"))
}

/// Ways to append `tokens` tokens: all if they are few, else some.
fn splits(tokens: usize) -> Vec<Vec<usize>> {
    if tokens <= 5 {
        let split = |cuts: usize| {
            let mut parts = vec![1];
            for i in 0..tokens - 1 {
                match parts.last_mut() {
                    Some(last) if cuts >> i & 1 == 0 => *last += 1,
                    _ => parts.push(1),
                }
            }
            parts
        };
        return (0..1 << (tokens - 1)).map(split).collect();
    }
    let mut state = tokens as u64;
    let mut all = vec![vec![tokens], vec![1; tokens], vec![tokens - 1, 1], vec![1, tokens - 1]];
    for _ in 0..2 {
        let (mut rest, mut parts) = (tokens, Vec::new());
        while rest > 0 {
            let part = (1 + noise(&mut state).to_bits() as usize % 9).min(rest);
            parts.push(part);
            rest -= part;
        }
        all.push(parts);
    }
    all
}

/// A value between -3 and 3, more often near 0.
fn noise(state: &mut u64) -> f32 {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    next() + next() + next()
}

struct Case {
    heads: Heads,
    positions: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Case {
    fn new(heads: Heads, tokens: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut of = |heads: usize| (0..tokens * heads * DIM).map(|_| noise(&mut state)).collect();
        let (keys, values, queries) = (of(heads.key_heads()), of(heads.value_heads()), of(heads.query_heads()));
        // Some positions are left out.
        let positions = (0..tokens as u32).map(|t| t + t / 5).collect();
        Self { heads, positions, keys, values, queries }
    }

    /// Runs the tokens in parts. Returns the cached rows of all heads, keys first, and the size.
    fn run(
        &self,
        make: &impl Fn(usize) -> Box<dyn KvStore>,
        split: &[usize],
        exec: &Exec,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        let h = &self.heads;
        let stores = |n: usize| (0..n).map(|_| make(DIM)).collect::<Vec<_>>();
        let mut cache = LayerCache::new(h.clone(), stores(h.key_heads()), stores(h.value_heads()))?;
        let mut out = Vec::new();
        let mut first = 0;
        for part in split {
            let at = first..first + part;
            let of = |heads: usize| at.start * heads * DIM..at.end * heads * DIM;
            let mut block = vec![f32::NAN; part * h.query_heads() * DIM];
            let step = KvStep {
                keys: &self.keys[of(h.key_heads())],
                values: &self.values[of(h.value_heads())],
                queries: &self.queries[of(h.query_heads())],
                positions: &self.positions[at.clone()],
            };
            cache.step(step, &mut block, exec)?;
            out.extend(block);
            first += part;
        }
        let tokens = self.positions.len();
        let mut rows = Vec::new();
        for head in 0..h.key_heads() + h.value_heads() {
            let mut all = vec![0f32; tokens * DIM];
            match head.checked_sub(h.key_heads()) {
                None => cache.read_keys(head, 0..tokens, &mut all, exec)?,
                Some(head) => cache.read_values(head, 0..tokens, &mut all, exec)?,
            }
            rows.push(all);
        }
        let want = self.attention(&rows, exec);
        let max = want.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
        let worst = want.iter().zip(&out).map(|(a, b)| (a - f64::from(*b)).abs());
        // NaN stays.
        let worst = worst.fold(0.0, |m: f64, v| if v <= m || m.is_nan() { m } else { v });
        if worst.is_nan() || worst > TOLERANCE * max {
            return Err(Error::Numerical(format!("outputs deviate by {worst:e}, the largest is {max:e}")));
        }
        Ok((rows, cache.bytes()))
    }

    /// Attention over rows, by its definition, in f64.
    fn attention(&self, rows: &[Vec<f32>], exec: &Exec) -> Vec<f64> {
        let h = &self.heads;
        let visible = |t: usize| -> Range<usize> {
            let start = h.window().map_or(0, |w| {
                let far = |p: &u32| (*p as usize) + w <= self.positions[t] as usize;
                self.positions.iter().position(|p| !far(p)).unwrap_or(0)
            });
            start..t + 1
        };
        let mut out = Vec::new();
        for (t, &p) in self.positions.iter().enumerate() {
            for head in 0..h.query_heads() {
                let mut q = self.queries[(t * h.query_heads() + head) * DIM..][..DIM].to_vec();
                if let Some(rotary) = h.rotary() {
                    rotary.angles(p).apply(exec.isa(), &mut q, DIM);
                }
                let of = |rows: &'_ [f32], i: usize| -> Vec<f64> {
                    rows[i * DIM..(i + 1) * DIM].iter().map(|v| f64::from(*v)).collect()
                };
                let (keys, values) = (&rows[head / h.group()], &rows[h.key_heads() + head / h.group()]);
                let scores: Vec<f64> = visible(t)
                    .map(|i| of(keys, i).iter().zip(&q).map(|(k, q)| k * f64::from(*q)).sum::<f64>())
                    .map(|s| s / (DIM as f64).sqrt())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0f64; DIM];
                for (i, w) in visible(t).zip(&weights) {
                    sums.iter_mut().zip(of(values, i)).for_each(|(s, v)| *s += w / total * v);
                }
                out.extend(sums);
            }
        }
        out
    }
}
