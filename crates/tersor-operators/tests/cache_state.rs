//! What a cache remembers when it is saved, and what it does after a store refused.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tersor_core::cache::{Budget, CacheLoading, Eviction, Probs, TokenScorer};
use tersor_core::tensors::{join, read_floats, write_floats};
use tersor_core::{
    DType, Error, Exec, Heads, KvCache, KvStep, KvStore, LayerCache, MatView, MemTensors, OpSpec, Result, TensorSink,
    TensorSource,
};
use tersor_operators::{DenseRows, cache_registry};

const DIM: usize = 8;

/// Scores by the attention that a token has received.
#[derive(Default)]
struct Received(Vec<Vec<f32>>);

impl TokenScorer for Received {
    fn needs(&self) -> Probs {
        Probs::Sums
    }
    fn appended(&mut self, head: usize, _: MatView<'_, f32>, positions: &[u32]) {
        self.0.resize(self.0.len().max(head + 1), Vec::new());
        let len = self.0[head].len() + positions.len();
        self.0[head].resize(len, 0.0);
    }
    fn observe(&mut self, head: usize, _: &[u32], keys: Range<usize>, probs: &[f32]) {
        self.0[head][keys].iter_mut().zip(probs).for_each(|(s, p)| *s += p);
    }
    fn score(&self, head: usize, _: &[u32], _: &dyn KvStore, out: &mut [f32], _: &Exec) -> Result<()> {
        out.copy_from_slice(&self.0[head]);
        Ok(())
    }
    fn retain(&mut self, head: usize, keep: &[u32]) {
        self.0[head] = keep.iter().map(|i| self.0[head][*i as usize]).collect();
    }
    fn truncate(&mut self, head: usize, len: usize) {
        self.0[head].truncate(len);
    }
    fn clear(&mut self) {
        self.0.clear();
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let heads = self.0.iter().enumerate();
        heads
            .into_iter()
            .try_for_each(|(h, sums)| write_floats(sink, &join(prefix, &h.to_string()), &[sums.len()], sums))
    }
    fn restore(&mut self, prefix: &str, lengths: &[usize], source: &dyn TensorSource) -> Result<()> {
        let read = |(h, n): (usize, &usize)| read_floats(source, &join(prefix, &h.to_string()), &[*n]);
        self.0 = lengths.iter().enumerate().map(read).collect::<Result<_>>()?;
        Ok(())
    }
}

/// So many tokens for each head.
struct Fixed(usize);

impl Budget for Fixed {
    fn keep(&self, _: usize, _: usize, scores: &[Vec<f32>]) -> Result<Vec<usize>> {
        Ok(vec![self.0; scores.len()])
    }
}

fn eviction() -> Eviction {
    Eviction::new(0, Box::new(Received::default()), Arc::new(Fixed(6)))
}

fn values(tokens: usize, width: usize, salt: usize) -> Vec<f32> {
    (0..tokens * width).map(|i| (((i + 31 * salt) * 7919) % 2001) as f32 / 500.0 - 2.0).collect()
}

/// The step of tokens at `at` of a text, for two query heads per key head.
fn step(cache: &mut LayerCache, at: Range<usize>) -> Result<Vec<f32>> {
    let (tokens, heads) = (at.len(), cache.heads().key_heads());
    let positions: Vec<u32> = at.clone().map(|p| p as u32).collect();
    let mut out = vec![0f32; tokens * 2 * heads * DIM];
    let step = KvStep {
        keys: &values(tokens, heads * DIM, at.start),
        values: &values(tokens, heads * DIM, at.start + 1),
        queries: &values(tokens, 2 * heads * DIM, at.start + 2),
        positions: &positions,
    };
    cache.step(step, &mut out, &Exec::serial()).map(|()| out)
}

fn dense(n: usize) -> Vec<Box<dyn KvStore>> {
    (0..n).map(|_| Box::new(DenseRows::new(DIM, DType::F32).unwrap()) as Box<dyn KvStore>).collect()
}

