//! LQER's and L²QER's factors against numpy's (`scripts/golden_awq.py`).

use serde_json::Value as Json;
use tersor_core::compose::Cast;
use tersor_core::{Check, Context, DType, LinearOp, MatView, Method, StatNeeds, StatSet};
use tersor_groupwise::Rtn;
use tersor_lowrank::{Corrected, Norm, Rank};

const O: usize = 64;
const K: usize = 256;
const N: usize = 512;

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

#[test]
fn errors_are_those_of_an_independent_decomposition() {
    let golden: Json = serde_json::from_str(include_str!("golden/lqer.json")).unwrap();
    let w = noise(1, O * K);
    let mut x = noise(2, N * K);
    let scale = |k: usize| (((k * 37 % 17) as f32 - 8.0) / 2.0).exp2();
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= scale(i % K));
    let mut stats = StatSet::new(K, StatNeeds { channel: true, ..StatNeeds::default() }, 0, 0).unwrap();
    stats.observe(&MatView::new(&x, [N, K]).unwrap()).unwrap();
    let (cx, view) = (Context::new(), MatView::new(&w, [O, K]).unwrap());
    let error = |op: &dyn LinearOp| -> f64 {
        let mut q = vec![0f32; O * K];
        op.decompress_rows(0..O, &mut q).unwrap();
        let d: Vec<f64> = w.iter().zip(&q).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let dot = |d: &[f64], x: &[f32]| d.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>().powi(2);
        d.chunks(K).map(|d| x.chunks(K).map(|x| dot(d, x)).sum::<f64>()).sum()
    };
    let rtn = || Box::new(Rtn::new().bits(3).symmetric().check().unwrap());
    for g in golden.as_array().unwrap() {
        let rank = g["rank"].as_u64().unwrap() as usize;
        let plain = rtn().prepare(None, &cx).unwrap().compress(&view, 0..O, &cx).unwrap().op;
        let mut found = vec![("rounded", error(&*plain))];
        for (name, norm) in [("lqer", Norm::Plain), ("l2qer", Norm::Magnitude)] {
            let exact = Box::new(Cast::new(DType::F32).unwrap());
            let method = Corrected::lqer(rtn()).norm(norm).rank(Rank::Fixed(rank)).factors(exact).check().unwrap();
            let stats = method.needs().any_data().then_some(&stats);
            found.push((name, error(&*method.prepare(stats, &cx).unwrap().compress(&view, 0..O, &cx).unwrap().op)));
        }
        for (name, error) in found {
            let ratio = error / g[name].as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 0.01, "rank {rank}, {name}: {ratio}");
        }
    }
}
