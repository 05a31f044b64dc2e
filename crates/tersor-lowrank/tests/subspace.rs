//! Principal subspaces: the theorem of arXiv 2412.14363, its ordering of errors, and the method over other methods.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor_core::*;
use tersor_groupwise::{Gptq, Grid, Rtn};
use tersor_linalg::{gaussian, matmul, orthogonal};
use tersor_lowrank::{Blocks, Subspaces, basis, principal_rotation, widths};
use tersor_operators::{ActQuant, Dense, QuantizedInputs, WithActivations, registry};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Returns Gaussian rows with a decaying spectrum in a random basis, and `outliers` features that are `size` times as large.
fn inputs(n: usize, d: usize, decay: f64, outliers: usize, size: f64, seed: u64) -> Vec<f32> {
    let r = &mut rng(seed);
    let mut x = gaussian(n * d, r);
    for row in x.chunks_exact_mut(d) {
        row.iter_mut().enumerate().for_each(|(i, v)| *v *= (i as f64 + 1.0).powf(-decay));
    }
    let mut x = matmul(&x, [n, d], &orthogonal(d, r).unwrap(), d).unwrap();
    for row in x.chunks_exact_mut(d) {
        row.iter_mut().step_by((d / outliers.max(1)).max(1)).take(outliers).for_each(|v| *v *= size);
    }
    x.into_iter().map(|v| v as f32).collect()
}

fn stats(x: &[f32], d: usize) -> StatSet {
    let mut s = StatSet::new(d, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0).unwrap();
    s.observe(&MatView::new(x, [x.len() / d, d]).unwrap()).unwrap();
    s
}

fn gram(x: &[f32], d: usize) -> Vec<f64> {
    stats(x, d).require_gram().unwrap().to_vec()
}

/// Returns rows in the basis whose directions are the rows of `u`.
fn rotated(x: &[f32], u: &[f64], d: usize) -> Vec<f32> {
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let t: Vec<f64> = (0..d * d).map(|i| u[i % d * d + i / d]).collect();
    matmul(&x, [x.len() / d, d], &t, d).unwrap().into_iter().map(|v| v as f32).collect()
}

/// Returns rows after symmetric per-token rounding, columns `0..d - r` to `low` bits and the rest to `high` bits.
fn rounded(x: &[f32], d: usize, r: usize, low: u32, high: u32) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(d) {
        let (l, h) = row.split_at_mut(d - r);
        for (part, bits) in [(l, low), (h, high)] {
            let max = ((1u32 << (bits - 1)) - 1) as f32;
            let s = part.iter().fold(0f32, |m, v| m.max(v.abs())) / max;
            part.iter_mut().for_each(|v| *v = if s > 0.0 { (*v / s).round_ties_even() * s } else { 0.0 });
        }
    }
    out
}

fn mean_norm(x: &[f32], d: usize) -> f64 {
    x.chunks_exact(d).map(|r| metrics::energy(r).sqrt()).sum::<f64>() / (x.len() / d) as f64
}

#[test]
fn the_basis_is_orthogonal_and_its_variances_rise() {
    let (d, r) = (48, 6);
    let x = inputs(400, d, 0.7, 3, 5.0, 1);
    let gram = gram(&x, d);
    let check = |u: &[f64]| {
        for i in 0..d {
            for j in 0..d {
                let dot: f64 = (0..d).map(|c| u[i * d + c] * u[j * d + c]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-10);
            }
        }
    };
    let plain = basis(&gram, &Blocks::identity(&[d - r, r])).unwrap();
    check(&plain);
    let variances = |u: &[f64]| -> Vec<f64> {
        let y = rotated(&x, u, d);
        (0..d).map(|c| y.iter().skip(c).step_by(d).map(|v| f64::from(*v).powi(2)).sum()).collect()
    };
    assert!(variances(&plain).windows(2).all(|w| w[0] <= w[1] * 1.0001));
    let blocks = Blocks::random(&[d - r, r], &mut rng(2)).unwrap();
    let mixed = basis(&gram, &blocks).unwrap();
    check(&mixed);
    // Blocks mix inside the subspaces and nowhere else, so what lies in each is the same.
    let (a, b) = (variances(&plain), variances(&mixed));
    let high = |v: &[f64]| v[d - r..].iter().sum::<f64>();
    assert!((high(&a) / high(&b) - 1.0).abs() < 1e-5);
    for i in 0..d {
        for j in 0..d {
            let dot: f64 = (0..d).map(|c| plain[i * d + c] * mixed[j * d + c]).sum();
            assert!((i < d - r) == (j < d - r) || dot.abs() < 1e-10);
        }
    }
    // Inside the high subspace coefficients are alike.
    let spread = |v: &[f64]| v[d - r..].iter().fold(0f64, |m, v| m.max(*v)) / high(v);
    assert!(spread(&b) < spread(&a));
    assert!(principal_rotation(&gram, &Blocks::identity(&[d])).unwrap().dim() == d);
    assert!(principal_rotation(&gram, &Blocks::identity(&[d - 1])).is_err());
    let needs = StatNeeds::none().with_gram();
    assert!(StatSet::new(4, needs, 0, 0).unwrap().observe(&MatView::new(&[1.0; 6], [2, 3]).unwrap()).is_err());
    let bad = [1.0, f32::NAN];
    assert!(StatSet::new(2, needs, 0, 0).unwrap().observe(&MatView::new(&bad, [1, 2]).unwrap()).is_err());
}

