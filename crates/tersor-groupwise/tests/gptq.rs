//! GPTQ against worked numbers, a plain f64 implementation, and properties from the paper.

use proptest::prelude::*;
use serde_json::Value as Json;
use tersor_core::{
    Compressed, Context, DType, Error, Isa, LinearOp, LinearOpExt, MatView, MemTensors, Method, RowSlot, StatNeeds,
    StatSet,
};
use tersor_groupwise::gptq::{Dead, Groups, OnFailure};
use tersor_groupwise::{Check, Clip, Gptq, Grid, GroupSize, GroupSpec, GroupedLinear, Rtn};

/// The type of scales for random groups: in f16 the scale of a group of one tiny value may round to 0, which is refused.
fn scales(group: usize, k: usize) -> DType {
    if group == 1 || k % group == 1 { DType::F32 } else { DType::F16 }
}

/// Returns values between -1 and 1.
fn noise(n: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8388608.0 - 1.0
    };
    (0..n).map(|_| (next() + next() + next()) / 3.0).collect()
}

/// Returns tokens with correlated features, some of them large.
fn tokens(t: usize, k: usize, salt: u64) -> Vec<f32> {
    let (base, own) = (noise(t * 4, salt), noise(t * k, salt + 1));
    let mix = noise(4 * k, salt + 2);
    (0..t * k)
        .map(|i| {
            let (r, c) = (i / k, i % k);
            let common: f32 = (0..4).map(|j| base[r * 4 + j] * mix[j * k + c]).sum();
            (common + 0.2 * own[i]) * if c % 7 == 3 { 4.0 } else { 1.0 }
        })
        .collect()
}

fn gram(x: &[f32], k: usize) -> Vec<f64> {
    let mut stats = StatSet::new(k, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0).unwrap();
    stats.observe(&MatView::new(x, [x.len() / k, k]).unwrap()).unwrap();
    stats.gram().unwrap().to_vec()
}

fn rows_of(op: &dyn LinearOp) -> Vec<f32> {
    op.decompress().unwrap()
}

/// Returns the result of GPTQ with this Hessian as the Gram matrix of more tokens than features.
fn quantized(gptq: Gptq, m: &MatView<'_, f32>, h: &[f64]) -> tersor_core::Result<Compressed> {
    let k = m.shape()[1];
    let mut stats = StatSet::new(k, StatNeeds::none(), 0, 0)?;
    stats.observe(&MatView::new(&vec![1.0; k * k], [k, k])?)?;
    let (op, report) = gptq.quantize(m, &stats.with_gram(h.to_vec())?)?;
    Ok(Compressed { op, report })
}

/// Returns `tr (W - Ŵ) H (W - Ŵ)ᵀ` in f64.
fn error(w: &[f32], got: &[f32], h: &[f64], k: usize) -> f64 {
    let d: Vec<f64> = w.iter().zip(got).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let row = |d: &[f64]| (0..k * k).map(|i| d[i / k] * h[i] * d[i % k]).sum::<f64>();
    d.chunks_exact(k).map(row).sum()
}

fn bytes(op: &dyn LinearOp) -> MemTensors {
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    file
}

/// Returns the result of the algorithm as in the paper, one column at a time over whole rows, in f64.
fn plain(w: &[f32], k: usize, h: &[f64], spec: &GroupSpec, order: &[usize], groups: Groups) -> Vec<f32> {
    let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
    let damped: Vec<f64> = (0..k * k)
        .map(|i| h[order[i / k] * k + order[i % k]] + if i / k == i % k { 0.01 * mean } else { 0.0 })
        .collect();
    let u = tersor_linalg::inverse_factor(&damped, k).unwrap();
    let (isa, width) = (Isa::SCALAR, spec.group().width(k));
    let mut out = vec![0f32; w.len()];
    for (row, out) in w.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
        let mut now: Vec<f64> = order.iter().map(|&c| f64::from(row[c])).collect();
        let params_of =
            |values: &[f64]| spec.quant_params(isa, &values.iter().map(|v| *v as f32).collect::<Vec<_>>()).unwrap();
        let natural: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let mut params: Vec<_> = natural.chunks(width).map(params_of).collect();
        for i in 0..k {
            let dynamic = groups == Groups::Dynamic && width < k;
            if dynamic && i % width == 0 {
                params[i / width] = params_of(&now[i..(i + width).min(k)]);
            }
            let fit = params[if dynamic { i / width } else { order[i] / width }];
            let (lo, hi) = spec.grid().codes(spec.bits()).into_inner();
            let code = ((now[i] / f64::from(fit.scale)).round_ties_even() + f64::from(fit.zero))
                .clamp(f64::from(lo), f64::from(hi));
            let value = (code - f64::from(fit.zero)) * f64::from(fit.scale);
            let e = (now[i] - value) / u[i * k + i];
            (i + 1..k).for_each(|j| now[j] -= e * u[i * k + j]);
            out[order[i]] = value as f32;
        }
    }
    out
}

