//! Stores of cached rows, and the cache of a layer over them.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use tersor_core::cache::check::store_equals_its_rows;
use tersor_core::cache::{Budget, CacheLoading, Eviction, Merge, Probs, Recall, Rope, Rotary, TokenScorer};
use tersor_core::{
    DType, Error, Exec, Heads, Isa, KvCache, KvStep, KvStore, LayerCache, MatView, MemTensors, OpSpec, Result,
    Rotation, TensorSink,
};
use tersor_operators::{DenseCaches, DenseRows, IntegerRows, cache_registry};

fn dense(dim: usize) -> Box<dyn KvStore> {
    Box::new(DenseRows::new(dim, DType::F32).unwrap())
}

fn integers(parts: &[(usize, u32)]) -> Box<dyn KvStore> {
    Box::new(IntegerRows::new(parts, None).unwrap())
}

/// A Walsh-Hadamard rotation after a diagonal of signs.
fn rotation(dim: usize) -> Arc<Rotation> {
    let signs: Vec<f32> = (0..dim).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    Arc::new(Rotation::new(&[1.0], dim, &signs).unwrap())
}

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

#[test]
fn attention_over_dense_rows_is_attention_over_the_rows() {
    store_equals_its_rows(dense).unwrap();
    store_equals_its_rows(|dim| Box::new(DenseRows::new(dim, DType::F16).unwrap())).unwrap();
}

#[test]
fn attention_over_integers_is_attention_over_their_rows() {
    store_equals_its_rows(|dim| integers(&[(dim, 8)])).unwrap();
    store_equals_its_rows(|dim| integers(&[(dim - dim / 8, 3), (dim / 8, 8)])).unwrap();
    store_equals_its_rows(|dim| integers(&[(dim, 2)])).unwrap();
}

#[test]
fn attention_over_rotated_integers_is_attention_over_their_rows() {
    store_equals_its_rows(|dim| Box::new(IntegerRows::new(&[(dim, 4)], Some(rotation(dim))).unwrap())).unwrap();
}

/// Keys before their rotary embedding, which is applied when they are decoded.
struct Unrotated(DenseRows, Rotary, Vec<u32>);

impl KvStore for Unrotated {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn dim(&self) -> usize {
        self.0.dim()
    }
    fn rope(&self) -> Rope {
        Rope::Before
    }
    fn admit(&self, block: MatView<'_, f32>) -> Result<()> {
        self.0.admit(block)
    }
    fn append(&mut self, block: MatView<'_, f32>, positions: &[u32], exec: &Exec) {
        self.2.extend_from_slice(positions);
        self.0.append(block, positions, exec);
    }
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.0.decode(rows.clone(), out, exec)?;
        for (row, p) in out.chunks_exact_mut(self.dim()).zip(&self.2[rows]) {
            self.1.angles(*p).apply(exec.isa(), row, self.0.dim());
        }
        Ok(())
    }
    fn read(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.0.read(rows, out, exec)
    }
    fn retain(&mut self, keep: &[u32]) -> Result<()> {
        self.2 = keep.iter().map(|i| self.2[*i as usize]).collect();
        self.0.retain(keep)
    }
    fn truncate(&mut self, rows: usize) -> Result<()> {
        self.2.truncate(rows);
        self.0.truncate(rows)
    }
    fn clear(&mut self) {
        self.2.clear();
        self.0.clear();
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn spec(&self) -> OpSpec {
        OpSpec::new("unrotated", [self.len(), self.dim()])
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        self.0.save(prefix, sink)
    }
}

#[test]
fn a_store_that_multiplies_other_rows_than_it_reads_is_found() {
    let wrong = |dim| {
        let rows = DenseRows::new(dim, DType::F32).unwrap();
        Box::new(Unrotated(rows, Rotary::new(dim, 100.0).unwrap(), Vec::new())) as Box<dyn KvStore>
    };
    let error = store_equals_its_rows(wrong).unwrap_err().to_string();
    assert!(error.contains("outputs deviate"), "{error}");
}

struct Inputs {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    positions: Vec<u32>,
}

