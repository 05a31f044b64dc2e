//! Integer caches against attention by hand in f64.

use std::sync::Arc;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor_core::cache::Queries;
use tersor_core::{Angles, Exec, Heads, KvBlock, Positions, ProbSink};
use tersor_kv::{Check, IntCache, Integers, KvCache};

const DIM: usize = 32;

/// Turns pairs by an angle that grows with the position.
struct Turn;

impl Positions for Turn {
    fn angles(&self, position: u32) -> Arc<Angles> {
        let angle = |i: usize| position as f32 * 0.3 / (i + 1) as f32;
        let pairs = 0..DIM / 2;
        let (cos, sin) = (pairs.clone().map(|i| angle(i).cos()).collect(), pairs.map(|i| angle(i).sin()).collect());
        Arc::new(Angles { cos, sin })
    }
}

fn heads() -> Heads {
    Heads { heads: 4, kv_heads: 2, head_dim: DIM, window: None, positions: Arc::new(Turn) }
}

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

/// Attention by its definition, causal, all in f64.
fn by_hand(keys: &[f32], values: &[f32], queries: &[f32], tokens: usize) -> Vec<f32> {
    let turned = |x: &[f32], heads: usize, t: usize, h: usize| -> Vec<f64> {
        let mut head = x[(t * heads + h) * DIM..][..DIM].to_vec();
        let angles = Turn.angles(t as u32);
        for i in 0..DIM / 2 {
            let (a, b, cos, sin) = (head[i], head[i + DIM / 2], angles.cos[i], angles.sin[i]);
            (head[i], head[i + DIM / 2]) = (a * cos - b * sin, a * sin + b * cos);
        }
        head.into_iter().map(f64::from).collect()
    };
    let mut out = Vec::new();
    for t in 0..tokens {
        for h in 0..4 {
            let q = turned(queries, 4, t, h);
            let scores: Vec<f64> = (0..=t)
                .map(|j| q.iter().zip(turned(keys, 2, j, h / 2)).map(|(a, b)| a * b).sum::<f64>() / (DIM as f64).sqrt())
                .collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..DIM {
                let v = |j: usize| f64::from(values[(j * 2 + h / 2) * DIM + d]);
                out.push((e.iter().enumerate().map(|(j, p)| p / sum * v(j)).sum::<f64>()) as f32);
            }
        }
    }
    out
}

fn error(how: Integers, x: &[Vec<f32>; 3], tokens: usize) -> f64 {
    let mut cache = IntCache::new(heads(), how.check().unwrap()).unwrap();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let exec = &Exec::new();
    cache.append(KvBlock { keys: &x[0], values: &x[1], positions: &positions }, exec).unwrap();
    let mut out = vec![0f32; tokens * 4 * DIM];
    cache.attend(Queries { data: &x[2], positions: &positions }, &mut out, None, exec).unwrap();
    let want = by_hand(&x[0], &x[1], &x[2], tokens);
    let square = |a: f32, b: f32| f64::from(a - b).powi(2);
    let far: f64 = want.iter().zip(&out).map(|(a, b)| square(*a, *b)).sum();
    (far / want.iter().map(|v| square(*v, 0.0)).sum::<f64>()).sqrt()
}

fn inputs(tokens: usize) -> [Vec<f32>; 3] {
    [noise(1, tokens * 2 * DIM), noise(2, tokens * 2 * DIM), noise(3, tokens * 4 * DIM)]
}

#[test]
fn more_bits_come_closer_to_attention_by_hand() {
    let x = inputs(40);
    let errors: Vec<f64> = [2, 3, 4, 6, 8].map(|b| error(Integers::new(b), &x, 40)).into();
    assert!(errors.windows(2).all(|e| e[1] < 0.65 * e[0]), "{errors:?}");
    assert!(errors[4] < 0.01, "{errors:?}");
    let mixed = error(Integers::new(4).high(DIM / 8), &x, 40);
    assert!(mixed < errors[2] && mixed > errors[4]);
    assert!(error(Integers::new(8).value_bits(2), &x, 40) > errors[2]);
}