#[test]
fn codes_equal_worked_numbers() {
    let golden: Json = serde_json::from_str(include_str!("golden/gptq_small.json")).unwrap();
    let table = |key: &str| -> Vec<f64> {
        let rows = golden[key].as_array().unwrap().iter();
        rows.flat_map(|r| r.as_array().unwrap().iter().map(|v| v.as_f64().unwrap())).collect()
    };
    let (x, w) = (table("X_tokens_by_features"), table("W_out_by_in"));
    let w: Vec<f32> = w.iter().map(|v| *v as f32).collect();
    let h = tersor_linalg::syrk(&x, [24, 8]).unwrap();
    let m = MatView::new(&w, [3, 8]).unwrap();
    for (key, sse, act_order) in [("q_gptq", "gptq", false), ("q_gptq_act_order", "gptq_act_order", true)] {
        let gptq = Gptq::new().bits(3).grid(Grid::SymNarrow).scales(DType::F32).act_order(act_order);
        let done = quantized(gptq, &m, &h).unwrap();
        let got = rows_of(&*done.op);
        let scales: Vec<f64> =
            golden["scale_per_row"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let codes: Vec<f64> = got.iter().enumerate().map(|(i, v)| (f64::from(*v) / scales[i / 8]).round()).collect();
        assert_eq!(codes, table(key), "{key}");
        let want = golden["output_sse"][sse].as_f64().unwrap();
        assert!((done.report.data_error.unwrap() / want - 1.0).abs() < 1e-4, "{:?}, {want}", done.report.data_error);
        assert!((error(&w, &got, &h, 8) / want - 1.0).abs() < 1e-4);
    }
}

#[test]
fn codes_equal_the_published_algorithm() {
    let (rows, k) = (70, 150);
    let w = noise(rows * k, 4);
    let h = gram(&tokens(600, k, 7), k);
    let m = MatView::new(&w, [rows, k]).unwrap();
    let mut by_importance: Vec<usize> = (0..k).collect();
    by_importance.sort_by(|a, b| h[b * k + b].total_cmp(&h[a * k + a]));
    for (group, act_order, groups) in [
        (None, false, Groups::Dynamic),
        (None, true, Groups::Dynamic),
        (Some(32), false, Groups::Dynamic),
        (Some(40), true, Groups::Dynamic),
        (Some(32), true, Groups::Static),
        (Some(40), false, Groups::Static),
        (Some(100), false, Groups::Dynamic),
        (Some(149), false, Groups::Dynamic),
    ] {
        for (bits, grid) in [(2, Grid::Asym), (3, Grid::SymFull), (4, Grid::Asym)] {
            let mut gptq = Gptq::new().bits(bits).grid(grid).act_order(act_order).groups(groups).block(48);
            gptq = group.map_or(gptq, |g| gptq.group(g));
            let done = quantized(gptq, &m, &h).unwrap();
            let order: Vec<usize> = if act_order { by_importance.clone() } else { (0..k).collect() };
            let (got, want) = (rows_of(&*done.op), plain(&w, k, &h, gptq.check().unwrap().spec(), &order, groups));
            // A code may fall to the other side where a value lies between two; what follows then differs too.
            let same = got.iter().zip(&want).filter(|(a, b)| (*a - *b).abs() <= 1e-5).count();
            let (a, b) = (error(&w, &got, &h, k), error(&w, &want, &h, k));
            let case = format!("group {group:?}, act-order {act_order}, {groups:?}, {bits} bits");
            assert!(same as f64 > 0.97 * got.len() as f64, "{case}: {same} of {}", got.len());
            assert!((a / b - 1.0).abs() < 0.02, "{case}: {a} and {b}");
            assert!((done.report.data_error.unwrap() / a - 1.0).abs() < 2e-3, "{case}: {:?} and {a}", done.report);
        }
    }
}

#[test]
fn output_error_is_smaller_than_of_rounding() {
    let (rows, k) = (48, 120);
    let w = noise(rows * k, 1);
    let h = gram(&tokens(800, k, 2), k);
    let m = MatView::new(&w, [rows, k]).unwrap();
    for bits in 2..=4 {
        for group in [24, 60] {
            let rtn = error(&w, &rows_of(&Rtn::new().bits(bits).group(group).quantize(&m).unwrap().0), &h, k);
            let of = |g: Gptq| error(&w, &rows_of(&*quantized(g, &m, &h).unwrap().op), &h, k);
            let base = Gptq::new().bits(bits).group(group);
            let gptq = of(base);
            assert!(gptq < 0.6 * rtn, "{bits} bits, groups of {group}: {gptq} and {rtn}");
            assert!(of(base.act_order(true).groups(Groups::Static)) < 0.8 * rtn);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_diagonal_hessian_or_endless_damping_means_rounding(
        bits in 2u32..=8, group in 1usize..40, channel in any::<bool>(), rows in 1usize..80, k in 1usize..60, salt: u64,
        grid in prop_oneof![Just(Grid::Asym), Just(Grid::SymFull), Just(Grid::SymNarrow)],
    ) {
        let w = noise(rows * k, salt);
        let m = MatView::new(&w, [rows, k]).unwrap();
        let mut gptq = Gptq::new().bits(bits).grid(grid).block(16);
        let mut rtn = Rtn::new().bits(bits).grid(grid);
        if !channel {
            let scales = scales(group, k);
            (gptq, rtn) = (gptq.group(group).scales(scales), rtn.group(group).scales(scales));
        }
        let want = bytes(&rtn.quantize(&m).unwrap().0);
        let diagonal: Vec<f64> = (0..k * k).map(|i| if i / k == i % k { 1.0 + i as f64 } else { 0.0 }).collect();
        let run = |g: Gptq, h: &[f64]| bytes(&*quantized(g, &m, h).unwrap().op);
        prop_assert_eq!(&run(gptq, &diagonal), &want);
        prop_assert_eq!(&run(gptq.act_order(true).groups(Groups::Static), &diagonal), &want);
        prop_assert_eq!(&run(gptq.damping(1e20), &gram(&tokens(50, k, salt), k)), &want);
    }

    #[test]
    fn layout_bits_and_bytes_agree_and_blocks_of_rows_write_the_whole(
        bits in 2u32..=8, group in 1usize..40, act_order in any::<bool>(), units in 1usize..4, rows in 1usize..200,
        k in 1usize..40, salt: u64,
    ) {
        let w = noise(rows * k, salt);
        let m = MatView::new(&w, [rows, k]).unwrap();
        let method = Gptq::new().bits(bits).group(group).scales(scales(group, k)).act_order(act_order).check().unwrap();
        let mut stats = StatSet::new(k, method.needs(), 0, 0).unwrap();
        stats.observe(&MatView::new(&tokens(90, k, salt), [90, k]).unwrap()).unwrap();
        let cx = Context::new();
        let prepared = method.prepare(&stats, &cx).unwrap();
        let whole = prepared.compress(&m, 0..rows, &cx).unwrap();
        let file = bytes(&*whole.op);
        prop_assert_eq!(method.layout([rows, k]).unwrap().bits().unwrap(), whole.op.storage_bits());
        prop_assert_eq!(whole.op.storage_bits(), 8 * file.bytes() as u64);
        let mut parts = MemTensors::new();
        for first in (0..rows).step_by(64 * units) {
            let done = prepared.compress(&m, first..(first + 64 * units).min(rows), &cx).unwrap();
            done.op.save_block("w", RowSlot { first, total: rows }, &mut parts).unwrap();
        }
        prop_assert_eq!(&parts, &file);
        let again = tersor_groupwise::registry().load(&whole.op.spec(), "w", &file).unwrap();
        prop_assert_eq!(rows_of(&*again), rows_of(&*whole.op));
    }
}

#[test]
fn one_two_and_three_threads_write_the_same_bytes() {
    let (rows, k) = (300, 200);
    let (w, h) = (noise(rows * k, 1), gram(&tokens(400, k, 2), k));
    let m = MatView::new(&w, [rows, k]).unwrap();
    let run = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let gptq = Gptq::new().bits(3).group(64).clip(Clip::Search { norm: 2.4 });
        pool.install(|| bytes(&*quantized(gptq, &m, &h).unwrap().op))
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}

#[test]
fn results_do_not_depend_on_the_block_size() {
    let (rows, k) = (64, 160);
    let (w, h) = (noise(rows * k, 1), gram(&tokens(500, k, 2), k));
    let m = MatView::new(&w, [rows, k]).unwrap();
    let of = |block: usize| {
        let done = quantized(Gptq::new().bits(3).group(40).block(block), &m, &h).unwrap();
        done.report.data_error.unwrap()
    };
    let one = of(1);
    for block in [7, 40, 128, 1000] {
        assert!((of(block) / one - 1.0).abs() < 0.01, "{block}");
    }
}

#[test]
fn dead_features_are_zeroed_or_kept_and_counted() {
    let (rows, k) = (5, 12);
    let w = noise(rows * k, 3);
    let m = MatView::new(&w, [rows, k]).unwrap();
    let mut x = tokens(60, k, 5);
    x.iter_mut().enumerate().filter(|(i, _)| [2, 9].contains(&(i % k))).for_each(|(_, v)| *v = 0.0);
    let h = gram(&x, k);
    let run = |dead| quantized(Gptq::new().bits(4).dead(dead), &m, &h).unwrap();
    let (zero, keep) = (run(Dead::Zero), run(Dead::Keep));
    assert_eq!((zero.report.dead_columns, keep.report.dead_columns), (2, 2));
    let (a, b) = (rows_of(&*zero.op), rows_of(&*keep.op));
    for r in 0..rows {
        assert!(a[r * k + 2] == 0.0 && a[r * k + 9] == 0.0);
        assert!((b[r * k + 2] - w[r * k + 2]).abs() < 0.1);
    }
    // Errors of dead features do not reach the outputs.
    for (done, got) in [(&zero, &a), (&keep, &b)] {
        let (found, want) = (done.report.data_error.unwrap(), error(&w, got, &h, k));
        assert!((found / want - 1.0).abs() < 1e-3, "{found} {want}");
    }
    let none = quantized(Gptq::new().bits(4), &m, &vec![0.0; k * k]).unwrap();
    assert_eq!(none.report.dead_columns, k);
    assert!(rows_of(&*none.op).iter().all(|v| *v == 0.0));
}

#[test]
fn invalid_hessians_are_refused_or_fall_back() {
    let (rows, k) = (4, 6);
    let w = noise(rows * k, 3);
    let m = MatView::new(&w, [rows, k]).unwrap();
    let gptq = Gptq::new().bits(4);
    let fails = |h: &[f64]| gptq.check().unwrap().factor(h, k).unwrap_err();
    let identity: Vec<f64> = (0..k * k).map(|i| f64::from(u8::from(i / k == i % k))).collect();
    let with = |i: usize, v: f64| {
        let mut h = identity.clone();
        h[i] = v;
        h
    };
    assert!(matches!(fails(&with(3, f64::NAN)), Error::NonFinite { row: 0, col: 3, .. }));
    assert!(fails(&with(3, 0.5)).to_string().contains("not symmetric"));
    assert!(fails(&with(7, -1.0)).to_string().contains("diagonal"));
    assert!(matches!(fails(&identity[1..]), Error::Shape { .. }));
    let factor = gptq.check().unwrap().factor(&[1.0], 1).unwrap();
    assert!(gptq.check().unwrap().quantize_with(&m, &factor, &Context::new()).is_err(), "a factor for other features");
    let ordered = gptq.act_order(true).check().unwrap();
    for (factor, method) in [
        (&ordered.factor(&identity, k).unwrap(), &gptq.check().unwrap()),
        (&gptq.check().unwrap().factor(&identity, k).unwrap(), &ordered),
    ] {
        let e = method.quantize_with(&m, factor, &Context::new()).map(|_| ()).unwrap_err();
        assert!(matches!(e, Error::Order { .. }), "a factor of another order: {e}");
    }

    // Rank 1: damping makes it definite. Indefinite beyond damping: round-to-nearest, said so; or an error.
    let one = quantized(gptq, &m, &vec![1.0; k * k]).unwrap();
    assert!(one.report.fallbacks.is_empty() && one.report.damping == Some(0.01));
    let mut slight = identity.clone();
    (slight[1], slight[6]) = (1.05, 1.05);
    let slight = quantized(gptq, &m, &slight).unwrap();
    assert_eq!(slight.report.damping, Some(0.08), "doubled until it serves");
    let mut bad = identity.clone();
    (bad[1], bad[6]) = (9.0, 9.0);
    let fallen = quantized(gptq, &m, &bad).unwrap();
    assert_eq!(bytes(&*fallen.op), bytes(&Rtn::new().bits(4).quantize(&m).unwrap().0));
    assert!(fallen.report.fallbacks[0].contains("rounded to nearest"), "{:?}", fallen.report);
    let (found, want) = (fallen.report.data_error.unwrap(), error(&w, &rows_of(&*fallen.op), &bad, k));
    assert!((found - want).abs() < 1e-5 * want.abs().max(1.0), "{found} {want}");
    let e = quantized(gptq.on_failure(OnFailure::Error), &m, &bad).map(|_| ()).unwrap_err();
    let Error::NotPositiveDefinite { damping_tried, .. } = e else { panic!("{e}") };
    assert_eq!(damping_tried, [0.01, 0.02, 0.04, 0.08, 0.16]);
}

#[test]
fn statistics_and_parameters_are_checked() {
    let method = Gptq::new().check().unwrap();
    let cx = Context::new();
    let prepare = |stats: &StatSet| method.prepare(stats, &cx).map(|_| ()).unwrap_err().to_string();
    assert!(prepare(&StatSet::none()).contains("XᵀX"));
    let needs = method.needs();
    assert!(prepare(&StatSet::new(4, needs, 0, 0).unwrap()).contains("observed no token"));
    let mut other = StatSet::new(4, StatNeeds { channel: true, ..StatNeeds::default() }, 0, 0).unwrap();
    other.observe(&MatView::new(&[1.0; 8], [2, 4]).unwrap()).unwrap();
    assert!(prepare(&other).contains("XᵀX"));
    // Fewer tokens than features: allowed, and said.
    let mut few = StatSet::new(4, needs, 0, 0).unwrap();
    few.observe(&MatView::new(&[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0], [2, 4]).unwrap()).unwrap();
    let w = noise(12, 1);
    let m = MatView::new(&w, [3, 4]).unwrap();
    let done = method.prepare(&few, &cx).unwrap().compress(&m, 0..3, &cx).unwrap();
    assert!(done.report.fallbacks[0].contains("rank 2"), "{:?}", done.report.fallbacks);
    let h = few.gram().unwrap();
    let energy = error(&w, &[0.0; 12], h, 4);
    assert!((done.report.data_energy.unwrap() / energy - 1.0).abs() < 1e-5);

    for bad in [
        Gptq::new().bits(1),
        Gptq::new().bits(9),
        Gptq::new().group(0),
        Gptq::new().damping(0.0),
        Gptq::new().damping(f64::NAN),
        Gptq::new().damping(-0.01),
        Gptq::new().block(0),
        Gptq::new().scales(DType::I8),
        Gptq::new().clip(Clip::Search { norm: 0.5 }),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    assert!(matches!(method.spec().group(), GroupSize::Channel));
    let empty = MatView::new(&[] as &[f32], [0, 4]).unwrap();
    assert_eq!(quantized(Gptq::new(), &empty, h).unwrap().op.storage_bits(), 0);
    assert!(
        GroupedLinear::from_codes(
            *method.spec(),
            [1, 2],
            &[0, 16],
            &[tersor_kernels::affine::Affine { scale: 1.0, zero: 0 }]
        )
        .is_err()
    );
}