impl Inputs {
    fn new(heads: &Heads, tokens: usize) -> Self {
        Self {
            keys: noise(1, tokens * heads.key_heads() * heads.key_dim()),
            values: noise(2, tokens * heads.value_heads() * heads.value_dim()),
            queries: noise(3, tokens * heads.query_heads() * heads.key_dim()),
            positions: (0..tokens as u32).collect(),
        }
    }
    fn step(&self, at: Range<usize>) -> KvStep<'_> {
        let part =
            |x: &'_ [f32]| at.start * (x.len() / self.positions.len())..at.end * (x.len() / self.positions.len());
        KvStep {
            keys: &self.keys[part(&self.keys)],
            values: &self.values[part(&self.values)],
            queries: &self.queries[part(&self.queries)],
            positions: &self.positions[at],
        }
    }
}

/// Runs all tokens in parts of `block`; returns the outputs.
fn run(cache: &mut LayerCache, x: &Inputs, block: usize, exec: &Exec) -> Vec<f32> {
    let width = cache.heads().query_heads() * cache.heads().value_dim();
    let mut out = Vec::new();
    for first in (0..x.positions.len()).step_by(block) {
        let at = first..x.positions.len().min(first + block);
        let mut part = vec![f32::NAN; at.len() * width];
        cache.step(x.step(at), &mut part, exec).unwrap();
        out.extend(part);
    }
    out
}

fn close(a: &[f32], b: &[f32], tolerance: f32) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

#[test]
fn keys_before_and_after_the_rotary_embedding_give_the_same() {
    let (dim, exec) = (16, &Exec::new());
    let heads = Heads::new(4, 2, dim).unwrap().with_rotary(Arc::new(Rotary::new(8, 100.0).unwrap())).unwrap();
    let x = Inputs::new(&heads, 30);
    let before = || {
        let rows = DenseRows::new(dim, DType::F32).unwrap();
        Box::new(Unrotated(rows, Rotary::new(8, 100.0).unwrap(), Vec::new())) as Box<dyn KvStore>
    };
    let mut cache = LayerCache::new(heads.clone(), vec![before(), before()], vec![dense(dim), dense(dim)]).unwrap();
    let mut after = DenseCaches::f32().layer(&heads).unwrap();
    assert!(close(&run(&mut cache, &x, 7, exec), &run(&mut after, &x, 7, exec), 1e-6));
    let read = |cache: &LayerCache| {
        let mut rows = vec![0f32; 5 * dim];
        cache.read_keys(1, 20..25, &mut rows, exec).unwrap();
        rows
    };
    assert_eq!(read(&cache), read(&after));
}