#[test]
fn a_loaded_cache_evicts_as_the_saved_one_would() -> Result<()> {
    let heads = Heads::new(4, 2, DIM)?;
    let mut cache = LayerCache::new(heads.clone(), dense(2), dense(2))?.with_eviction(eviction());
    step(&mut cache, 0..12)?;
    cache.seal(&Exec::serial())?;
    step(&mut cache, 12..13)?;
    let mut file = MemTensors::new();
    cache.save("layer", &mut file)?;
    let registry = cache_registry();
    let loading = CacheLoading::new(&registry, &file);
    let mut again = LayerCache::load(heads.clone(), Some(eviction()), &cache.spec(), "layer", &loading)?;
    for t in 13..20 {
        assert_eq!(step(&mut again, t..t + 1)?, step(&mut cache, t..t + 1)?, "token {t}");
        assert!((0..2).all(|h| again.positions(h) == cache.positions(h)), "token {t}");
    }
    // Without what the scorer had observed nothing is loaded.
    let mut bare = MemTensors::new();
    let mut plain = LayerCache::new(heads.clone(), dense(2), dense(2))?;
    step(&mut plain, 0..5)?;
    plain.save("layer", &mut bare)?;
    let loading = CacheLoading::new(&registry, &bare);
    assert!(LayerCache::load(heads.clone(), Some(eviction()), &plain.spec(), "layer", &loading).is_err());
    assert!(LayerCache::load(heads, None, &plain.spec(), "layer", &loading).is_ok());
    Ok(())
}

/// Dense rows that refuse what a switch says.
struct Refusing {
    rows: DenseRows,
    refuses: Arc<[AtomicBool; 3]>,
    decoded: AtomicUsize,
}

const REMOVE: usize = 0;
const DECODE: usize = 1;
/// Decoding is refused from the fourth block of rows on.
const LATER: usize = 2;

impl Refusing {
    fn check(&self, what: usize) -> Result<()> {
        if self.refuses[what].load(Ordering::Relaxed) {
            return Err(Error::Unsupported { what: "a row", value: "switched off".into() });
        }
        Ok(())
    }
}

impl KvStore for Refusing {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn dim(&self) -> usize {
        DIM
    }
    fn admit(&self, block: MatView<'_, f32>) -> Result<()> {
        self.rows.admit(block)
    }
    fn append(&mut self, block: MatView<'_, f32>, positions: &[u32], exec: &Exec) {
        self.rows.append(block, positions, exec);
    }
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.check(DECODE)?;
        if self.refuses[LATER].load(Ordering::Relaxed) && self.decoded.fetch_add(1, Ordering::Relaxed) >= 3 {
            return self.check(LATER);
        }
        self.rows.decode(rows, out, exec)
    }
    fn retain(&mut self, keep: &[u32]) -> Result<()> {
        self.check(REMOVE)?;
        self.rows.retain(keep)
    }
    fn truncate(&mut self, rows: usize) -> Result<()> {
        self.check(REMOVE)?;
        self.rows.truncate(rows)
    }
    fn clear(&mut self) {
        self.rows.clear();
    }
    fn bytes(&self) -> usize {
        self.rows.bytes()
    }
    fn spec(&self) -> OpSpec {
        self.rows.spec()
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        self.rows.save(prefix, sink)
    }
}

fn refusing() -> (LayerCache, Arc<[AtomicBool; 3]>) {
    let refuses: Arc<[AtomicBool; 3]> = Arc::default();
    let rows = DenseRows::new(DIM, DType::F32).unwrap();
    let values: Vec<Box<dyn KvStore>> =
        vec![Box::new(Refusing { rows, refuses: Arc::clone(&refuses), decoded: AtomicUsize::new(0) })];
    let cache = LayerCache::new(Heads::new(2, 1, DIM).unwrap(), dense(1), values).unwrap();
    (cache, refuses)
}

