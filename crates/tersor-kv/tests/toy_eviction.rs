//! An eviction policy from outside, over integer caches: keys of large norm stay, and heads retain different numbers of tokens.

use std::sync::Arc;

use tersor_core::cache::{Budget, Eviction, Probs, TokenScorer};
use tersor_core::{Exec, Heads, KvCache, KvStep, KvStore, Result};
use tersor_kv::{Check, Integers};

/// Scores a token by the norm of its key; the latest stays.
struct KeyNorm;

impl TokenScorer for KeyNorm {
    fn needs(&self) -> Probs {
        Probs::None
    }
    fn score(&self, _: usize, _: &[u32], keys: &dyn KvStore, out: &mut [f32], exec: &Exec) -> Result<()> {
        let mut row = vec![0f32; keys.dim()];
        for (i, score) in out.iter_mut().enumerate() {
            keys.read(i..i + 1, &mut row, exec)?;
            *score = row.iter().map(|v| v * v).sum();
        }
        out.last_mut().into_iter().for_each(|s| *s = f32::INFINITY);
        Ok(())
    }
}

/// A quarter of the text for each head, and one token more for each head after the first.
struct Quarter;

impl Budget for Quarter {
    fn keep(&self, _: usize, seen: usize, scores: &[Vec<f32>]) -> Result<Vec<usize>> {
        Ok((0..scores.len()).map(|head| seen / 4 + head).collect())
    }
}

#[test]
fn large_keys_stay_and_heads_differ_in_length() -> Result<()> {
    let (heads, exec) = (Heads::new(4, 2, 8)?, Exec::new());
    let eviction = Eviction::new(0, Box::new(KeyNorm), Arc::new(Quarter));
    let mut cache = Integers::new(8).check()?.layer(&heads)?.with_eviction(eviction);
    // Keys of head 0 grow towards token 6, those of head 1 shrink.
    let size = |t: usize, head: usize| if head == 0 { 20.0 - (t as f32 - 6.0).abs() } else { 40.0 - t as f32 };
    let keys: Vec<f32> = (0..24 * 16).map(|i| size(i / 16, i / 8 % 2) * if i % 2 == 0 { 0.1 } else { -0.1 }).collect();
    let positions: Vec<u32> = (0..24).collect();
    let step = |at: std::ops::Range<usize>| KvStep {
        keys: &keys[at.start * 16..at.end * 16],
        values: &keys[at.start * 16..at.end * 16],
        queries: &[0.1; 24 * 32][at.start * 32..at.end * 32],
        positions: &positions[at],
    };
    cache.step(step(0..20), &mut [0.0; 20 * 32], &exec)?;
    cache.seal(&exec)?;
    assert_eq!(cache.positions(0), [5, 6, 7, 8, 19]);
    assert_eq!(cache.positions(1), [0, 1, 2, 3, 4, 19]);
    (20..24).try_for_each(|t| cache.step(step(t..t + 1), &mut [0.0; 32], &exec))?;
    assert_eq!((cache.positions(0).len(), cache.positions(1).len(), cache.len()), (6, 7, 24));
    assert_eq!(cache.bytes(), 2 * 13 * (8 + 4));
    Ok(())
}
