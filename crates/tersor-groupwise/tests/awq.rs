//! AWQ's searches against those of AutoAWQ (`scripts/golden_awq.py`).

mod common;

use common::{One, found};
use serde_json::Value as Json;
use tersor_core::{
    Consumer, Context, DType, Exec, FoldedRows, Input, LinearOp, LinearOpExt, MatView, MatViewMut, Method, Producer,
    Result, Role, RowSource, SeenSite, Site, StatNeeds, StatSet, Transform, Write,
};
use tersor_groupwise::smooth::smoothed;
use tersor_groupwise::{Awq, Check, OutputClip, Rtn};

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

fn output(x: &[f32], ops: &[&dyn LinearOp], _: bool) -> Result<Vec<f32>> {
    let mut y = vec![0f32; N * O];
    ops[0].apply(&Input::new(x, [N, K])?, MatViewMut::new(&mut y, [N, O])?, Write::Set, &Exec::new())?;
    Ok(y)
}

#[test]
fn factors_and_clip_limits_equal_the_reference() {
    let golden: Json = serde_json::from_str(include_str!("golden/awq.json")).unwrap();
    let w = noise(1, O * K);
    let mut x = noise(2, N * K);
    let scale = |k: usize| (((k * 37 % 17) as f32 - 8.0) / 2.0).exp2();
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= scale(i % K));
    let needs = StatNeeds { channel: true, gram: true, ..StatNeeds::default() };
    let mut stats = StatSet::new(K, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(&x, [N, K]).unwrap()).unwrap();
    let site = Site {
        name: "site".into(),
        layer: Some(0),
        features: K,
        consumers: vec![Consumer { weight: "w.weight".into(), shape: [O, K], role: Role::Linear }],
        producer: Producer::Norm { weight: "norm".into() },
        writers: Vec::new(),
    };
    let (cx, view) = (Context::new(), MatView::new(&w, [O, K]).unwrap());
    // Σ ((w - ŵ) x)² over runs of features, where ŵ was made for divided inputs.
    let error = |op: &dyn LinearOp, factors: &[f32], run: usize| -> f64 {
        let q = op.decompress().unwrap();
        let lost = |(i, q): (usize, &f32)| f64::from(w[i]) - f64::from(*q) / f64::from(factors[i % K]);
        let lost: Vec<f64> = q.iter().enumerate().map(lost).collect();
        let dot = |d: &[f64], x: &[f32]| d.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>().powi(2);
        let token = |d: &[f64], x: &[f32]| d.chunks(run).zip(x.chunks(run)).map(|(d, x)| dot(d, x)).sum::<f64>();
        lost.chunks(K).map(|d| x.chunks(K).map(|x| token(d, x)).sum::<f64>()).sum()
    };
    for g in golden.as_array().unwrap() {
        let (bits, group) = (g["bits"].as_u64().unwrap() as u32, g["group"].as_u64().unwrap() as usize);
        // Scales as they are: the reference does not round them.
        let rtn = || Box::new(Rtn::new().bits(bits).group(group).scales(DType::F32).check().unwrap());
        let plain = rtn();
        let seen = SeenSite {
            site: &site,
            stats: &stats,
            sample: &x,
            output: &output,
            keys_and_values: &|_| Ok(None),
            plain: &[Some(&*plain)],
        };
        let found = found(&Awq::new(), &One { seen, weights: &[view] }).unwrap().unwrap();
        for (a, b) in found.iter().zip(g["factors"].as_array().unwrap()) {
            assert!((f64::from(*a) / b.as_f64().unwrap() - 1.0).abs() < 1e-3, "{bits} bits: {a} {b}");
        }
        let folds = smoothed(&site, &found);
        let folded = FoldedRows::new(&view, "w.weight", &folds).unwrap();
        let mut inputs = x.clone();
        Transform::Scale(found.clone()).input_change().unwrap().apply(&mut inputs, K, &Exec::new()).unwrap();
        let mut divided = StatSet::new(K, needs, 0, 0).unwrap();
        divided.observe(&MatView::new(&inputs, [N, K]).unwrap()).unwrap();
        let run = |m: &dyn Method, rows: &dyn RowSource| {
            let stats = if m.needs().any_data() { &divided } else { &StatSet::none() };
            m.prepare(stats, &cx).unwrap().compress(rows, 0..O, &cx).unwrap().op
        };
        let clip = OutputClip::before(rtn()).scales(DType::F32).bits(bits).group(Some(group)).check().unwrap();
        let clipped = run(&clip, &folded);
        for (name, op, factors, width) in [
            ("rounded", &run(&*rtn(), &view), &vec![1.0; K], K),
            ("scaled", &run(&*rtn(), &folded), &found, K),
            // What the search of ranges minimizes, each group by itself; and what comes of it in whole rows, which it does not see.
            ("groups", &clipped, &found, group),
            ("clipped", &clipped, &found, K),
        ] {
            let ratio = error(&**op, factors, width) / g[name].as_f64().unwrap();
            // Ranges on our grid, which takes zero in, may serve better.
            let min = if ["groups", "clipped"].contains(&name) { 0.95 } else { 0.99 };
            assert!(ratio > min && ratio < 1.01, "{bits} bits, {name}: {ratio}");
        }
    }
}