/// Theorem 4.2: for Gaussian coefficients `E‖x - Q(x)‖ <= k_L E‖x‖ - (k_L - k_H) E‖x P_h‖`, smallest where `P_h` are the principal directions.
#[test]
fn the_projection_is_optimal_on_gaussians() {
    let (d, r, n) = (64, 8, 2000);
    let kappa =
        |n: usize, bits: u32| (std::f64::consts::PI * (n as f64).ln()).sqrt() / f64::from((1 << (bits - 1)) - 1);
    for decay in [0.3, 0.8, 1.5] {
        let x = inputs(n, d, decay, 0, 1.0, 7);
        let (k_low, k_high) = (kappa(d - r, 4), kappa(r, 8));
        let blocks = Blocks::random(&[d - r, r], &mut rng(3)).unwrap();
        let at = |u: &[f64]| {
            let y = rotated(&x, u, d);
            let high: Vec<f32> = y.chunks_exact(d).flat_map(|row| row[d - r..].to_vec()).collect();
            let lost: Vec<f32> = y.iter().zip(rounded(&y, d, r, 4, 8)).map(|(a, b)| a - b).collect();
            let bound = k_low * mean_norm(&y, d) - (k_low - k_high) * mean_norm(&high, r);
            (mean_norm(&lost, d), bound)
        };
        let (error, bound) = at(&basis(&gram(&x, d), &blocks).unwrap());
        assert!(error <= bound, "{decay}: {error} {bound}");
        for seed in 0..6 {
            let (other, other_bound) = at(&orthogonal(d, &mut rng(100 + seed)).unwrap());
            assert!(other <= other_bound, "{decay}: {other} {other_bound}");
            assert!(bound < other_bound && error < other, "{decay}: {error} {other}");
        }
    }
}

#[test]
fn errors_have_the_order_of_the_paper() {
    // A decaying spectrum and a few outlier channels: d = 32, r = 4 as in the specification of the method.
    let (d, r, n, out) = (32, 4, 4000, 24);
    let x = inputs(n, d, 0.6, 2, 12.0, 11);
    let w: Vec<f32> = gaussian(out * d, &mut rng(5)).into_iter().map(|v| v as f32 / 6.0).collect();
    let random = orthogonal(d, &mut rng(6)).unwrap();
    let blocks = Blocks::random(&[d - r, r], &mut rng(8)).unwrap();
    let resq = basis(&gram(&x, d), &blocks).unwrap();
    // The channels of largest magnitude apart, a rotation of the others (and of them): QUIK with a rotation.
    let quik = {
        let size = |c: usize| x.iter().skip(c).step_by(d).fold(0f32, |m, v| m.max(v.abs()));
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|a, b| size(*a).total_cmp(&size(*b)));
        let mut diagonal = vec![0f64; d * d];
        for (place, c) in order.into_iter().enumerate() {
            diagonal[c * d + c] = place as f64 + 1.0;
        }
        basis(&diagonal, &blocks).unwrap()
    };
    let identity: Vec<f64> = (0..d * d).map(|i| f64::from(u8::from(i / d == i % d))).collect();
    let errors = |u: &[f64], r: usize| {
        let (y, v) = (rotated(&x, u, d), rotated(&w, u, d));
        let (yq, vq) = (rounded(&y, d, r, 4, 8), rounded(&v, d, r, 4, 8));
        let product = |a: &[f32], b: &[f32]| -> Vec<f32> {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            a.chunks_exact(d).flat_map(|a| b.chunks_exact(d).map(move |b| dot(a, b))).collect()
        };
        let of = |a: &[f32], b: &[f32]| metrics::squared_error(a, b) / metrics::energy(a);
        [of(&y, &yq), of(&product(&y, &v), &product(&yq, &vq))]
    };
    let all = [errors(&resq, r), errors(&quik, r), errors(&random, 0), errors(&identity, 0)];
    for i in 0..2 {
        let found: Vec<f64> = all.iter().map(|e| e[i]).collect();
        assert!(found.windows(2).all(|w| w[0] < w[1]), "{found:?}");
    }
    // All of it at eight bits is better still.
    assert!(errors(&resq, d)[0] < all[0][0]);
}

