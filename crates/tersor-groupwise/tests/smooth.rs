//! Smoothing: the properties of the factors of each rewrite.

mod common;

use common::{One, found};
use tersor_core::{
    Consumer, Context, Exec, FoldedRows, Input, LinearOp, LinearOpExt, MatView, MatViewMut, Method, Producer, Result,
    Rewrite, Role, SeenSite, Side, Site, StatNeeds, StatSet, Write, metrics,
};
use tersor_groupwise::smooth::smoothed;
use tersor_groupwise::{Adaptive, Awq, Check, OutputClip, Percentile, Rtn, SmoothQuant};
use tersor_operators::{ActQuant, WithActivations};

const K: usize = 64;
const N: usize = 48;
const TOKENS: usize = 256;

fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    (0..n).map(|_| (-2.0 * next().ln()).sqrt() * (std::f32::consts::TAU * next()).cos()).collect()
}

/// Returns inputs with one channel fifty times as large as the others.
fn outlier(seed: u64) -> Vec<f32> {
    let mut x = normal(seed, TOKENS * K);
    x.iter_mut().skip(7).step_by(K).for_each(|v| *v *= 50.0);
    x
}

fn site() -> Site {
    Site {
        name: "site".into(),
        layer: Some(0),
        features: K,
        consumers: ["a", "b"]
            .map(|n| Consumer { weight: format!("{n}.weight"), shape: [N, K], role: Role::Linear })
            .into(),
        producer: Producer::Norm { weight: "norm.weight".into() },
        writers: Vec::new(),
    }
}

fn stats(x: &[f32]) -> StatSet {
    let needs = StatNeeds { channel: true, gram: true, ..StatNeeds::default() };
    let mut stats = StatSet::new(K, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(x, [x.len() / K, K]).unwrap()).unwrap();
    stats
}

/// Returns the products with both matrices, side by side.
fn output(x: &[f32], ops: &[&dyn LinearOp], _: bool) -> Result<Vec<f32>> {
    let tokens = x.len() / K;
    let mut out = Vec::new();
    for op in ops {
        let mut y = vec![0f32; tokens * N];
        op.apply(&Input::new(x, [tokens, K])?, MatViewMut::new(&mut y, [tokens, N])?, Write::Set, &Exec::new())?;
        out.extend(y);
    }
    Ok(out)
}

/// Returns a seen site whose matrices have these data-free methods.
fn seen<'a>(
    site: &'a Site,
    stats: &'a StatSet,
    sample: &'a [f32],
    plain: &'a [Option<&'a dyn Method>],
) -> SeenSite<'a> {
    SeenSite { site, stats, sample, output: &output, keys_and_values: &|_| Ok(None), plain }
}

/// Returns the factors that a rewrite finds for the site, whose two matrices have these data-free methods.
fn tried(how: &dyn Rewrite, x: &[f32], w: [&[f32]; 2], plain: [Option<&dyn Method>; 2]) -> Result<Option<Vec<f32>>> {
    let (site, stats) = (site(), stats(x));
    let views = w.map(|w| MatView::new(w, [N, K]).unwrap());
    found(how, &One { seen: seen(&site, &stats, x, &plain), weights: &views })
}

/// Returns the factors of a rewrite that makes no trials.
fn factors(how: &dyn Rewrite, x: &[f32], w: [&[f32]; 2]) -> Option<Vec<f32>> {
    tried(how, x, w, [None; 2]).unwrap()
}

/// Returns the squared error of the outputs with a method, inputs divided by factors.
fn loss(method: &dyn Method, x: &[f32], w: [&[f32]; 2], factors: &[f32]) -> f64 {
    loss_of([method; 2], x, w, factors)
}

