//! 4-bit weights that expand to 8 bits: dual-grained (DGQ) and by lookup tables (QQQ).

use half::f16;
use proptest::prelude::*;
use tersor_core::{
    Context, Exec, GroupSize, Input, MatView, MatViewMut, MemTensors, Method, RowSlot, StatNeeds, StatSet, Write,
    metrics,
};
use tersor_groupwise::{Check, Dgq, DualLinear, Gptq, Grid, LinearOp, LinearOpExt, Qqq, Rtn, TableLinear, registry};
use tersor_operators::{ActQuant, QuantizedInputs};

/// Returns normal values of a fixed generator.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    (0..n).map(|_| (-2.0 * next().ln()).sqrt() * (std::f32::consts::TAU * next()).cos()).collect()
}

fn stats(x: &[f32], features: usize) -> StatSet {
    let mut stats = StatSet::new(features, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0).unwrap();
    stats.observe(&MatView::new(x, [x.len() / features, features]).unwrap()).unwrap();
    stats
}

fn compress(method: &dyn Method, w: &[f32], shape: [usize; 2], x: &[f32]) -> Box<dyn LinearOp> {
    let stats = stats(x, shape[1]);
    let w = MatView::new(w, shape).unwrap();
    let cx = Context::new();
    let done = method.prepare(&stats, &cx).unwrap().compress(&w, 0..shape[0], &cx).unwrap();
    assert_eq!(done.op.storage_bits(), method.layout(shape).unwrap().bits().unwrap());
    done.op
}

fn values(op: &dyn LinearOp) -> Vec<f32> {
    op.decompress().unwrap()
}

/// Returns `Σ ((w - ŵ) x)²`, computed directly.
fn output_error(w: &[f32], op: &dyn LinearOp, x: &[f32]) -> f64 {
    let [rows, cols] = op.shape();
    let d: Vec<f64> = w.iter().zip(values(op)).map(|(a, b)| f64::from(a - b)).collect();
    let dot = |d: &[f64], x: &[f32]| d.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>();
    (0..rows)
        .flat_map(|r| x.chunks(cols).map(move |x| (r, x)))
        .map(|(r, x)| dot(&d[r * cols..][..cols], x).powi(2))
        .sum()
}

fn reopened(op: &dyn LinearOp) -> Box<dyn LinearOp> {
    let mut memory = MemTensors::default();
    op.save("w", &mut memory).unwrap();
    let bits: u64 = memory.bytes() as u64 * 8;
    assert_eq!(bits, op.storage_bits());
    registry().load(&op.spec(), "w", &memory).unwrap()
}

fn applied(op: &dyn LinearOp, x: &[f32]) -> Vec<f32> {
    let [rows, cols] = op.shape();
    let tokens = x.len() / cols;
    let mut y = vec![0f32; tokens * rows];
    let input = Input::new(x, [tokens, cols]).unwrap();
    op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
    y
}

#[test]
fn dual_grain_lies_between_groups_and_rows() {
    // Four groups of very different magnitude, as in the specification's own check.
    let (rows, cols) = (64, 512);
    let mut w = normal(1, rows * cols);
    for (i, v) in w.iter_mut().enumerate() {
        *v *= [1.0, 0.25, 0.06, 0.5][i % cols / 128];
    }
    let x = normal(2, 256 * cols);
    let dual = compress(&Dgq::new().check().unwrap(), &w, [rows, cols], &x);
    let rtn =
        |rtn: Rtn| output_error(&w, &rtn.bits(4).quantize(&MatView::new(&w, [rows, cols]).unwrap()).unwrap().0, &x);
    let (group, row, dual) = (rtn(Rtn::new().group(128)), rtn(Rtn::new().per_channel()), output_error(&w, &*dual, &x));
    // The search of ranges may make up for what the integer scale costs.
    assert!(dual < 1.15 * group && dual < 0.5 * row, "{group} {dual} {row}");
}

#[test]
fn integer_scales_of_the_worked_examples() {
    // s1 = 0.01: group scales of 0.083, 0.031 and 0.004 become 8, 3 and 1.
    let s1 = f16::from_f32(0.01).to_f32();
    let group = GroupSize::size(2).unwrap();
    let codes = [15, 0, 0, 15, 8, 7];
    let op = DualLinear::new([1, 6], group, &codes, vec![8, 3, 1], vec![7, 15, 8], vec![s1]).unwrap();
    assert_eq!(op.row_integers(0).unwrap(), [64, -56, -45, 0, 0, -1]);
    assert_eq!(values(&op)[0], s1 * 64.0);
    // A code that leaves the bytes is refused, and so are scales of 0 and zeros above 15.
    for (scales, zeros) in
        [(vec![9, 3, 1], vec![0, 15, 8]), (vec![0, 3, 1], vec![7, 15, 8]), (vec![8, 3, 1], vec![16, 15, 8])]
    {
        assert!(DualLinear::new([1, 6], group, &codes, scales, zeros, vec![s1]).is_err());
    }
    assert!(DualLinear::new([1, 6], group, &codes, vec![8, 3, 1], vec![7, 15, 8], vec![f32::NAN]).is_err());
    assert!(DualLinear::new([1, 6], group, &codes[1..], vec![8, 3, 1], vec![7, 15, 8], vec![s1]).is_err());
    // QQQ's: round half to even in (code - 8) * share.
    let shares = [18.14, 2.5, 2.5].map(f16::from_f32).to_vec();
    let op = TableLinear::new([1, 6], group, &[15, 8, 11, 5, 8, 9], shares, vec![0.5]).unwrap();
    assert_eq!(op.row_integers(0).unwrap(), [127, 0, 8, -8, 0, 2]);
    assert!(TableLinear::new([1, 6], group, &[16; 6], vec![f16::ONE; 3], vec![0.5]).is_err());
    assert!(TableLinear::new([1, 6], group, &[1; 6], vec![f16::NAN; 3], vec![0.5]).is_err());
}