fn gptq(bits: u32, damping: f64) -> Box<dyn Method> {
    Box::new(Gptq::new().bits(bits).grid(Grid::SymNarrow).scales(DType::F32).damping(damping).check().unwrap())
}

fn made(method: &dyn Method, stats: &StatSet, w: &[f32], shape: [usize; 2]) -> Compressed {
    let cx = Context::new();
    let view = MatView::new(w, shape).unwrap();
    method.prepare(stats, &cx).unwrap().compress(&view, 0..shape[0], &cx).unwrap()
}

fn rows_of(op: &dyn LinearOp) -> Vec<f32> {
    op.decompress().unwrap()
}

/// Returns the result of GPTQ with two grids for each row, column by column in f64, without lazy updates.
#[test]
fn two_spans_of_gptq_equal_one_gptq_with_two_grids() {
    let (rows, d, r) = (9, 24, 6);
    let x = inputs(300, d, 0.5, 2, 4.0, 21);
    let w: Vec<f32> = gaussian(rows * d, &mut rng(22)).into_iter().map(|v| v as f32).collect();
    let tiny = 1e-7;
    let method = Subspaces::new().part(0.75, gptq(3, tiny)).part(0.25, gptq(6, tiny)).damping(tiny).check().unwrap();
    let s = stats(&x, d);
    let done = made(&method, &s, &w, [rows, d]);
    let gram = s.gram().unwrap();
    let mean = (0..d).map(|i| gram[i * d + i]).sum::<f64>() / d as f64;
    let h: Vec<f64> = (0..d * d).map(|i| gram[i] + if i / d == i % d { tiny * mean } else { 0.0 }).collect();
    let u = tersor_linalg::inverse_factor(&h, d).unwrap();
    let mut want = Vec::new();
    for row in w.chunks_exact(d) {
        let mut row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let mut scale = 0f64;
        for c in 0..d {
            let max = if c < d - r { 3.0 } else { 31.0 };
            // Each grid is fitted to the weights as earlier columns have left them.
            if c == 0 || c == d - r {
                let end = if c == 0 { d - r } else { d };
                scale = row[c..end].iter().fold(0f64, |m, v| m.max(v.abs())) / max;
            }
            let back = (row[c] / scale).round_ties_even().clamp(-max, max) * scale;
            let e = (row[c] - back) / u[c * d + c];
            for j in c + 1..d {
                row[j] -= e * u[c * d + j];
            }
            want.push(back as f32);
        }
    }
    let found = rows_of(&*done.op);
    let apart = found.iter().zip(&want).filter(|(a, b)| (**a - **b).abs() > 1e-3).count();
    assert!(apart <= rows * d / 50, "{apart} of {} differ", rows * d);
    // The report is of the whole matrix.
    let lost: Vec<f64> = w.iter().zip(&found).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let product = matmul(&lost, [rows, d], gram, d).unwrap();
    let error: f64 = product.iter().zip(&lost).map(|(a, b)| a * b).sum();
    assert!((done.report.data_error.unwrap() / error - 1.0).abs() < 1e-3);
    // What is made up for counts: the same parts alone lose more.
    let alone = |run: std::ops::Range<usize>, bits| {
        let part: Vec<f32> = w.chunks_exact(d).flat_map(|row| row[run.clone()].to_vec()).collect();
        rows_of(&*made(&*gptq(bits, tiny), &s.columns(run.clone()).unwrap(), &part, [rows, run.len()]).op)
    };
    let (a, b) = (alone(0..d - r, 3), alone(d - r..d, 6));
    let apart: Vec<f64> = (0..rows)
        .flat_map(|i| [&a[i * (d - r)..(i + 1) * (d - r)], &b[i * r..(i + 1) * r]].concat())
        .zip(&w)
        .map(|(b, w)| f64::from(*w) - f64::from(b))
        .collect();
    let product = matmul(&apart, [rows, d], gram, d).unwrap();
    assert!(product.iter().zip(&apart).map(|(a, b)| a * b).sum::<f64>() > 1.1 * error);
}