/// Returns the squared error of the outputs with a method for each matrix.
fn loss_of(methods: [&dyn Method; 2], x: &[f32], w: [&[f32]; 2], factors: &[f32]) -> f64 {
    let folds = smoothed(&site(), factors);
    let (cx, divided): (_, Vec<f32>) =
        (Context::new(), x.chunks(K).flat_map(|row| row.iter().zip(factors).map(|(v, s)| v / s)).collect());
    let mut sum = 0f64;
    for ((w, name), method) in w.iter().zip(["a.weight", "b.weight"]).zip(methods) {
        let view = MatView::new(w, [N, K]).unwrap();
        let folded = FoldedRows::new(&view, name, &folds).unwrap();
        let op = method.prepare(&StatSet::none(), &cx).unwrap().compress(&folded, 0..N, &cx).unwrap().op;
        let found = output(&divided, &[&*op], false).unwrap();
        let want: Vec<f32> = (x.chunks(K))
            .flat_map(|x| {
                w.chunks(K)
                    .map(move |w| w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32)
            })
            .collect();
        sum += metrics::squared_error(&want, &found);
    }
    sum
}

fn w8a8() -> WithActivations {
    WithActivations::new(ActQuant::per_token(8).unwrap(), Box::new(Rtn::new().bits(8).symmetric().check().unwrap()))
}

#[test]
fn smoothquant_balances_magnitudes_and_helps_with_outliers() {
    let (x, a, b) = (outlier(1), normal(2, N * K), normal(3, N * K));
    let s = factors(&SmoothQuant::new().check().unwrap(), &x, [&a, &b]).unwrap();
    let column = |m: &[f32], k: usize| m.iter().skip(k).step_by(K).fold(0f32, |m, v| m.max(v.abs()));
    for (k, s) in s.iter().enumerate() {
        let (inputs, weights) = (column(&x, k) / s, column(&a, k).max(column(&b, k)) * s);
        assert!((inputs / weights - 1.0).abs() < 1e-5, "{inputs} {weights}");
    }
    let plain = loss(&w8a8(), &x, [&a, &b], &[1.0; K]);
    let smooth = loss(&w8a8(), &x, [&a, &b], &s);
    assert!(smooth < plain / 10.0, "{smooth} for {plain}");
    assert!(SmoothQuant::new().alpha(1.5).check().is_err() && SmoothQuant::new().alpha(f64::NAN).check().is_err());
    // Dead features and columns stay finite.
    let (zero, nothing) = (vec![0f32; TOKENS * K], vec![0f32; N * K]);
    let s = factors(&SmoothQuant::new().check().unwrap(), &zero, [&nothing, &nothing]).unwrap();
    assert!(s.iter().all(|v| v.is_finite() && *v > 0.0));
}

#[test]
fn awq_loses_no_more_than_rounding() {
    // Rows whose large inputs meet small weights.
    let x = outlier(4);
    let (a, b) = (normal(5, N * K), normal(6, N * K));
    let trial = || Box::new(Rtn::new().bits(3).group(32).check().unwrap());
    let plain = trial();
    let tried = |x: &[f32]| tried(&Awq::new(), x, [&a, &b], [Some(&*plain); 2]).unwrap();
    let s = tried(&x).unwrap();
    let (plain, scaled) = (loss(&*trial(), &x, [&a, &b], &[1.0; K]), loss(&*trial(), &x, [&a, &b], &s));
    assert!(scaled < 0.5 * plain, "{scaled} for {plain}");
    // The winner is one of the twenty, by an independent search.
    let tokens = TOKENS as f64;
    let mean: Vec<f64> =
        (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| f64::from(v.abs())).sum::<f64>() / tokens).collect();
    let candidate = |i: usize| -> Vec<f32> {
        let s: Vec<f64> = mean.iter().map(|a| a.powf(i as f64 / 20.0).max(1e-4)).collect();
        let (hi, lo) = (s.iter().copied().fold(0.0, f64::max), s.iter().copied().fold(f64::INFINITY, f64::min));
        s.iter().map(|v| (v / (hi * lo).sqrt()) as f32).collect()
    };
    let best = (0..20).map(|i| loss(&*trial(), &x, [&a, &b], &candidate(i))).fold(f64::INFINITY, f64::min);
    assert!((scaled / best - 1.0).abs() < 1e-3, "{scaled} and {best}");
    assert!(tried(&vec![0.0; TOKENS * K]).is_none_or(|s| s.iter().all(|v| v.is_finite())));
}

