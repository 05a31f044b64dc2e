//! Factors and corrections against their theory.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor_blockwise::Blockwise;
use tersor_core::*;
use tersor_formats::peft;
use tersor_groupwise::{Gptq, Rtn};
use tersor_linalg::gaussian;
use tersor_lowrank::{Corrected, LowRank, Norm, Rank, factorize};
use tersor_operators::{ActQuant, Cast, Dense, QuantizedInputs};

fn normal(seed: u64, n: usize) -> Vec<f32> {
    gaussian(n, &mut ChaCha8Rng::seed_from_u64(seed)).into_iter().map(|v| v as f32).collect()
}

/// Returns inputs with correlated features of very different magnitudes.
fn inputs(tokens: usize, features: usize) -> Vec<f32> {
    let mut x = normal(3, tokens * features);
    for row in x.chunks_mut(features) {
        for i in 1..features {
            row[i] = 0.6 * row[i] + 0.5 * row[i - 1];
        }
        row.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 9 == 2 { 12.0 } else { 0.5 });
    }
    x
}

fn stats(x: &[f32], features: usize) -> StatSet {
    let needs = StatNeeds { channel: true, gram: true, ..StatNeeds::default() };
    let mut stats = StatSet::new(features, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(x, [x.len() / features, features]).unwrap()).unwrap();
    stats
}

fn compress(method: &dyn Method, w: &[f32], shape: [usize; 2], stats: &StatSet) -> Compressed {
    let cx = Context::new();
    let prepared = method.prepare(stats, &cx).unwrap();
    prepared.compress(&MatView::new(w, shape).unwrap(), 0..shape[0], &cx).unwrap()
}

fn rows(op: &dyn LinearOp) -> Vec<f32> {
    op.decompress().unwrap()
}

/// Returns the squared error of the outputs.
fn output_error(w: &[f32], back: &[f32], cols: usize, x: &[f32]) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks(cols) {
        for (w, b) in w.chunks(cols).zip(back.chunks(cols)) {
            let d: f64 = (0..cols).map(|i| f64::from(w[i] - b[i]) * f64::from(x[i])).sum();
            sum += d * d;
        }
    }
    sum
}

fn rtn(bits: u32) -> Box<dyn Method> {
    Box::new(Rtn::new().bits(bits).group(32).check().unwrap())
}

fn exact() -> Box<dyn Method> {
    Box::new(Cast::new(DType::F32).unwrap())
}

#[test]
fn full_rank_gives_the_weights_back() {
    let (shape, w) = ([40, 56], normal(1, 40 * 56));
    let x = inputs(300, 56);
    let stats = stats(&x, 56);
    for norm in [Norm::Plain, Norm::Magnitude, Norm::Gram] {
        let how = Corrected::lqer(rtn(3)).norm(norm).rank(Rank::Fixed(1000)).factors(exact()).check().unwrap();
        let back = rows(&*compress(&how, &w, shape, &stats).op);
        assert!(w.iter().zip(&back).all(|(a, b)| (a - b).abs() < 2e-5), "{norm:?}");
        let how = LowRank::new(Rank::Fixed(40)).norm(norm).factors(exact()).check().unwrap();
        let back = rows(&*compress(&how, &w, shape, &stats).op);
        assert!(w.iter().zip(&back).all(|(a, b)| (a - b).abs() < 2e-5), "{norm:?}");
    }
}

#[test]
fn each_norm_is_best_in_its_own_error() {
    let (shape, w) = ([48, 64], normal(1, 48 * 64));
    let x = inputs(400, 64);
    let stats = stats(&x, 64);
    let channel = stats.channel().unwrap();
    let base = rows(&*compress(&*rtn(3), &w, shape, &StatSet::none()).op);
    let of = |norm, k| {
        let how = Corrected::lqer(rtn(3)).norm(norm).rank(Rank::Fixed(k)).factors(exact()).check().unwrap();
        rows(&*compress(&how, &w, shape, &stats).op)
    };
    let plain = |b: &[f32]| metrics::squared_error(&w, b);
    let magnitude = |b: &[f32]| {
        let each = |(i, (w, b)): (usize, (&f32, &f32))| (f64::from(w - b) * channel.max_mean_abs[i % 64]).powi(2);
        w.iter().zip(b).enumerate().map(each).sum::<f64>()
    };
    let output = |b: &[f32]| output_error(&w, b, 64, &x);
    let mut last = [plain(&base), magnitude(&base), output(&base)];
    for k in [1, 4, 12, 30] {
        let found = [Norm::Plain, Norm::Magnitude, Norm::Gram].map(|n| of(n, k));
        let [p, m, g] = [&found[0], &found[1], &found[2]];
        assert!(plain(p) <= plain(m) && plain(p) <= plain(g), "{k}");
        assert!(magnitude(m) <= magnitude(p) && magnitude(m) <= magnitude(g), "{k}");
        // The damping of 1 % moves the optimum a little.
        assert!(output(g) <= 1.01 * output(m) && output(m) < output(p) && output(p) < output(&base), "{k}");
        let now = [plain(p), magnitude(m), output(g)];
        assert!(now.iter().zip(&last).all(|(a, b)| a <= b), "rank {k} is no worse than less");
        last = now;
    }
}