#[test]
fn spans_of_any_methods_are_saved_and_loaded() {
    let (rows, d) = (70, 40);
    let x = inputs(200, d, 0.5, 2, 4.0, 31);
    let w: Vec<f32> = gaussian(rows * d, &mut rng(32)).into_iter().map(|v| v as f32).collect();
    let s = stats(&x, d);
    let rtn = |bits: u32| Box::new(Rtn::new().bits(bits).check().unwrap()) as Box<dyn Method>;
    let at = |bits: u32, method: Box<dyn Method>| -> Box<dyn Method> {
        Box::new(WithActivations::new(ActQuant::asymmetric(bits, 1).unwrap(), method))
    };
    let nf4 = || Box::new(tersor_blockwise::Blockwise::nf4().check().unwrap()) as Box<dyn Method>;
    let two = |a: Box<dyn Method>, b: Box<dyn Method>| Subspaces::new().part(0.875, a).part(0.125, b).check().unwrap();
    let cases: Vec<Box<dyn Method>> = vec![
        Box::new(two(at(4, gptq(4, 0.01)), at(8, gptq(8, 0.01)))),
        Box::new(two(rtn(4), rtn(8))),
        Box::new(two(gptq(4, 0.01), rtn(8))),
        Box::new(two(nf4(), gptq(8, 0.01))),
        // The paper's variant of equal bits: the lowest directions at 2, the highest at 6.
        Box::new(Subspaces::new().part(0.125, rtn(2)).part(0.75, rtn(4)).part(0.125, rtn(6)).check().unwrap()),
        Box::new(
            tersor_lowrank::Corrected::lqer(Box::new(two(rtn(3), rtn(6))))
                .rank(tersor_lowrank::Rank::Fixed(4))
                .check()
                .unwrap(),
        ),
    ];
    for method in cases {
        let given = if method.needs().any_data() { &s } else { &StatSet::none() };
        let done = made(&*method, given, &w, [rows, d]);
        let mut file = MemTensors::new();
        done.op.save("w", &mut file).unwrap();
        let layout = method.layout([rows, d]).unwrap();
        assert_eq!(layout.bits().unwrap(), done.op.storage_bits(), "{}", method.name());
        assert_eq!(file.bytes() as u64 * 8, done.op.storage_bits());
        let again = registry().load(&done.op.spec(), "w", &file).unwrap();
        assert_eq!(rows_of(&*again), rows_of(&*done.op));
        let run = |op: &dyn LinearOp| {
            let input = Input::new(&x[..5 * d], [5, d]).unwrap();
            let mut y = vec![0f32; 5 * rows];
            op.apply(&input, MatViewMut::new(&mut y, [5, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
            y
        };
        let (found, exact) = (run(&*again), run(&Dense::new(w.clone(), [rows, d], DType::F32).unwrap()));
        assert_eq!(found, run(&*done.op));
        assert!(metrics::cosine(&found, &exact) > 0.97, "{} {}", method.name(), metrics::cosine(&found, &exact));
        if method.extent() == Extent::Blocks {
            // In blocks of rows, too.
            let cx = Context::new();
            let ready = method.prepare(given, &cx).unwrap();
            let view = MatView::new(&w, [rows, d]).unwrap();
            let mut cut = MemTensors::new();
            for range in [64..rows, 0..64] {
                let slot = RowSlot { first: range.start, total: rows };
                ready.compress(&view, range, &cx).unwrap().op.save_block("w", slot, &mut cut).unwrap();
            }
            assert_eq!(file, cut, "{}", method.name());
        }
    }
}

/// Integer products with one offset for each token against the same products in floats.
#[test]
fn asymmetric_activations_multiply_as_their_values() {
    let (rows, d, tokens) = (33, 64, 6);
    let x: Vec<f32> = inputs(tokens, d, 0.2, 0, 1.0, 41).iter().map(|v| v.abs() * 3.0 - 0.1).collect();
    let w: Vec<f32> = gaussian(rows * d, &mut rng(42)).into_iter().map(|v| v as f32).collect();
    for bits in [4, 8] {
        let act = ActQuant::asymmetric(bits, 1).unwrap();
        let op = made(&Rtn::new().bits(4).grid(Grid::SymFull).check().unwrap(), &StatSet::none(), &w, [rows, d]).op;
        let back = rows_of(&*op);
        let max = ((1u32 << bits) - 1) as f32;
        let mut want = vec![0f64; tokens * rows];
        for t in 0..tokens {
            let row = &x[t * d..(t + 1) * d];
            let (lo, hi) = row.iter().fold((0f32, 0f32), |(a, b), v| (a.min(*v), b.max(*v)));
            let s = (hi - lo) / max;
            let zero = (-lo / s).round_ties_even();
            for r in 0..rows {
                let value = |c: usize| ((row[c] / s).round_ties_even() + zero).clamp(0.0, max) - zero;
                want[t * rows + r] = (0..d).map(|c| f64::from(value(c) * s) * f64::from(back[r * d + c])).sum();
            }
        }
        let op = QuantizedInputs::new(act, op).unwrap();
        for exec in [Exec::new(), Exec::serial().with_isa(Isa::SCALAR)] {
            let mut y = vec![1f32; tokens * rows];
            let input = Input::new(&x, [tokens, d]).unwrap();
            op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Add, &exec).unwrap();
            let found: Vec<f32> = y.iter().map(|v| v - 1.0).collect();
            let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
            let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
            assert!(error < 1e-4, "{bits}: {error}");
        }
    }
}

#[test]
fn shares_are_checked() {
    let rtn = || Box::new(Rtn::new().bits(4).check().unwrap()) as Box<dyn Method>;
    for bad in [vec![], vec![0.5], vec![0.5, 0.6], vec![1.5, -0.5], vec![f64::NAN, 1.0], vec![0.0, 1.0]] {
        let parts = bad.iter().fold(Subspaces::new(), |s, share| s.part(*share, rtn()));
        assert!(parts.check().is_err(), "{bad:?}");
    }
    assert!(Subspaces::new().part(1.0, rtn()).damping(0.0).check().is_err());
    assert!(Subspaces::new().part(1.0, rtn()).heads(0).check().is_err());
    // Four heads of twelve: eleven features of each, then one of each.
    let heads = Subspaces::new().part(0.875, rtn()).part(0.125, rtn()).heads(4).check().unwrap();
    let sizes: Vec<usize> = heads
        .layout([3, 48])
        .unwrap()
        .tensors
        .iter()
        .filter(|t| t.0.ends_with("codes"))
        .map(|t| t.1.shape[1])
        .collect();
    assert_eq!(sizes, [22, 2]);
    assert!(heads.layout([3, 50]).is_err());
    assert_eq!(widths([0.875, 0.125], 576), [504, 72]);
    assert_eq!(widths([0.125, 0.75, 0.125], 10), [1, 8, 1]);
    assert_eq!(widths([0.875, 0.125], 3), [3, 0]);
    // One share of all is the method alone; a share of no column is left out.
    let w: Vec<f32> = gaussian(6, &mut rng(1)).into_iter().map(|v| v as f32).collect();
    let whole = made(&Subspaces::new().part(1.0, rtn()).check().unwrap(), &StatSet::none(), &w, [2, 3]);
    assert_eq!(rows_of(&*whole.op), rows_of(&*made(&*rtn(), &StatSet::none(), &w, [2, 3]).op));
    let split =
        made(&Subspaces::new().part(0.875, rtn()).part(0.125, rtn()).check().unwrap(), &StatSet::none(), &w, [2, 3]);
    assert_eq!(rows_of(&*split.op), rows_of(&*whole.op));
}

#[test]
fn dropped_weights_stay_zero_in_every_span() {
    let (rows, k) = (70, 24);
    let noise =
        |n: usize, salt: usize| -> Vec<f32> { (0..n).map(|i| ((i * 37 + salt) as f32 * 0.618).sin()).collect() };
    let needs = StatNeeds { gram: true, ..StatNeeds::default() };
    let mut stats = StatSet::new(k, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(&noise(k * 60, 3), [60, k]).unwrap()).unwrap();
    let (w, cx) = (noise(rows * k, 1), Context::new());
    let view = MatView::new(&w, [rows, k]).unwrap();
    let mask = Mask::from_fn([rows, k], |r, c| (r * 7 + c * 3) % 5 > 1).unwrap();
    let rtn = |bits| Box::new(Rtn::new().bits(bits).check().unwrap()) as Box<dyn Method>;
    let gptq = || Box::new(tersor_groupwise::Gptq::new().group(8).check().unwrap()) as Box<dyn Method>;
    for method in
        [Subspaces::new().part(0.5, rtn(3)).part(0.5, rtn(8)), Subspaces::new().part(0.5, gptq()).part(0.5, gptq())]
    {
        let method = method.check().unwrap();
        let prepared = method.prepare(&stats, &cx).unwrap();
        let masked = Masked::new(&view, &mask).unwrap();
        let back = prepared.compress(&masked, 0..rows, &cx).unwrap().op.decompress().unwrap();
        assert!(back.iter().enumerate().all(|(i, v)| mask.keeps(i / k, i % k) || *v == 0.0));
        assert!(back.iter().any(|v| *v != 0.0));
    }
}