#[test]
fn each_matrix_of_a_site_is_tried_with_its_own_method() {
    // One matrix is hardly rounded, so the factors are to serve the other: it wants the large features enlarged, the first the small ones.
    let x = outlier(4);
    let (a, mut b) = (normal(5, N * K), normal(6, N * K));
    b.chunks_mut(K).for_each(|row| row.iter_mut().skip(1).step_by(2).for_each(|v| *v *= 30.0));
    let (coarse, fine) = (Rtn::new().bits(2).group(32), Rtn::new().bits(8).group(32));
    let method = |m: Rtn| -> Box<dyn Method> { Box::new(m.check().unwrap()) };
    let mean: Vec<f64> =
        (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| f64::from(v.abs())).sum::<f64>() / TOKENS as f64).collect();
    for pair in [[coarse, fine], [fine, coarse]] {
        let [one, other] = pair.map(method);
        let s = tried(&Awq::new(), &x, [&a, &b], [Some(&*one), Some(&*other)]).unwrap().unwrap_or(vec![1.0; K]);
        let loss = |s: &[f32]| loss_of([&*one, &*other], &x, [&a, &b], s);
        let best = (0..20).map(|i| loss(&Awq::factors_of(&mean, f64::from(i) / 20.0))).fold(f64::INFINITY, f64::min);
        assert!((loss(&s) / best - 1.0).abs() < 1e-3, "{} and {best}", loss(&s));
    }
    // Bits of activations are for each matrix or for all; a matrix of which nothing is known cannot be tried.
    let (one, other) = (method(coarse), method(fine));
    let three = Adaptive::with_activations(&[4, 8, 8]).unwrap();
    let said = tried(&three, &x, [&a, &b], [Some(&*one), Some(&*other)]).unwrap_err().to_string();
    assert!(said.contains("1 or 2"), "{said}");
    let said = tried(&Awq::new(), &x, [&a, &b], [Some(&*one), None]).unwrap_err().to_string();
    assert!(said.contains("b.weight"), "{said}");
}

#[test]
fn adaptive_leaves_small_channels_alone() {
    let (x, a, b) = (outlier(7), normal(8, N * K), normal(9, N * K));
    let rtn = Rtn::new().bits(4).symmetric().check().unwrap();
    let trial = || Box::new(WithActivations::new(ActQuant::per_token(8).unwrap(), Box::new(rtn.clone())));
    let adaptive = Adaptive::new().unwrap();
    let s = tried(&adaptive, &x, [&a, &b], [Some(&rtn); 2]).unwrap().unwrap();
    assert!(s[7] > 1.5 && s.iter().filter(|v| **v == 1.0).count() > K / 2, "{s:?}");
    assert!(s.iter().all(|v| *v >= 1.0));
    let (plain, smooth) = (loss(&*trial(), &x, [&a, &b], &[1.0; K]), loss(&*trial(), &x, [&a, &b], &s));
    assert!(smooth < plain, "{smooth} for {plain}");
    assert!(tried(&adaptive, &vec![0.01; TOKENS * K], [&a, &b], [Some(&rtn); 2]).unwrap().is_none());
}

#[test]
fn percentile_brings_the_largest_down_to_the_next() {
    let (x, a) = (outlier(10), normal(11, N * K));
    let s = factors(&Percentile, &x, [&a, &a]).unwrap();
    // Of 64 channels int(0.005 * 64 + 1.5) = 1: the largest is the baseline, and nothing moves; of 200 it is the second.
    assert!(s.iter().all(|v| *v == 1.0));
    let wide = 200;
    let mut x = normal(12, TOKENS * wide);
    x.iter_mut().skip(3).step_by(wide).for_each(|v| *v *= 20.0);
    let site = Site { features: wide, ..site() };
    let needs = StatNeeds { channel: true, ..StatNeeds::default() };
    let mut stats = StatSet::new(wide, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(&x, [TOKENS, wide]).unwrap()).unwrap();
    let a = normal(13, N * wide);
    let weights = [MatView::new(&a, [N, wide]).unwrap(); 2];
    let one = One { seen: seen(&site, &stats, &[], &[]), weights: &weights };
    let s = found(&Percentile, &one).unwrap().unwrap();
    let largest = |k: usize| x.iter().skip(k).step_by(wide).fold(0f32, |m, v| m.max(v.abs()));
    let mut sorted: Vec<f32> = (0..wide).map(largest).collect();
    sorted.sort_by(f32::total_cmp);
    let baseline = sorted[wide - 2];
    for (k, s) in s.iter().enumerate() {
        assert!((largest(k) / s - largest(k).min(baseline)).abs() < 1e-4 * baseline);
    }
}