#[test]
fn a_cache_that_failed_half_way_refuses_until_it_is_cleared() {
    type Fails = fn(&mut LayerCache) -> Result<()>;
    let fails: [Fails; 2] = [|c| c.truncate(3), |c| c.seal(&Exec::serial())];
    for fail in fails {
        let (cache, refuses) = refusing();
        let mut cache = cache.with_eviction(eviction());
        step(&mut cache, 0..12).unwrap();
        refuses[REMOVE].store(true, Ordering::Relaxed);
        fail(&mut cache).unwrap_err();
        refuses[REMOVE].store(false, Ordering::Relaxed);
        for error in [
            step(&mut cache, 12..13).map(|_| ()),
            cache.append(&[0.0; DIM], &[0.0; DIM], &[12], &Exec::serial()),
            cache.seal(&Exec::serial()),
            cache.truncate(1),
            cache.save("layer", &mut MemTensors::new()),
        ] {
            assert!(error.unwrap_err().to_string().contains("clear the cache"));
        }
        cache.clear();
        assert_eq!(step(&mut cache, 0..2).unwrap().len(), 2 * 2 * DIM);
    }
}

#[test]
fn a_step_whose_attention_fails_leaves_the_tokens_before_it() {
    for evict in [false, true] {
        let (mut cache, refuses) = refusing();
        if evict {
            cache = cache.with_eviction(eviction());
        }
        step(&mut cache, 0..12).unwrap();
        cache.seal(&Exec::serial()).unwrap();
        let before = (cache.positions(0).to_vec(), cache.bytes(), cache.len());
        refuses[DECODE].store(true, Ordering::Relaxed);
        step(&mut cache, 12..14).unwrap_err();
        assert_eq!((cache.positions(0).to_vec(), cache.bytes(), cache.len()), before);
        refuses[DECODE].store(false, Ordering::Relaxed);
        step(&mut cache, 12..14).unwrap();
    }
    // If the tokens cannot be removed again, the cache refuses later calls.
    let (mut cache, refuses) = refusing();
    step(&mut cache, 0..12).unwrap();
    refuses.iter().for_each(|r| r.store(true, Ordering::Relaxed));
    step(&mut cache, 12..14).unwrap_err();
    refuses.iter().for_each(|r| r.store(false, Ordering::Relaxed));
    assert!(step(&mut cache, 12..14).unwrap_err().to_string().contains("clear the cache"));
}

#[test]
fn a_cache_is_loaded_for_its_own_heads_alone() -> Result<()> {
    let mut cache = LayerCache::new(Heads::new(4, 2, DIM)?, dense(2), dense(2))?;
    step(&mut cache, 0..5)?;
    let mut file = MemTensors::new();
    cache.save("layer", &mut file)?;
    let registry = cache_registry();
    let loading = CacheLoading::new(&registry, &file);
    let load = |heads: Heads, spec: &OpSpec| LayerCache::load(heads, None, spec, "layer", &loading);
    assert!(load(Heads::new(4, 2, DIM)?, &cache.spec()).is_ok());
    for key_heads in [1, 4] {
        assert!(matches!(load(Heads::new(4, key_heads, DIM)?, &cache.spec()).err(), Some(Error::Shape { .. })));
    }
    assert!(load(Heads::new(4, 2, DIM)?, &OpSpec { kind: "dense".into(), ..cache.spec() }).is_err());
    Ok(())
}

/// After a failure the scorer may have observed some queries of the step, which it cannot forget.
#[test]
fn a_step_that_fails_after_probabilities_were_observed_damages_the_cache() {
    let (cache, refuses) = refusing();
    let mut cache = cache.with_eviction(eviction());
    // More queries than attend at once; rows are refused after the first of them.
    step(&mut cache, 0..2000).unwrap();
    refuses[LATER].store(true, Ordering::Relaxed);
    step(&mut cache, 2000..2300).unwrap_err();
    refuses[LATER].store(false, Ordering::Relaxed);
    assert!(step(&mut cache, 2300..2301).unwrap_err().to_string().contains("clear the cache"));
}