#[test]
fn a_common_factor_of_the_inputs_does_not_matter() {
    let (shape, w, x) = ([30, 45], normal(1, 30 * 45), inputs(200, 45));
    let of = |factor: f32| {
        let x: Vec<f32> = x.iter().map(|v| v * factor).collect();
        let how = Corrected::l2qer(rtn(4)).rank(Rank::Fixed(5)).factors(exact()).check().unwrap();
        rows(&*compress(&how, &w, shape, &stats(&x, 45)).op)
    };
    assert!(of(1.0).iter().zip(of(8.0)).all(|(a, b)| (a - b).abs() < 1e-5));
    // Features that are all alike: the plain correction.
    let flat = vec![1f32; 45 * 20];
    let l2 = Corrected::l2qer(rtn(4)).rank(Rank::Fixed(5)).factors(exact()).check().unwrap();
    let plain = Corrected::lqer(rtn(4)).rank(Rank::Fixed(5)).factors(exact()).check().unwrap();
    let a = rows(&*compress(&l2, &w, shape, &stats(&flat, 45)).op);
    let b = rows(&*compress(&plain, &w, shape, &StatSet::none()).op);
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn average_bits_equal_the_paper() {
    // 4096 x 4096 with rank 32 in MXINT: 4.5 + 8.5 * 32 * 8192 / 4096^2.
    let mx = |bits| Box::new(Rtn::mxint(bits).check().unwrap()) as Box<dyn Method>;
    let how = Corrected::l2qer(mx(4)).factors(mx(8)).check().unwrap();
    let layout = how.layout([4096, 4096]).unwrap();
    let bits = layout.bits().unwrap() as f64 / (4096.0 * 4096.0);
    assert!(layout.exact && (bits - 4.6328125).abs() < 1e-9, "{bits}");
    // So many bits a weight, whatever the shape.
    for shape in [[4096, 4096], [512, 2048], [96, 40]] {
        let how = LowRank::new(Rank::Bits(1.5)).check().unwrap();
        let bits = how.layout(shape).unwrap().bits().unwrap() as f64 / (shape[0] * shape[1]) as f64;
        assert!(bits <= 1.5 && bits > 1.5 - 16.0 * (shape[0] + shape[1]) as f64 / (shape[0] * shape[1]) as f64);
    }
}

#[test]
fn rank_by_error() {
    let (shape, w) = ([50, 40], normal(1, 2000));
    for left in [0.9, 0.5, 0.1] {
        let cx = Context::new();
        let found =
            factorize(&w, shape, Norm::Plain, Rank::Error { tolerance: left, max: 40 }, 16.0, &StatSet::none(), &cx)
                .unwrap();
        let part = |rank: usize| {
            let f = factorize(&w, shape, Norm::Plain, Rank::Fixed(rank), 16.0, &StatSet::none(), &cx).unwrap();
            let mut back = vec![0f32; 2000];
            for (i, v) in back.iter_mut().enumerate() {
                *v = (0..rank).map(|k| f.up[i / 40 * rank + k] * f.down[k * 40 + i % 40]).sum();
            }
            (metrics::squared_error(&w, &back) / metrics::energy(&w)).sqrt()
        };
        assert!(part(found.rank) <= left + 1e-6 && (found.rank == 1 || part(found.rank - 1) > left - 1e-6));
    }
    let how = LowRank::new(Rank::Error { tolerance: 0.5, max: 30 }).check().unwrap();
    assert!(!how.layout(shape).unwrap().exact);
    assert!(
        compress(&how, &w, shape, &StatSet::none()).op.storage_bits() <= how.layout(shape).unwrap().bits().unwrap()
    );
}

#[test]
fn corrections_of_any_method_are_saved_loaded_and_applied() {
    let (shape, w, x) = ([64, 96], normal(1, 64 * 96), inputs(300, 96));
    let stats = stats(&x, 96);
    let bases: [(&str, Box<dyn Method>); 4] = [
        ("rtn", rtn(3)),
        ("gptq", Box::new(Gptq::new().bits(3).group(32).check().unwrap())),
        ("nf4", Box::new(Blockwise::nf4().check().unwrap())),
        ("mxint", Box::new(Rtn::mxint(3).check().unwrap())),
    ];
    let registry = tersor_operators::registry();
    for (name, base) in bases {
        let given = if base.needs().any_data() { &stats } else { &StatSet::none() };
        let alone = compress(&*base, &w, shape, given);
        let factors = Box::new(Rtn::mxint(8).check().unwrap());
        let how = Corrected::l2qer(base).rank(Rank::Fixed(8)).factors(factors).check().unwrap();
        let done = compress(&how, &w, shape, &stats);
        let layout = how.layout(shape).unwrap();
        let mut file = MemTensors::new();
        done.op.save("w", &mut file).unwrap();
        assert_eq!(layout.bits().unwrap(), 8 * file.bytes() as u64, "{name}");
        assert_eq!(done.op.storage_bits(), 8 * file.bytes() as u64, "{name}");
        for (suffix, info) in &layout.tensors {
            assert_eq!(file.info(&tensors::join("w", suffix)).unwrap(), *info, "{name}");
        }
        let back = rows(&*done.op);
        assert!(output_error(&w, &back, 96, &x) < 0.8 * output_error(&w, &rows(&*alone.op), 96, &x), "{name}");
        let reported = done.report.data_error.unwrap();
        assert!((reported / output_error(&w, &back, 96, &x) - 1.0).abs() < 1e-3, "{name}");
        let again = registry.load(&done.op.spec(), "w", &file).unwrap();
        assert_eq!(rows(&*again), back, "{name}");
        // Behind quantized activations it is what its own weights are there.
        let outputs = |op: Box<dyn LinearOp>| {
            let act = QuantizedInputs::new(ActQuant::per_token(8).unwrap(), op).unwrap();
            let (mut y, input) = (vec![0f32; 3 * 64], Input::new(&x[..3 * 96], [3, 96]).unwrap());
            act.apply(&input, MatViewMut::new(&mut y, [3, 64]).unwrap(), Write::Set, &Exec::new()).unwrap();
            y
        };
        let want = outputs(Box::new(Dense::new(back, shape, DType::F32).unwrap()));
        let scale = (metrics::energy(&want) / want.len() as f64).sqrt() as f32;
        assert!(outputs(again).iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3 * scale), "{name}");
    }
}