/// Attention of all tokens by its definition, without rotary embedding, in f64.
fn by_definition(heads: &Heads, x: &Inputs) -> Vec<f32> {
    let (dim, value_dim) = (heads.key_dim(), heads.value_dim());
    let (keys, values) = (heads.key_heads(), heads.value_heads());
    let mut out = Vec::new();
    for t in 0..x.positions.len() {
        for h in 0..heads.query_heads() {
            let q = &x.queries[(t * heads.query_heads() + h) * dim..][..dim];
            let first = heads.window().map_or(0, |w| (t + 1).saturating_sub(w));
            let scores: Vec<f64> = (first..=t)
                .map(|j| {
                    let k = &x.keys[(j * keys + h * keys / heads.query_heads()) * dim..][..dim];
                    let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    (dot / (dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            out.extend((0..value_dim).map(|d| {
                let at = |j: usize| (j * values + h * values / heads.query_heads()) * value_dim + d;
                let sum: f64 =
                    scores.iter().enumerate().map(|(i, s)| s / total * f64::from(x.values[at(first + i)])).sum();
                sum as f32
            }));
        }
    }
    out
}

#[test]
fn long_texts_are_joined_from_runs_and_more_value_heads_than_key_heads_attend() {
    let exec = &Exec::new();
    let narrow = Heads::new(4, 1, 8).unwrap().with_values(2, 4).unwrap();
    for (heads, tokens) in [(narrow.clone(), 2300), (narrow.with_window(1100).unwrap(), 2300)] {
        let x = Inputs::new(&heads, tokens);
        let want = by_definition(&heads, &x);
        for block in [700, 2300] {
            let mut cache = DenseCaches::f32().layer(&heads).unwrap();
            assert!(close(&run(&mut cache, &x, block, exec), &want, 2e-5), "blocks of {block}");
        }
        // The last tokens, one at a time and a few.
        for last in [1, 3] {
            let mut cache = DenseCaches::f32().layer(&heads).unwrap();
            let n = tokens - 6;
            let first = x.step(0..n);
            cache.append(first.keys, first.values, first.positions, exec).unwrap();
            let rest: Vec<f32> = (n..tokens)
                .step_by(last)
                .flat_map(|t| {
                    let mut out = vec![0f32; last * 16];
                    cache.step(x.step(t..t + last), &mut out, exec).unwrap();
                    out
                })
                .collect();
            assert!(close(&rest, &want[n * 16..], 2e-5), "{last} at a time");
        }
    }
}

#[test]
fn the_same_bits_come_out_of_any_number_of_threads() {
    let heads = Heads::new(6, 2, 32).unwrap().with_rotary(Arc::new(Rotary::new(32, 10_000.0).unwrap())).unwrap();
    let x = Inputs::new(&heads, 1300);
    let stores = || vec![integers(&[(32, 4)]), integers(&[(32, 4)])];
    let with = |threads: usize| {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
        let exec = Exec::new().with_pool(pool);
        let mut outputs = Vec::new();
        for make in
            [&(|| LayerCache::new(heads.clone(), stores(), stores())) as &dyn Fn() -> Result<LayerCache>, &|| {
                DenseCaches::f32().layer(&heads)
            }]
        {
            let mut cache = make().unwrap();
            let mut out = vec![0f32; 1200 * 6 * 32];
            cache.step(x.step(0..1200), &mut out, &exec).unwrap();
            for t in 1200..1210 {
                let mut token = vec![0f32; 6 * 32];
                cache.step(x.step(t..t + 1), &mut token, &exec).unwrap();
                out.extend(token);
            }
            outputs.push(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
        outputs
    };
    let one = with(1);
    assert!(with(2) == one && with(3) == one);
    let serial = |exec: Exec| {
        let mut cache = DenseCaches::f32().layer(&heads).unwrap();
        let mut out = vec![0f32; 3 * 6 * 32];
        cache.step(x.step(0..3), &mut out, &exec).unwrap();
        out
    };
    assert_eq!(serial(Exec::serial().with_isa(Isa::SCALAR)), serial(Exec::new()), "few tokens on any instruction set");
}

#[test]
fn lengths_orders_and_values_that_do_not_fit_leave_the_cache_unchanged() {
    let exec = &Exec::new();
    let heads = Heads::new(4, 2, 8).unwrap();
    let (a, b, q) = (vec![0.5f32; 3 * 16], vec![0.25f32; 3 * 16], vec![0.5f32; 3 * 32]);
    for dtype in [DType::F32, DType::F16] {
        let mut cache = DenseCaches::new(dtype).unwrap().layer(&heads).unwrap();
        let mut out = vec![7f32; 3 * 32];
        let step = |keys, values, queries, positions| KvStep { keys, values, queries, positions };
        cache.step(step(&a[..16], &b[..16], &q[..32], &[3]), &mut out[..32], exec).unwrap();
        let bytes = cache.bytes();
        let mut nan = a.clone();
        nan[20] = f32::NAN;
        let mut wide = a.clone();
        wide[40] = 70_000.0;
        let mut bad_queries = q.clone();
        bad_queries[70] = f32::INFINITY;
        let mut refused = |s: KvStep<'_>, n: usize| cache.step(s, &mut out[..n], exec).unwrap_err();
        let up: &[u32] = &[4, 5, 6];
        assert!(matches!(refused(step(&a[1..], &b, &q, up), 96), Error::Shape { .. }));
        assert!(matches!(refused(step(&a, &b[1..], &q, up), 96), Error::Shape { .. }));
        assert!(matches!(refused(step(&a, &b, &q[1..], up), 96), Error::Shape { .. }));
        assert!(matches!(refused(step(&a, &b, &q, up), 95), Error::Shape { .. }));
        assert!(matches!(refused(step(&a, &b, &q, &[4, 5]), 64), Error::Shape { .. }));
        assert!(matches!(refused(step(&a, &b, &q, &[3, 4, 5]), 96), Error::Order { .. }));
        assert!(matches!(refused(step(&a, &b, &q, &[4, 6, 5]), 96), Error::Order { .. }));
        assert!(matches!(refused(step(&nan, &b, &q, up), 96), Error::NonFinite { row: 1, col: 4, .. }));
        assert!(matches!(refused(step(&a, &nan, &q, up), 96), Error::NonFinite { .. }));
        assert!(matches!(refused(step(&a, &b, &bad_queries, up), 96), Error::NonFinite { row: 2, .. }));
        if dtype == DType::F16 {
            assert!(matches!(refused(step(&a, &wide, &q, up), 96), Error::ScaleRange { .. }));
        }
        let early = cache.attend(&q[..32], &[2], &mut out[..32], exec).unwrap_err();
        assert!(matches!(early, Error::Range { .. }), "{early}");
        assert_eq!((cache.bytes(), cache.len(), cache.positions(1)), (bytes, 1, &[3u32][..]));
        assert!(cache.keys(2).is_err() && cache.values(2).is_err() && cache.positions(2).is_empty());
        let mut row = [0f32; 8];
        assert!(
            cache.read_keys(0, 1..2, &mut row, exec).is_err()
                && cache.read_values(0, 0..1, &mut row[1..], exec).is_err()
        );
        cache.read_values(1, 0..1, &mut row, exec).unwrap();
        assert_eq!(row, [0.25; 8]);
    }
    assert!(LayerCache::new(heads.clone(), vec![dense(8)], vec![dense(8), dense(8)]).is_err());
    assert!(LayerCache::new(heads.clone(), vec![dense(8), dense(6)], vec![dense(8), dense(8)]).is_err());
    assert!(DenseRows::new(0, DType::F32).is_err() && DenseRows::new(4, DType::BF16).is_err());
    assert!(IntegerRows::new(&[], None).is_err() && IntegerRows::new(&[(8, 9)], None).is_err());
    assert!(IntegerRows::new(&[(0, 4)], None).is_err() && IntegerRows::new(&[(16, 4)], Some(rotation(8))).is_err());
}

/// Key head, positions of queries, cached tokens, probabilities.
type Observed = (usize, Vec<u32>, Range<usize>, Vec<f32>);

/// Observes, and scores by the sums of probabilities.
#[derive(Default)]
struct Heavy {
    probs: Probs,
    sums: Vec<Vec<f32>>,
    observed: Arc<Mutex<Vec<Observed>>>,
}

impl TokenScorer for Heavy {
    fn needs(&self) -> Probs {
        self.probs
    }
    fn appended(&mut self, head: usize, _: MatView<'_, f32>, positions: &[u32]) {
        self.sums.resize(self.sums.len().max(head + 1), Vec::new());
        let len = self.sums[head].len() + positions.len();
        self.sums[head].resize(len, 0.0);
    }
    fn observe(&mut self, head: usize, positions: &[u32], keys: Range<usize>, probs: &[f32]) {
        for p in probs.chunks_exact(keys.len()) {
            self.sums[head][keys.clone()].iter_mut().zip(p).for_each(|(s, p)| *s += p);
        }
        self.observed.lock().unwrap().push((head, positions.to_vec(), keys, probs.to_vec()));
    }
    fn score(&self, head: usize, _: &[u32], _: &dyn KvStore, out: &mut [f32], _: &Exec) -> Result<()> {
        out.copy_from_slice(&self.sums[head]);
        Ok(())
    }
    fn retain(&mut self, head: usize, keep: &[u32]) {
        self.sums[head] = keep.iter().map(|i| self.sums[head][*i as usize]).collect();
    }
    fn clear(&mut self) {
        self.sums.clear();
    }
}

struct Fixed(usize);

impl Budget for Fixed {
    fn keep(&self, _: usize, _: usize, scores: &[Vec<f32>]) -> Result<Vec<usize>> {
        Ok(vec![self.0; scores.len()])
    }
}

#[test]
fn probabilities_reach_the_scorer_reduced_and_sum_to_one() {
    let (heads, exec) = (Heads::new(4, 2, 8).unwrap(), &Exec::new());
    for tokens in [90, 1400] {
        let x = Inputs::new(&heads, tokens);
        let observe = |probs: Probs, split: usize| {
            let scorer = Heavy { probs, ..Heavy::default() };
            let observed = Arc::clone(&scorer.observed);
            let eviction = Eviction::new(0, Box::new(scorer), Arc::new(Fixed(tokens)));
            let mut cache = DenseCaches::f32().layer(&heads).unwrap().with_eviction(eviction);
            run(&mut cache, &x, split, exec);
            drop(cache);
            Arc::into_inner(observed).unwrap().into_inner().unwrap()
        };
        assert!(observe(Probs::None, tokens).is_empty());
        // [head, key]: probabilities of all queries.
        let total = |observed: &[Observed]| {
            let mut sums = vec![vec![0f64; tokens]; 2];
            for (head, _, keys, probs) in observed {
                for p in probs.chunks_exact(keys.len()) {
                    sums[*head][keys.clone()].iter_mut().zip(p).for_each(|(s, p)| *s += f64::from(*p));
                }
            }
            sums
        };
        let sums = total(&observe(Probs::Sums, tokens));
        for head in &sums {
            assert!((head.iter().sum::<f64>() - 2.0 * tokens as f64).abs() < 1e-2);
        }
        for (probs, split) in [(Probs::Rows, tokens), (Probs::Sums, 100), (Probs::Rows, 3)] {
            let other = total(&observe(probs, split));
            assert!(sums.concat().iter().zip(other.concat()).all(|(a, b)| (a - b).abs() < 1e-3), "{probs:?} {split}");
        }
        let last = observe(Probs::Last(3), tokens);
        let mut rows = vec![0f64; 2 * 2 * 3];
        for (head, positions, keys, probs) in &last {
            assert!(positions.iter().all(|p| *p as usize >= tokens - 3));
            for (i, p) in probs.chunks_exact(keys.len()).enumerate() {
                let t = positions[i % positions.len()] as usize + 3 - tokens;
                rows[(head * 2 + i / positions.len()) * 3 + t] += p.iter().map(|p| f64::from(*p)).sum::<f64>();
                assert!(keys.clone().zip(p).all(|(k, p)| k <= t + tokens - 3 || *p == 0.0));
            }
        }
        assert!(rows.iter().all(|r| (r - 1.0).abs() < 1e-4), "{rows:?}");
    }
}

/// Adds a tenth of each evicted token to the first that stays.
struct Tenth;

impl Recall for Tenth {
    fn merges(
        &mut self,
        _: &[Box<dyn KvStore>],
        evicted: &[Vec<u32>],
        retained: &[Vec<u32>],
        _: &Exec,
    ) -> Result<Vec<Vec<Merge>>> {
        let merge = |(gone, stays): (&Vec<u32>, &Vec<u32>)| {
            vec![Merge { into: stays[0], own: 0.5, from: gone.iter().map(|g| (*g, 0.1)).collect() }]
        };
        Ok(evicted.iter().zip(retained).map(merge).collect())
    }
}

/// Returns the same merges, whatever was evicted.
struct Always(Vec<Vec<Merge>>);

impl Recall for Always {
    fn merges(&mut self, _: &[Box<dyn KvStore>], _: &[Vec<u32>], _: &[Vec<u32>], _: &Exec) -> Result<Vec<Vec<Merge>>> {
        Ok(self.0.clone())
    }
}

#[test]
fn merges_take_evicted_tokens_into_retained_ones_alone() {
    let (heads, exec) = (Heads::new(2, 1, 4).unwrap(), &Exec::new());
    let x = Inputs::new(&heads, 12);
    let run = |merges: &[Vec<Merge>]| {
        let scorer = Box::new(Heavy { probs: Probs::Sums, ..Heavy::default() });
        let eviction = Eviction::new(0, scorer, Arc::new(Fixed(4))).with_recall(Box::new(Always(merges.to_vec())));
        let mut cache = LayerCache::new(heads.clone(), vec![dense(4)], vec![dense(4)]).unwrap().with_eviction(eviction);
        cache.step(x.step(0..8), &mut vec![0f32; 8 * 8], exec).unwrap();
        cache.seal(exec).map(|()| cache.positions(0).to_vec())
    };
    let stays = run(&[]).unwrap();
    let gone: Vec<u32> = (0..8).filter(|p| !stays.contains(p)).collect();
    let merge = |into: u32, from: u32| vec![Merge { into, own: 0.5, from: vec![(from, 0.5)] }];
    assert_eq!(run(&[merge(stays[1], gone[0])]).unwrap(), stays);
    assert!(run(&[merge(gone[1], gone[0])]).is_err(), "into an evicted token");
    assert!(run(&[merge(stays[1], stays[0])]).is_err(), "a retained token");
    assert!(run(&[merge(stays[1], gone[0]), vec![]]).is_err(), "more heads than the cache has");
}

#[test]
fn evicted_tokens_go_and_may_be_merged_and_the_rest_attends() {
    let (heads, exec) = (Heads::new(2, 1, 4).unwrap(), &Exec::new());
    let x = Inputs::new(&heads, 12);
    for (recall, wide) in [(false, false), (true, false), (true, true)] {
        let scorer = Box::new(Heavy { probs: Probs::Sums, ..Heavy::default() });
        let eviction = Eviction::new(0, scorer, Arc::new(Fixed(4)));
        let eviction = if recall { eviction.with_recall(Box::new(Tenth)) } else { eviction };
        let stores = || vec![if wide { integers(&[(4, 8)]) } else { dense(4) }];
        let mut cache = LayerCache::new(heads.clone(), stores(), stores()).unwrap().with_eviction(eviction);
        let mut out = vec![0f32; 8 * 8];
        cache.step(x.step(0..8), &mut out, exec).unwrap();
        let mut before = vec![0f32; 8 * 4];
        cache.read_values(0, 0..8, &mut before, exec).unwrap();
        cache.truncate(8).unwrap();
        cache.seal(exec).unwrap();
        let stays = cache.positions(0).to_vec();
        assert_eq!((stays.len(), cache.len(), cache.values(0).unwrap().len()), (4, 8, 4));
        let mut after = vec![0f32; 4 * 4];
        cache.read_values(0, 0..4, &mut after, exec).unwrap();
        for (i, p) in stays.iter().enumerate() {
            let mut want = before[*p as usize * 4..][..4].to_vec();
            if recall && i == 0 {
                let gone = |d: usize| {
                    (0..8u32).filter(|p| !stays.contains(p)).map(|p| before[p as usize * 4 + d]).sum::<f32>()
                };
                want.iter_mut().enumerate().for_each(|(d, v)| *v = 0.5 * *v + 0.1 * gone(d));
            }
            assert!(close(&after[i * 4..][..4], &want, 0.02), "{recall} {wide}");
        }
        // A token more, a token less.
        cache.step(x.step(8..9), &mut out[..8], exec).unwrap();
        assert_eq!((cache.positions(0).len(), cache.len()), (4, 9));
        assert!(matches!(cache.truncate(3), Err(Error::Unsupported { .. })));
        cache.clear();
        assert!(cache.is_empty() && cache.bytes() == 0);
        cache.step(x.step(0..8), &mut out, exec).unwrap();
        cache.truncate(3).unwrap();
        assert_eq!(cache.positions(0), [0, 1, 2]);
    }
}

#[test]
fn a_cache_is_saved_and_loaded_through_the_registry() {
    let exec = &Exec::new();
    let heads = Heads::new(4, 2, 16).unwrap().with_rotary(Arc::new(Rotary::new(16, 10_000.0).unwrap())).unwrap();
    let x = Inputs::new(&heads, 20);
    let half = || Box::new(DenseRows::new(16, DType::F16).unwrap()) as Box<dyn KvStore>;
    let rotated = || Box::new(IntegerRows::new(&[(12, 3), (4, 8)], Some(rotation(16))).unwrap()) as Box<dyn KvStore>;
    let kinds: [&dyn Fn() -> Box<dyn KvStore>; 4] = [&|| dense(16), &half, &|| integers(&[(16, 5)]), &rotated];
    for (make, evict) in kinds.iter().flat_map(|k| [(k, false), (k, true)]) {
        let mut cache = LayerCache::new(heads.clone(), vec![make(), make()], vec![make(), make()]).unwrap();
        if evict {
            let scorer = Box::new(Heavy { probs: Probs::Sums, ..Heavy::default() });
            cache = cache.with_eviction(Eviction::new(0, scorer, Arc::new(Fixed(9))));
        }
        let mut out = vec![0f32; 19 * 64];
        cache.step(x.step(0..19), &mut out, exec).unwrap();
        if evict {
            cache.seal(exec).unwrap();
        }
        let mut file = MemTensors::new();
        cache.save("layer", &mut file).unwrap();
        let registry = cache_registry();
        let load = |spec: &OpSpec, file: &MemTensors| {
            LayerCache::load(heads.clone(), None, spec, "layer", &CacheLoading::new(&registry, file))
        };
        let mut again = load(&cache.spec(), &file).unwrap();
        assert_eq!((again.len(), again.bytes(), again.positions(1)), (cache.len(), cache.bytes(), cache.positions(1)));
        let [mut a, mut b] = [[0f32; 64]; 2];
        cache.attend(&x.queries[19 * 64..], &[19], &mut a, exec).unwrap();
        again.attend(&x.queries[19 * 64..], &[19], &mut b, exec).unwrap();
        assert_eq!(a, b);
        assert_eq!(again.truncate(2).is_err(), evict);

        // What does not fit is refused.
        let other = Heads::new(2, 2, 16).unwrap();
        assert!(LayerCache::load(other, None, &cache.spec(), "layer", &CacheLoading::new(&registry, &file)).is_err());
        assert!(load(&cache.spec(), &MemTensors::new()).is_err());
        let mut spec = cache.spec();
        spec.parts.get_mut("keys.1").unwrap().kind = "unknown".into();
        assert!(load(&spec, &file).err().unwrap().to_string().contains("dense-rows"));
        let mut spec = cache.spec();
        spec.parts.get_mut("values.0").unwrap().shape[0] += 1;
        assert!(load(&spec, &file).is_err());
        let mut spec = cache.spec();
        spec.params.insert("seen".into(), tersor_core::Value::Int(3));
        assert!(load(&spec, &file).is_err());
    }
}

#[test]
fn rows_are_retained_in_order_and_nothing_else() {
    for mut store in [dense(4), integers(&[(4, 8)])] {
        let x = noise(5, 6 * 4);
        store.admit(MatView::new(&x, [6, 4]).unwrap()).unwrap();
        store.append(MatView::new(&x, [6, 4]).unwrap(), &[0, 1, 2, 3, 4, 5], &Exec::new());
        let rows = |store: &dyn KvStore| {
            let mut rows = vec![0f32; store.len() * 4];
            store.read(0..store.len(), &mut rows, &Exec::new()).unwrap();
            rows
        };
        let before = rows(&*store);
        assert!(store.retain(&[1, 6]).is_err() && store.retain(&[3, 1]).is_err());
        assert!(store.merge(6, 1.0, &[], &Exec::new()).is_err());
        assert!(store.merge(0, 1.0, &[(1, f32::NAN)], &Exec::new()).is_err());
        assert_eq!(rows(&*store), before);
        store.retain(&[1, 2, 5]).unwrap();
        assert_eq!(rows(&*store), [&before[4..12], &before[20..24]].concat());
    }
}
