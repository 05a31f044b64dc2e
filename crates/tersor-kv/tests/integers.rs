//! Integer caches against attention by hand in f64.

use std::sync::Arc;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor_core::cache::check::store_equals_its_rows;
use tersor_core::cache::{CacheSample, Rotary};
use tersor_core::{CacheMethod, CacheSet, Context, Exec, Heads, KvStep, LayerCache, MemTensors, Rotation};
use tersor_kv::{Check, IntegerCaches, Integers, KvCache, register_caches};
use tersor_operators::{IntegerRows, cache_registry};

const DIM: usize = 32;

fn rotary() -> Arc<Rotary> {
    Arc::new(Rotary::new(DIM, 100.0).unwrap())
}

fn heads() -> Heads {
    Heads::new(4, 2, DIM).unwrap().with_rotary(rotary()).unwrap()
}

fn layer(params: Integers) -> tersor_core::Result<LayerCache> {
    params.check()?.layer(&heads())
}

fn rotation(dim: usize) -> Rotation {
    tersor_linalg::rotation(dim, &mut ChaCha8Rng::seed_from_u64(1)).unwrap()
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
    let rotary = rotary();
    let rotated = |x: &[f32], heads: usize, t: usize, h: usize| -> Vec<f64> {
        let mut head = x[(t * heads + h) * DIM..][..DIM].to_vec();
        rotary.angles(t as u32).apply(tersor_core::Isa::SCALAR, &mut head, DIM);
        head.into_iter().map(f64::from).collect()
    };
    let mut out = Vec::new();
    for t in 0..tokens {
        for h in 0..4 {
            let q = rotated(queries, 4, t, h);
            let scores: Vec<f64> = (0..=t)
                .map(|j| {
                    q.iter().zip(rotated(keys, 2, j, h / 2)).map(|(a, b)| a * b).sum::<f64>() / (DIM as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..DIM {
                let v = |j: usize| f64::from(values[(j * 2 + h / 2) * DIM + d]);
                out.push((e.iter().enumerate().map(|(j, p)| p / sum * v(j)).sum::<f64>()) as f32);
            }
        }
    }
    out
}

fn error(params: Integers, x: &[Vec<f32>; 3], tokens: usize) -> f64 {
    let mut cache = layer(params).unwrap();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let mut out = vec![0f32; tokens * 4 * DIM];
    let step = KvStep { keys: &x[0], values: &x[1], queries: &x[2], positions: &positions };
    cache.step(step, &mut out, &Exec::new()).unwrap();
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
    let rotation = rotation(DIM);
    let (plain, rotated) =
        (error(Integers::new(3), &x, 40), error(Integers::new(3).key_rotation(rotation.clone()), &x, 40));
    assert!(rotated < plain, "{rotated} for {plain}");
    assert!(error(Integers::new(8).key_rotation(rotation), &x, 40) < 0.03);
}

#[test]
fn attention_over_rotated_rows_is_attention_over_the_rows() {
    store_equals_its_rows(|dim| {
        Box::new(IntegerRows::new(&[(dim - 4, 4), (4, 8)], Some(Arc::new(rotation(dim)))).unwrap())
    })
    .unwrap();
}

#[test]
fn tokens_come_one_at_a_time_or_together_and_are_removed() {
    let (tokens, exec) = (9, &Exec::new());
    let x = inputs(tokens);
    let params = Integers::new(4).high(4).check().unwrap();
    let fill = |cache: &mut LayerCache, range: std::ops::Range<usize>| {
        let span = range.start * 2 * DIM..range.end * 2 * DIM;
        let positions: Vec<u32> = range.map(|p| p as u32).collect();
        cache.append(&x[0][span.clone()], &x[1][span], &positions, exec).unwrap();
    };
    let attend = |cache: &mut LayerCache| {
        let mut out = vec![0f32; 4 * DIM];
        cache.attend(&x[2][..4 * DIM], &[8], &mut out, exec).unwrap();
        out
    };
    let [mut one, mut all] = [(); 2].map(|()| params.layer(&heads()).unwrap());
    fill(&mut all, 0..tokens);
    (0..tokens).for_each(|t| fill(&mut one, t..t + 1));
    assert_eq!((attend(&mut one), one.bytes(), one.len()), (attend(&mut all), all.bytes(), 9));
    assert_eq!(all.bytes(), 9 * params.bytes_per_token(&heads()).unwrap());
    let full = attend(&mut all);
    all.truncate(5).unwrap();
    assert_ne!(attend(&mut all), full);
    fill(&mut all, 5..tokens);
    assert_eq!(attend(&mut all), full);
    all.clear();
    assert!(all.is_empty() && all.bytes() == 0);
}

#[test]
fn few_queries_and_many_give_the_same() {
    let tokens = 50;
    let x = inputs(tokens);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let exec = &Exec::new();
    let mut cache = layer(Integers::new(4).high(DIM / 8)).unwrap();
    cache.append(&x[0], &x[1], &positions, exec).unwrap();
    let mut attend = |first: usize| {
        let mut out = vec![0f32; (tokens - first) * 4 * DIM];
        cache.attend(&x[2][first * 4 * DIM..], &positions[first..], &mut out, exec).unwrap();
        out
    };
    let all = attend(0);
    for count in 1..=3 {
        let few = attend(tokens - count);
        let rest = &all[(tokens - count) * 4 * DIM..];
        assert!(few.iter().zip(rest).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn bad_input_leaves_the_cache_as_it_was() {
    let exec = &Exec::new();
    let mut cache = layer(Integers::new(4)).unwrap();
    let good = vec![0.5f32; 2 * DIM];
    cache.append(&good, &good, &[3], exec).unwrap();
    let bytes = cache.bytes();
    let mut bad = vec![0.5f32; 4 * DIM];
    bad[3 * DIM] = f32::NAN;
    let two = vec![0.5f32; 4 * DIM];
    assert!(cache.append(&two, &bad, &[4, 5], exec).is_err());
    bad[3 * DIM] = 1e30;
    assert!(cache.append(&bad, &two, &[4, 5], exec).is_err());
    assert!(cache.append(&good, &good, &[3], exec).is_err());
    assert!(cache.append(&good[1..], &good, &[4], exec).is_err());
    assert_eq!((cache.bytes(), cache.len()), (bytes, 1));
    let mut out = vec![0f32; 4 * DIM];
    assert!(cache.attend(&[0.0; 4 * DIM], &[2], &mut out, exec).is_err());
    for bits in [0, 1, 9] {
        assert!(Integers::new(bits).check().is_err() && Integers::new(4).value_bits(bits).check().is_err());
    }
    assert!(layer(Integers::new(4).high(DIM + 1)).is_err());
    assert!(layer(Integers::new(4).key_rotation(rotation(16))).is_err());
    // Rotated, large values are refused where their rotation is too large, and only there.
    let large = vec![25_000f32; 2 * DIM];
    let mut rotated = layer(Integers::new(4).key_rotation(rotation(DIM))).unwrap();
    let mut one = vec![0f32; 2 * DIM];
    one[0] = 60_000.0;
    rotated.append(&one, &good, &[0], exec).unwrap();
    let refused = rotated.append(&large.iter().map(|v| v * 100.0).collect::<Vec<_>>(), &good, &[1], exec);
    assert!(refused.is_err() && rotated.len() == 1);
}

#[test]
fn caches_of_all_layers_are_saved_and_loaded() {
    let all = [heads(), heads(), Heads::new(4, 4, DIM).unwrap()];
    let params = Integers::new(3).value_bits(5).high(4);
    let own = |r: Option<Rotation>| r.into_iter().fold(params.clone(), Integers::key_rotation).check().unwrap();
    let set = IntegerCaches::by_layer(vec![own(None), own(Some(rotation(DIM))), own(None)]).unwrap();
    assert!(set.make(&all[..2]).is_err() && IntegerCaches::by_layer(Vec::new()).is_err());
    let mut file = MemTensors::new();
    set.save("cache", &mut file).unwrap();
    let mut registry = cache_registry();
    assert!(registry.load_set(&set.spec(), "cache", &file).is_err(), "not registered yet");
    register_caches(&mut registry);
    let again = registry.load_set(&set.spec(), "cache", &file).unwrap();
    assert_eq!(again.bytes_per_token(&all).unwrap(), set.bytes_per_token(&all).unwrap());
    let x = noise(4, 16 * DIM);
    for ((mut a, mut b), heads) in set.make(&all).unwrap().into_iter().zip(again.make(&all).unwrap()).zip(&all) {
        let kv = &x[..heads.key_heads() * DIM];
        let step = KvStep { keys: kv, values: kv, queries: &x[..4 * DIM], positions: &[7] };
        let [mut out, mut other] = [[0f32; 4 * DIM]; 2];
        a.step(step, &mut out, &Exec::new()).unwrap();
        b.step(step, &mut other, &Exec::new()).unwrap();
        assert_eq!((out, a.bytes()), (other, b.bytes()));
    }
    // As a method: no samples needed, the layout is what is written.
    let method = own(Some(rotation(DIM)));
    assert_eq!(method.needs().tokens, 0);
    let fitted = method.fit(&CacheSample { heads: &all, layers: &[], key_rotations: &[] }, &Context::new()).unwrap();
    let (mut file, layout) = (MemTensors::new(), method.layout(&all).unwrap());
    fitted.save("cache", &mut file).unwrap();
    assert_eq!(layout.tensors.bits().unwrap(), 8 * file.bytes() as u64);
    assert_eq!(layout.bytes_per_token, fitted.bytes_per_token(&all).unwrap());
    assert_eq!(layout.bytes_per_token, 8 * (11 + 4 + 4 + 4 + 18 + 4 + 4 + 4));
}

proptest! {
    #[test]
    fn values_stay_within_half_a_step(seed in any::<u64>(), bits in 2u32..=8, scale in -12i32..8, high in 0usize..=DIM) {
        let x = noise(seed, 2 * DIM).into_iter().map(|v| v * 2f32.powi(scale)).collect::<Vec<_>>();
        let exec = &Exec::new();
        let mut cache = layer(Integers::new(bits).high(high)).unwrap();
        let mut out = vec![0f32; 4 * DIM];
        // One token: its value is the output.
        let step = KvStep { keys: &x, values: &x, queries: &[0.1; 4 * DIM], positions: &[0] };
        cache.step(step, &mut out, exec).unwrap();
        for (h, out) in out.chunks(DIM).enumerate() {
            let want = &x[h / 2 * DIM..][..DIM];
            for (span, bits) in [(0..DIM - high, bits), (DIM - high..DIM, 8)] {
                let part = &want[span.clone()];
                let (lo, hi) = part.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
                let step = (hi - lo) / ((1 << bits) - 1) as f32;
                // And the rounding of minimum and scale to f16.
                let tolerance = 0.5 * step + 2e-3 * hi.abs().max(lo.abs()) + 1e-6;
                prop_assert!(part.iter().zip(&out[span]).all(|(a, b)| (a - b).abs() <= tolerance));
            }
        }
    }
}