#[test]
fn folds_cancel_out() {
    let s: Vec<f32> = (0..K).map(|k| 0.3 + k as f32 * 0.1).collect();
    let mut site = site();
    site.producer = Producer::Linear { weight: "v.weight".into(), block: K, repeat: 1 };
    let folds = smoothed(&site, &s);
    let of = |w: &str| folds.iter().filter(|f| f.weight == w).map(|f| f.side).collect::<Vec<_>>();
    assert_eq!(
        (of("a.weight"), of("v.weight"), of("v.bias")),
        (vec![Side::Input], vec![Side::Output], vec![Side::Input])
    );
    let (v, w, x) = (normal(13, K * K), normal(14, N * K), normal(15, K));
    let through = |v: &[f32], w: &[f32]| -> Vec<f64> {
        let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
        let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let h: Vec<f64> = v.chunks(K).map(|r| dot(r, &x)).collect();
        w.chunks(K).map(|r| dot(r, &h)).collect()
    };
    let folded = |m: &[f32], name: &str| -> Vec<f32> {
        let view = MatView::new(m, [m.len() / K, K]).unwrap();
        let rows = FoldedRows::new(&view, name, &folds).unwrap();
        tersor_core::read_finite(&rows, 0..m.len() / K).unwrap()
    };
    let (plain, changed) = (through(&v, &w), through(&folded(&v, "v.weight"), &folded(&w, "a.weight")));
    assert!(plain.iter().zip(changed).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn ranges_are_clipped_where_outputs_gain() {
    let x = normal(16, TOKENS * K);
    let mut w = normal(17, N * K);
    // One large weight a group, on a feature that is never large.
    w.iter_mut().skip(5).step_by(32).for_each(|v| *v = v.signum() * 6.0);
    let x: Vec<f32> = x.iter().enumerate().map(|(i, v)| if i % 32 == 5 { 0.01 * v } else { *v }).collect();
    let (stats, cx, view) = (stats(&x), Context::new(), MatView::new(&w, [N, K]).unwrap());
    let rtn = || Box::new(Rtn::new().bits(3).group(32).check().unwrap());
    let clip = OutputClip::before(rtn()).bits(3).group(Some(32)).check().unwrap();
    assert_eq!(clip.layout([N, K]).unwrap(), rtn().layout([N, K]).unwrap());
    let run = |m: &dyn Method| m.prepare(&stats, &cx).unwrap().compress(&view, 0..N, &cx).unwrap();
    let error = |op: &dyn LinearOp| {
        let back = op.decompress().unwrap();
        let d: Vec<f32> = w.iter().zip(back).map(|(a, b)| a - b).collect();
        let dot =
            |d: &[f32], x: &[f32]| d.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().powi(2);
        d.chunks(K).map(|d| x.chunks(K).map(|x| dot(d, x)).sum::<f64>()).sum::<f64>()
    };
    let (plain, cut) = (run(&*rtn()), run(&clip));
    assert!(error(&*cut.op) < 0.5 * error(&*plain.op));
    assert!(cut.report.squared_error > plain.report.squared_error, "errors are against what the weights were");
    assert!(clip.prepare(&StatSet::none(), &cx).is_err());
    assert!(OutputClip::before(rtn()).bits(9).check().is_err());
}