#[test]
fn tables_stay_within_half_a_step_of_gptq() {
    let (rows, cols) = (64, 256);
    let (w, x) = (normal(3, rows * cols), normal(4, 300 * cols));
    let qqq = compress(&Qqq::new().group(64).check().unwrap(), &w, [rows, cols], &x);
    let gptq = Gptq::new().grid(Grid::SymFull).act_order(true).groups(tersor_groupwise::gptq::Groups::Static).group(64);
    let gptq = compress(&gptq.check().unwrap(), &w, [rows, cols], &x);
    for (a, b) in values(&*qqq).chunks(cols).zip(values(&*gptq).chunks(cols)) {
        let step = b.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        // Half of it, and what f16 rounds off a share.
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 0.5 * step + 1e-3 * b.abs()));
    }
}

#[test]
fn integers_and_floats_agree_and_blocks_make_the_whole() {
    let (rows, cols) = (130, 200);
    let (w, x) = (normal(5, rows * cols), normal(6, 300 * cols));
    let (dgq, qqq) = (Dgq::new().group(64).check().unwrap(), Qqq::new().group(64).check().unwrap());
    for method in [&dgq as &dyn Method, &qqq] {
        let op = compress(method, &w, [rows, cols], &x);
        let again = reopened(&*op);
        assert_eq!(values(&*op), values(&*again));
        let act = ActQuant::per_token(8).unwrap();
        let (codes, scales) = act.encode(tersor_core::Isa::detect(), &x[..9 * cols], cols).unwrap();
        let rounded = ActQuant::decode(&codes, &scales, &[], cols);
        let dense = values(&*op);
        let want: Vec<f32> = (rounded.chunks(cols))
            .flat_map(|x| {
                dense
                    .chunks(cols)
                    .map(move |w| w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32)
            })
            .collect();
        let found = applied(&QuantizedInputs::new(act, again).unwrap(), &x[..9 * cols]);
        let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
        assert!(error < 1e-6, "{}: {error}", method.name());
        // And without rounding of the inputs.
        let plain = applied(&*op, &x[..9 * cols]);
        assert!((metrics::squared_error(&want, &plain) / metrics::energy(&want)).sqrt() < 0.02);

        let stats = stats(&x, cols);
        let cx = Context::new();
        let prepared = method.prepare(&stats, &cx).unwrap();
        let view = MatView::new(&w, [rows, cols]).unwrap();
        let mut memory = MemTensors::default();
        let mut spec = None;
        for first in [0, 64, 128] {
            let last = rows.min(first + 64);
            let done = prepared.compress(&view, first..last, &cx).unwrap();
            let at = RowSlot { first, total: rows };
            done.op.save_block("w", at, &mut memory).unwrap();
            spec = Some(done.op.spec_block(at));
        }
        let whole = registry().load(&spec.unwrap(), "w", &memory).unwrap();
        assert_eq!(values(&*whole), values(&*op), "{}", method.name());
    }
    assert!(
        dgq.prepare(&StatSet::none(), &Context::new()).is_err()
            && qqq.prepare(&StatSet::none(), &Context::new()).is_err()
    );
    assert!(Dgq::new().group(0).check().is_err() && Qqq::new().group(0).check().is_err());
    assert!(Qqq::new().damping(0.0).check().is_err());
    let mut nan = w.clone();
    nan[77 * cols + 3] = f32::NAN;
    let stats = stats(&x, cols);
    let cx = Context::new();
    for method in [&dgq as &dyn Method, &qqq] {
        let view = MatView::new(&nan, [rows, cols]).unwrap();
        let e = method.prepare(&stats, &cx).unwrap().compress(&view, 64..rows, &cx).err().unwrap();
        assert!(e.to_string().contains("row 77"), "{e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn expanded_weights_fit_eight_bits(seed in any::<u64>(), group in 1usize..40, scale in -30i32..7, spread in 0f32..12.0) {
        let (rows, cols) = (5, 37);
        let mut w = normal(seed, rows * cols);
        for (i, v) in w.iter_mut().enumerate() {
            *v *= 2f32.powi(scale) * (spread * ((i / 7 % 5) as f32 - 2.0) / 2.0).exp2();
            if i / cols == 2 {
                *v = if seed % 2 == 0 { 0.0 } else { v.abs() };
            }
        }
        let x = normal(seed ^ 1, 60 * cols);
        let op = compress(&Dgq::new().group(group).check().unwrap(), &w, [rows, cols], &x);
        let again = reopened(&*op);
        prop_assert!(values(&*again).iter().all(|v| v.is_finite()));
        prop_assert_eq!(values(&*op), values(&*again));
    }
}