#[test]
fn an_adapter_holds_the_correction() {
    let (shape, w) = ([24, 36], normal(1, 24 * 36));
    let base = compress(&*rtn(2), &w, shape, &StatSet::none());
    let error: Vec<f32> = w.iter().zip(rows(&*base.op)).map(|(a, b)| a - b).collect();
    let f = factorize(&error, shape, Norm::Plain, Rank::Fixed(6), 32.0, &StatSet::none(), &Context::new()).unwrap();
    let dense = |v: &[f32], shape| Dense::new(v.to_vec(), shape, DType::F32).unwrap();
    let (up, down) = (dense(&f.up, [24, 6]), dense(&f.down, [6, 36]));
    let mut adapter = peft::Adapter::new();
    adapter.add("model.layers.0.mlp.up_proj", &up, &down).unwrap();
    adapter.add("model.layers.0.mlp.gate_proj", &dense(&f.up[..24], [24, 1]), &dense(&f.down[..36], [1, 36])).unwrap();
    assert!(adapter.add("x", &up, &up).is_err());
    let t = adapter.tensors();
    let a = t.info("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight").unwrap();
    let b = t.info("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight").unwrap();
    assert_eq!((a.shape, b.shape), (vec![6, 36], vec![24, 6]));
    let config = adapter.config("base");
    assert_eq!((&config["r"], &config["lora_alpha"]), (&6.into(), &6.into()));
    assert_eq!(config["rank_pattern"]["model.layers.0.mlp.gate_proj"], 1);
    assert_eq!(adapter.modules(), 2);
    // Factors of other shapes do not replace one of the two.
    let before = tersor_core::tensors::read_floats(
        adapter.tensors(),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        &[6, 36],
    )
    .unwrap();
    let (other, wide) = (dense(&vec![9.0; 6 * 36], [6, 36]), dense(&vec![9.0; 12 * 6], [12, 6]));
    assert!(adapter.add("model.layers.0.mlp.up_proj", &wide, &other).is_err());
    let after = tersor_core::tensors::read_floats(
        adapter.tensors(),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        &[6, 36],
    )
    .unwrap();
    assert_eq!(before, after);
}