#[test]
fn rotated_keys_hide_a_large_channel_and_change_no_score() {
    let mut x = inputs(40);
    x[0].iter_mut().skip(5).step_by(DIM).for_each(|v| *v *= 30.0);
    x[2].iter_mut().skip(5).step_by(DIM).for_each(|v| *v /= 30.0);
    let rotation = tersor_linalg::rotation(DIM, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    let (plain, rotated) =
        (error(Integers::new(3), &x, 40), error(Integers::new(3).key_rotation(rotation.clone()), &x, 40));
    assert!(rotated < plain, "{rotated} for {plain}");
    assert!(error(Integers::new(8).key_rotation(rotation), &x, 40) < 0.03);
}

#[test]
fn tokens_come_one_at_a_time_or_together_and_are_forgotten() {
    let (tokens, exec) = (9, &Exec::new());
    let x = inputs(tokens);
    let how = Integers::new(4).high(4).check().unwrap();
    let fill = |cache: &mut IntCache, range: std::ops::Range<usize>, exec: &Exec| {
        let span = range.start * 2 * DIM..range.end * 2 * DIM;
        let positions: Vec<u32> = range.map(|p| p as u32).collect();
        cache.append(KvBlock { keys: &x[0][span.clone()], values: &x[1][span], positions: &positions }, exec).unwrap();
    };
    let ask = |cache: &mut IntCache, exec: &Exec| {
        let mut out = vec![0f32; 4 * DIM];
        cache.attend(Queries { data: &x[2][..4 * DIM], positions: &[8] }, &mut out, None, exec).unwrap();
        out
    };
    let [mut one, mut all] = [(); 2].map(|()| IntCache::new(heads(), how.clone()).unwrap());
    fill(&mut all, 0..tokens, exec);
    (0..tokens).for_each(|t| fill(&mut one, t..t + 1, exec));
    assert_eq!((ask(&mut one, exec), one.bytes(), one.len()), (ask(&mut all, exec), all.bytes(), 9));
    assert_eq!(all.bytes(), 9 * how.bytes_per_token(2, DIM).unwrap());
    let full = ask(&mut all, exec);
    all.truncate(5).unwrap();
    assert_ne!(ask(&mut all, exec), full);
    fill(&mut all, 5..tokens, exec);
    assert_eq!(ask(&mut all, exec), full);
    all.clear();
    assert!(all.is_empty() && all.bytes() == 0);
}

/// What a sink heard: head, position, probabilities.
#[derive(Default)]
struct Heard(Vec<(usize, u32, Vec<f32>)>);

impl ProbSink for Heard {
    fn probs(&mut self, head: usize, position: u32, probs: &[f32]) {
        self.0.push((head, position, probs.to_vec()));
    }
}

#[test]
fn probabilities_are_the_same_for_few_queries_and_for_many() {
    let tokens = 50;
    let x = inputs(tokens);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let exec = &Exec::new();
    let mut cache = IntCache::new(heads(), Integers::new(4).high(DIM / 8).check().unwrap()).unwrap();
    cache.append(KvBlock { keys: &x[0], values: &x[1], positions: &positions }, exec).unwrap();
    let mut ask = |first: usize| {
        let (mut heard, mut out) = (Heard::default(), vec![0f32; (tokens - first) * 4 * DIM]);
        let queries = Queries { data: &x[2][first * 4 * DIM..], positions: &positions[first..] };
        cache.attend(queries, &mut out, Some(&mut heard), exec).unwrap();
        (heard.0, out)
    };
    let (all, outputs) = ask(0);
    for count in 1..=3 {
        let (few, out) = ask(tokens - count);
        let rest = &outputs[(tokens - count) * 4 * DIM..];
        assert!(out.iter().zip(rest).all(|(a, b)| (a - b).abs() < 1e-5));
        let same: Vec<_> = all.iter().filter(|h| h.1 as usize >= tokens - count).collect();
        assert_eq!(few.len(), 4 * count);
        for (a, b) in few.iter().zip(same) {
            assert_eq!((a.0, a.1, a.2.len()), (b.0, b.1, tokens));
            assert!(a.2.iter().zip(&b.2).all(|(p, q)| (p - q).abs() < 1e-5));
            assert!((a.2.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(a.2[a.1 as usize + 1..].iter().all(|p| *p == 0.0));
        }
    }
}

#[test]
fn bad_input_leaves_the_cache_as_it_was() {
    let exec = &Exec::new();
    let mut cache = IntCache::new(heads(), Integers::new(4).check().unwrap()).unwrap();
    let good = vec![0.5f32; 2 * DIM];
    cache.append(KvBlock { keys: &good, values: &good, positions: &[3] }, exec).unwrap();
    let bytes = cache.bytes();
    let mut bad = vec![0.5f32; 4 * DIM];
    bad[3 * DIM] = f32::NAN;
    let two = vec![0.5f32; 4 * DIM];
    assert!(cache.append(KvBlock { keys: &two, values: &bad, positions: &[4, 5] }, exec).is_err());
    bad[3 * DIM] = 1e30;
    assert!(cache.append(KvBlock { keys: &bad, values: &two, positions: &[4, 5] }, exec).is_err());
    assert!(cache.append(KvBlock { keys: &good, values: &good, positions: &[3] }, exec).is_err());
    assert!(cache.append(KvBlock { keys: &good[1..], values: &good, positions: &[4] }, exec).is_err());
    assert_eq!((cache.bytes(), cache.len()), (bytes, 1));
    let mut out = vec![0f32; 4 * DIM];
    assert!(cache.attend(Queries { data: &[0.0; 4 * DIM], positions: &[2] }, &mut out, None, exec).is_err());
    for bits in [0, 1, 9] {
        assert!(Integers::new(bits).check().is_err() && Integers::new(4).value_bits(bits).check().is_err());
    }
    assert!(IntCache::new(heads(), Integers::new(4).high(DIM + 1).check().unwrap()).is_err());
    let rotation = tersor_linalg::rotation(16, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    assert!(IntCache::new(heads(), Integers::new(4).key_rotation(rotation).check().unwrap()).is_err());
}

proptest! {
    #[test]
    fn values_stay_within_half_a_step(seed in any::<u64>(), bits in 2u32..=8, scale in -12i32..8, high in 0usize..=DIM) {
        let x = noise(seed, 2 * DIM).into_iter().map(|v| v * 2f32.powi(scale)).collect::<Vec<_>>();
        let exec = &Exec::new();
        let how = Integers::new(bits).high(high).check().unwrap();
        let mut cache = IntCache::new(heads(), how).unwrap();
        cache.append(KvBlock { keys: &x, values: &x, positions: &[0] }, exec).unwrap();
        let mut out = vec![0f32; 4 * DIM];
        // One token: what comes out is its value.
        cache.attend(Queries { data: &[0.1; 4 * DIM], positions: &[0] }, &mut out, None, exec).unwrap();
        for (h, out) in out.chunks(DIM).enumerate() {
            let want = &x[h / 2 * DIM..][..DIM];
            for (span, bits) in [(0..DIM - high, bits), (DIM - high..DIM, 8)] {
                let part = &want[span.clone()];
                let (lo, hi) = part.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
                let step = (hi - lo) / ((1 << bits) - 1) as f32;
                // And what f16 rounds off minimum and scale.
                let most = 0.5 * step + 2e-3 * hi.abs().max(lo.abs()) + 1e-6;
                prop_assert!(part.iter().zip(&out[span]).all(|(a, b)| (a - b).abs() <= most));
            }
        }
    }
}
