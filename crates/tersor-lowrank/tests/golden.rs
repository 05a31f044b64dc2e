//! LQER's and L²QER's factors against numpy's (`scripts/golden_awq.py`), Hadamard transforms against those of QuaRot, which ResQ uses
//! (`scripts/golden_hadamard.py`).

use serde_json::Value as Json;
use tersor_core::*;
use tersor_groupwise::{Grid, Rtn};
use tersor_lowrank::{Corrected, Norm, Rank};
use tersor_operators::{ActQuant, Cast, Dense, QuantizedInputs};

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
fn errors_equal_an_independent_decomposition() {
    let golden: Json = serde_json::from_str(include_str!("golden/lqer.json")).unwrap();
    let w = noise(1, O * K);
    let mut x = noise(2, N * K);
    let scale = |k: usize| (((k * 37 % 17) as f32 - 8.0) / 2.0).exp2();
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= scale(i % K));
    let mut stats = StatSet::new(K, StatNeeds { channel: true, ..StatNeeds::default() }, 0, 0).unwrap();
    stats.observe(&MatView::new(&x, [N, K]).unwrap()).unwrap();
    let (cx, view) = (Context::new(), MatView::new(&w, [O, K]).unwrap());
    let error = |op: &dyn LinearOp| -> f64 {
        let q = op.decompress().unwrap();
        let d: Vec<f64> = w.iter().zip(&q).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let dot = |d: &[f64], x: &[f32]| d.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>().powi(2);
        d.chunks(K).map(|d| x.chunks(K).map(|x| dot(d, x)).sum::<f64>()).sum()
    };
    let rtn = || Box::new(Rtn::new().bits(3).symmetric().check().unwrap());
    for g in golden.as_array().unwrap() {
        let rank = g["rank"].as_u64().unwrap() as usize;
        let plain = rtn().prepare(&StatSet::none(), &cx).unwrap().compress(&view, 0..O, &cx).unwrap().op;
        let mut found = vec![("rounded", error(&*plain))];
        for (name, norm) in [("lqer", Norm::Plain), ("l2qer", Norm::Magnitude)] {
            let exact = Box::new(Cast::new(DType::F32).unwrap());
            let method = Corrected::lqer(rtn()).norm(norm).rank(Rank::Fixed(rank)).factors(exact).check().unwrap();
            let stats = if method.needs().any_data() { &stats } else { &StatSet::none() };
            found.push((name, error(&*method.prepare(stats, &cx).unwrap().compress(&view, 0..O, &cx).unwrap().op)));
        }
        for (name, error) in found {
            let ratio = error / g[name].as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 0.01, "rank {rank}, {name}: {ratio}");
        }
    }
}

fn floats(json: &Json) -> Vec<f32> {
    json.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn hadamard_transforms_equal_quarot() {
    let golden: Json = serde_json::from_str(include_str!("golden/hadamard.json")).unwrap();
    for g in golden["exact"].as_array().unwrap() {
        let (k, order) = (g["features"].as_u64().unwrap() as usize, g["order"].as_u64().unwrap() as usize);
        let length = (order as f32).sqrt();
        let factor: Vec<f32> = floats(&g["factor"]).into_iter().map(|v| v / length).collect();
        let rotation = Rotation::new(&factor, k / order, &vec![1.0; k]).unwrap();
        let mut x = noise(3, 2 * k);
        rotation.forward(tersor_core::Isa::detect(), &mut x);
        for (a, b) in x.iter().zip(floats(&g["rotated"])) {
            assert!((a - b).abs() < 1e-4, "{k}: {a} {b}");
        }
    }
}

#[test]
fn quantization_errors_after_our_hadamard_and_quarots_agree() {
    let golden: Json = serde_json::from_str(include_str!("golden/hadamard.json")).unwrap();
    let (o, n) = (64, 256);
    for g in golden["errors"].as_array().unwrap() {
        let k = g["features"].as_u64().unwrap() as usize;
        let (w, mut x) = (noise(1, o * k), noise(2, n * k));
        x.chunks_exact_mut(k).for_each(|row| row.iter_mut().step_by(97).for_each(|v| *v *= 30.0));
        let weights = Rtn::new().bits(4).grid(Grid::SymNarrow).scales(DType::F32);
        let product = |op: Box<dyn LinearOp>, x: &[f32]| {
            let mut y = vec![0f32; n * o];
            op.apply(
                &Input::new(x, [n, k]).unwrap(),
                MatViewMut::new(&mut y, [n, o]).unwrap(),
                Write::Set,
                &Exec::new(),
            )
            .unwrap();
            y
        };
        let want = product(Box::new(Dense::new(w.clone(), [o, k], DType::F32).unwrap()), &x);
        let loss = |rotation: Option<&Rotation>| {
            let (mut w, mut x) = (w.clone(), x.clone());
            rotation
                .into_iter()
                .for_each(|r| [&mut w, &mut x].into_iter().for_each(|v| r.forward(tersor_core::Isa::detect(), v)));
            let op = weights.quantize(&MatView::new(&w, [o, k]).unwrap()).unwrap().0;
            let op = QuantizedInputs::new(ActQuant::per_token(4).unwrap(), Box::new(op)).unwrap();
            metrics::squared_error(&want, &product(Box::new(op), &x)) / metrics::energy(&want)
        };
        let plain = loss(None) / g["plain"].as_f64().unwrap();
        assert!((plain - 1.0).abs() < 0.01, "{k}: {plain}");
        // Their signs in front of our matrix.
        let order = g["order"].as_u64().unwrap() as usize;
        let hadamard = if order > 1 { tersor_linalg::hadamard(order).unwrap() } else { vec![1] };
        let factor: Vec<f32> = hadamard.into_iter().map(|v| f32::from(v) / (order as f32).sqrt()).collect();
        let seeds = 32;
        let error = |seed: u64| {
            let signs: Vec<f32> = noise(100 + seed, k).into_iter().map(|v| if v < 0.0 { -1.0 } else { 1.0 }).collect();
            loss(Some(&Rotation::new(&factor, k / order, &signs).unwrap()))
        };
        let rotated: f64 = (0..seeds).map(error).sum();
        let ratio = rotated / seeds as f64 / g["rotated"].as_f64().unwrap();
        assert!((ratio - 1.0).abs() < 0.01, "{k}: {ratio}");
    }
}