#[test]
fn wrong_parameters_and_statistics_are_named() {
    for (rank, what) in [
        (Rank::Fixed(0), "rank"),
        (Rank::Bits(0.0), "rank_bits"),
        (Rank::Bits(f64::NAN), "rank_bits"),
        (Rank::Error { tolerance: 0.0, max: 3 }, "tolerance"),
        (Rank::Error { tolerance: 1.0, max: 3 }, "tolerance"),
        (Rank::Error { tolerance: f64::NAN, max: 3 }, "tolerance"),
        (Rank::Error { tolerance: 0.5, max: 0 }, "rank"),
    ] {
        let found = LowRank::new(rank).check().err().unwrap().to_string();
        assert!(found.contains(what), "{found}");
    }
    let gptq = Box::new(Gptq::new().bits(3).check().unwrap());
    assert!(Corrected::lqer(rtn(3)).factors(gptq).check().err().unwrap().to_string().contains("no calibration data"));
    let how = Corrected::l2qer(rtn(3)).check().unwrap();
    assert!(matches!(how.prepare(&StatSet::none(), &Context::new()).err(), Some(Error::Missing { .. })));
    let empty = StatSet::new(8, how.needs(), 0, 0).unwrap();
    assert!(how.prepare(&empty, &Context::new()).is_err());
    let other = stats(&inputs(20, 7), 7);
    let (w, cx) = (normal(1, 64), Context::new());
    let prepared = how.prepare(&other, &cx).unwrap();
    assert!(matches!(
        prepared.compress(&MatView::new(&w, [8, 8]).unwrap(), 0..8, &cx).err(),
        Some(Error::Shape { .. })
    ));
    // A Gram matrix of other features is refused even if only the report would use it.
    let how = Corrected::lqer(rtn(3)).check().unwrap();
    let half = how.prepare(&stats(&inputs(20, 4), 4), &cx).unwrap();
    assert!(matches!(half.compress(&MatView::new(&w, [8, 8]).unwrap(), 0..8, &cx).err(), Some(Error::Shape { .. })));
    let factors =
        |e: &[f32], shape, bits| factorize(e, shape, Norm::Plain, Rank::Fixed(1), bits, &StatSet::none(), &cx);
    assert!(
        factors(&[1.0], [0, 5], 16.0).is_err()
            && factors(&[1.0], [1, 1], f64::NAN).is_err()
            && factors(&[1.0], [1, 1], 0.0).is_err()
    );
    let prepared = how.prepare(&StatSet::none(), &cx).unwrap();
    assert!(prepared.compress(&MatView::new(&w, [8, 8]).unwrap(), 0..4, &cx).is_err());
    let mut bad = w.clone();
    bad[9] = f32::NAN;
    let found = prepared.compress(&MatView::new(&bad, [8, 8]).unwrap(), 0..8, &cx).err().unwrap();
    assert!(matches!(found, Error::NonFinite { row: 1, col: 1, .. }), "{found}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_has_its_layout_on_any_threads(r in 0usize..40, c in 0usize..40, rank in 1usize..50, seed in 0u64..9) {
        let w = normal(seed, r * c);
        let how = Corrected::lqer(rtn(2)).rank(Rank::Fixed(rank)).check().unwrap();
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let done = compress(&how, &w, [r, c], &StatSet::none());
                let mut file = MemTensors::new();
                done.op.save("w", &mut file).unwrap();
                (file, done.op.storage_bits())
            })
        };
        let (one, bits) = bytes(1);
        prop_assert_eq!(bits, how.layout([r, c]).unwrap().bits().unwrap());
        prop_assert_eq!(bits, 8 * one.bytes() as u64);
        prop_assert!(one == bytes(3).0);
    }
}

#[test]
fn masks_are_refused_where_zeros_cannot_be_kept() {
    let (shape, w) = ([8, 32], normal(5, 8 * 32));
    let view = MatView::new(&w, shape).unwrap();
    let (half, all) = (Mask::from_fn(shape, |r, c| (r + c) % 2 == 0).unwrap(), Mask::all(shape).unwrap());
    let methods: [Box<dyn Method>; 2] = [
        Box::new(Corrected::lqer(rtn(3)).rank(Rank::Fixed(2)).check().unwrap()),
        Box::new(LowRank::new(Rank::Fixed(2)).check().unwrap()),
    ];
    let cx = Context::new();
    for method in &methods {
        let run = |mask| {
            let prepared = method.prepare(&StatSet::none(), &cx).unwrap();
            prepared.compress(&Masked::new(&view, mask).unwrap(), 0..8, &cx).map(|_| ())
        };
        assert!(matches!(run(&half), Err(Error::Unsupported { what: "mask", .. })), "{}", method.name());
        assert!(run(&all).is_ok(), "{}", method.name());
    }
}
