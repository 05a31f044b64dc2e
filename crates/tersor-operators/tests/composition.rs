//! Operators composed of independent parts: build, save, load, apply.
//!
//! The parts are stand-ins for the methods' own: a dual-grained grid (integer group scales under one float
//! scale a row), a plain four-bit grid, and factors. Nothing here is known to the wrappers.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use tersor_core::tensors::{join, read_expected};
use tersor_core::*;
use tersor_operators::{ActQuant, Dense, Factored, Permuted, QuantizedInputs, Residual, Rotated, ScaledInputs, Split};

/// `w = s1[row] * s2[row, group] * (code - 8)`, one byte a code.
struct DualGrained {
    shape: [usize; 2],
    group: usize,
    codes: Vec<u8>,
    inner: Vec<u8>,
    outer: Vec<f32>,
}

impl DualGrained {
    const KIND: &'static str = "stand_in_dual";

    fn new(w: &[f32], shape: [usize; 2], group: usize) -> Self {
        let [rows, cols] = shape;
        let (mut codes, mut inner, mut outer) = (vec![], vec![], vec![]);
        for row in w.chunks(cols) {
            let s1 = row.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            outer.push(s1);
            for g in row.chunks(group) {
                let s2 = (g.iter().fold(0f32, |m, v| m.max(v.abs())) / 7.0 / s1).round().clamp(1.0, 127.0);
                inner.push(s2 as u8);
                codes.extend(g.iter().map(|v| ((v / (s1 * s2)).round() + 8.0).clamp(0.0, 15.0) as u8));
            }
        }
        assert_eq!(codes.len(), rows * cols);
        Self { shape, group, codes, inner, outer }
    }

    fn load(spec: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
        let ([rows, cols], group, src) = (spec.shape, spec.get_size("group")?, loading.source());
        let codes = read_expected(src, &join(p, "codes"), DType::U8, &[rows, cols])?;
        let inner = read_expected(src, &join(p, "inner"), DType::U8, &[rows, cols.div_ceil(group)])?;
        let bytes = read_expected(src, &join(p, "outer"), DType::F32, &[rows])?;
        let mut outer = vec![0f32; rows];
        DType::F32.widen_bytes(&bytes, &mut outer).unwrap();
        Ok(Box::new(Self { shape: spec.shape, group, codes, inner, outer }))
    }
}

impl LinearOp for DualGrained {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn storage_bits(&self) -> u64 {
        (self.codes.len() + self.inner.len() + 4 * self.outer.len()) as u64 * 8
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
        let cols = self.shape[1];
        let groups = cols.div_ceil(self.group);
        for (r, out) in rows.zip(out.chunks_mut(cols)) {
            for (c, v) in out.iter_mut().enumerate() {
                let s2 = f32::from(self.inner[r * groups + c / self.group]);
                *v = self.outer[r] * s2 * (f32::from(self.codes[r * cols + c]) - 8.0);
            }
        }
        Ok(())
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]]).int("group", self.group as i64)
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let info = |dtype, shape: &[usize]| TensorInfo { dtype, shape: shape.to_vec() };
        let groups = self.shape[1].div_ceil(self.group);
        let u8s = |n: usize| info(DType::U8, &[at.total, n]);
        sink.write_rows(&join(prefix, "codes"), &u8s(self.shape[1]), at.first, &self.codes)?;
        sink.write_rows(&join(prefix, "inner"), &u8s(groups), at.first, &self.inner)?;
        let outer: Vec<u8> = self.outer.iter().flat_map(|v| v.to_le_bytes()).collect();
        sink.write_rows(&join(prefix, "outer"), &info(DType::F32, &[at.total]), at.first, &outer)
    }
}

fn registry() -> Registry {
    let mut r = tersor_operators::registry();
    r.register(DualGrained::KIND, DualGrained::load);
    r
}

fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + salt) * 7919) % 997) as f32 / 400.0 - 1.2).collect()
}

fn rows_of(op: &dyn LinearOp) -> Vec<f32> {
    op.decompress().unwrap()
}

fn apply(op: &dyn LinearOp, x: &[f32], tokens: usize) -> Vec<f32> {
    let [rows, cols] = op.shape();
    let mut y = vec![7f32; tokens * rows];
    let input = Input::new(x, [tokens, cols]).unwrap();
    op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
    y
}

/// Saves, loads and applies an operator; returns the file.
fn round_trip(op: &dyn LinearOp, exact_input: bool) -> MemTensors {
    let [rows, cols] = op.shape();
    let mut file = MemTensors::new();
    op.save("layer.weight", &mut file).unwrap();
    assert_eq!(op.storage_bits(), file.bytes() as u64 * 8, "storage_bits are the bytes written");
    let again = registry().load(&op.spec(), "layer.weight", &file).unwrap();
    assert_eq!(again.spec(), op.spec());
    assert_eq!(rows_of(&*again), rows_of(op));
    let (tokens, x) = (5, values(5 * cols, 9));
    let (a, b) = (apply(op, &x, tokens), apply(&*again, &x, tokens));
    assert_eq!(a, b);
    if exact_input {
        let w = rows_of(op);
        for t in 0..tokens {
            for r in 0..rows {
                let want: f32 = (0..cols).map(|c| x[t * cols + c] * w[r * cols + c]).sum();
                assert!((a[t * rows + r] - want).abs() < 2e-3, "{} against {want}", a[t * rows + r]);
            }
        }
    }
    file
}

fn rotation(n: usize) -> Rotation {
    let signs: Vec<f32> = (0..n).map(|i| if i * 7 % 3 == 0 { -1.0 } else { 1.0 }).collect();
    Rotation::new(&[1.0], n, &signs).unwrap()
}

#[test]
fn lqer_over_a_dual_grained_grid() {
    let (rows, cols, rank) = (12, 32, 3);
    let w = values(rows * cols, 1);
    let base = DualGrained::new(&w, [rows, cols], 8);
    let dense = |v: Vec<f32>, s| Box::new(Dense::new(v, s, DType::F16).unwrap()) as Box<dyn LinearOp>;
    let low = Factored::new(dense(values(rows * rank, 2), [rows, rank]), dense(values(rank * cols, 3), [rank, cols]))
        .unwrap();
    let op = Residual::new(Box::new(base), Box::new(low)).unwrap();
    let file = round_trip(&op, true);
    assert!(file.names().contains(&"layer.weight.low_rank.up".to_string()));
    // The factors may be quantized as anything else.
    let up = Box::new(DualGrained::new(&values(rows * 8, 4), [rows, 8], 4));
    let down = Box::new(DualGrained::new(&values(8 * cols, 5), [8, cols], 16));
    let base = Box::new(DualGrained::new(&w, [rows, cols], 8));
    round_trip(&Residual::new(base, Box::new(Factored::new(up, down).unwrap())).unwrap(), true);
}

#[test]
fn resq_over_another_method() {
    let (rows, cols) = (10, 32);
    let w = values(rows * cols, 4);
    let mut rotated = w.clone();
    rotation(cols).forward(Isa::detect(), &mut rotated);
    let part =
        |range: Range<usize>| -> Vec<f32> { rotated.chunks(cols).flat_map(|r| r[range.clone()].to_vec()).collect() };
    let low = Box::new(DualGrained::new(&part(0..28), [rows, 28], 7));
    let high = Box::new(Dense::new(part(28..32), [rows, 4], DType::BF16).unwrap());
    let order: Vec<u32> = (0..cols as u32).rev().collect();
    let act = ActQuant::per_token(8).unwrap();
    let split = Box::new(Split::new(vec![low, high]).unwrap());
    let op = Rotated::new(rotation(cols), split).unwrap();
    round_trip(&op, true);
    assert!(metrics::cosine(&rows_of(&op), &w) > 0.97, "rows come back in the original basis");
    let op = Permuted::new(order, Box::new(QuantizedInputs::new(act, Box::new(op)).unwrap())).unwrap();
    round_trip(&op, false);
}

#[test]
fn hadamard_over_eight_bit_activations_over_four_bit_weights() {
    let (rows, cols) = (9, 64);
    let w = values(rows * cols, 6);
    let mut rotated = w.clone();
    rotation(cols).forward(Isa::detect(), &mut rotated);
    let weights = Box::new(DualGrained::new(&rotated, [rows, cols], 16));
    let act = ActQuant::per_token(8).unwrap();
    let op = Rotated::new(rotation(cols), Box::new(QuantizedInputs::new(act, weights).unwrap())).unwrap();
    round_trip(&op, false);
    let x = values(3 * cols, 8);
    let dense = Dense::new(w, [rows, cols], DType::F32).unwrap();
    assert!(metrics::cosine(&apply(&op, &x, 3), &apply(&dense, &x, 3)) > 0.98);
    let scaled = ScaledInputs::new(vec![0.5; cols], Box::new(op)).unwrap();
    round_trip(&scaled, false);
}

/// Returns rows of `cols` values after a quantizer, by its definition.
fn rounded(act: &ActQuant, x: &[f32], cols: usize) -> Vec<f32> {
    let (kind, steps) = (act.granularity(), 2f32.powi(act.bits().get() as i32));
    let largest = |v: &[f32]| v.iter().fold(0f32, |m, v| m.max(v.abs()));
    let code = |v: f32, scale: f32| (v / scale).round_ties_even();
    let signed = |v: f32, scale: f32| code(v, scale).clamp(-steps / 2.0, steps / 2.0 - 1.0) * scale;
    // Values that share a scale lie side by side, but for those of a feature.
    let run = match kind {
        "tensor" => x.len(),
        "mxint" => act.block().unwrap(),
        "asymmetric" => cols / act.spans().unwrap(),
        _ => cols,
    };
    let one = |v: &[f32]| -> Vec<f32> {
        match kind {
            "channels" => v.iter().zip(act.scales()).map(|(v, s)| signed(*v, *s)).collect(),
            "asymmetric" => {
                let (lo, hi) = v.iter().fold((0f32, 0f32), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
                let scale = (hi - lo) / (steps - 1.0);
                let zero = code(-lo, scale);
                v.iter().map(|v| ((code(*v, scale) + zero).clamp(0.0, steps - 1.0) - zero) * scale).collect()
            }
            _ => {
                let scale = match kind {
                    "fixed" => act.scales()[0],
                    "mxint" => largest(v).log2().ceil().exp2() / (steps / 2.0),
                    _ => largest(v) / (steps / 2.0 - 1.0),
                };
                v.iter().map(|v| signed(*v, scale)).collect()
            }
        }
    };
    x.chunks(run).flat_map(one).collect()
}

#[test]
fn every_quantizer_of_activations_wraps_any_operator() {
    let (rows, cols, tokens) = (7, 48, 3);
    let (w, x) = (values(rows * cols, 11), values(tokens * cols, 12));
    let scales: Vec<f32> = (0..cols).map(|k| 0.01 + k as f32 * 1e-3).collect();
    for act in [
        ActQuant::per_token(8).unwrap(),
        ActQuant::per_tensor(8).unwrap(),
        ActQuant::fixed(8, 0.01).unwrap(),
        ActQuant::channels(8, scales.clone()).unwrap(),
        ActQuant::mxint(8, 16).unwrap(),
        ActQuant::asymmetric(8, 1).unwrap(),
        ActQuant::asymmetric(8, 6).unwrap(),
    ] {
        let plain = DualGrained::new(&w, [rows, cols], 16);
        let want = apply(&plain, &rounded(&act, &x, cols), tokens);
        let op = QuantizedInputs::new(act.clone(), Box::new(plain)).unwrap();
        round_trip(&op, false);
        let found = apply(&op, &x, tokens);
        let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
        assert!(error < 1e-3, "{}: {error}", act.granularity());
        assert!(
            metrics::cosine(&found, &apply(&Dense::new(w.clone(), [rows, cols], DType::F32).unwrap(), &x, tokens))
                > 0.98
        );
    }
    let other = QuantizedInputs::new(
        ActQuant::channels(8, scales[1..].to_vec()).unwrap(),
        Box::new(Dense::new(w, [rows, cols], DType::F32).unwrap()),
    );
    assert!(matches!(other, Err(Error::Shape { .. })));
}

/// A matrix that records the address of its input.
struct Witness([usize; 2], Arc<Mutex<Vec<usize>>>);

impl LinearOp for Witness {
    fn shape(&self) -> [usize; 2] {
        self.0
    }
    fn storage_bits(&self) -> u64 {
        0
    }
    fn decompress_rows(&self, _: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
        out.fill(0.0);
        Ok(())
    }
    fn apply(&self, x: &Input<'_>, _: MatViewMut<'_>, _: Write, _: &Exec) -> Result<()> {
        self.1.lock().unwrap().push(std::ptr::from_ref(x).addr());
        Ok(())
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new("witness", [at.total, self.0[1]])
    }
    fn save_block(&self, _: &str, _: RowSlot, _: &mut dyn TensorSink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn consumers_of_one_input_share_its_rotated_and_quantized_form() {
    let x = values(2 * 16, 1);
    let input = Input::new(&x, [2, 16]).unwrap();
    let (a, b) = (rotation(16), rotation(16));
    let first = input.form(a.key(), |v| a.forward(Isa::detect(), v)).unwrap();
    let second = input.form(b.key(), |_| panic!("equal rotations share one form")).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    // Two consumers with a rotation and a quantizer each, and one whose quantizer has other bits.
    let seen = Arc::new(Mutex::new(Vec::new()));
    for (bits, rotation) in [(4, a), (4, b), (5, rotation(16))] {
        let witness = Box::new(Witness([3, 16], Arc::clone(&seen)));
        let quantized = QuantizedInputs::new(ActQuant::per_token(bits).unwrap(), witness).unwrap();
        let op = Rotated::new(rotation, Box::new(quantized)).unwrap();
        let mut y = [0f32; 6];
        op.apply(&input, MatViewMut::new(&mut y, [2, 3]).unwrap(), Write::Set, &Exec::new()).unwrap();
    }
    // The input keeps all forms, so that no address is used twice.
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 3 && seen[0] == seen[1] && seen[1] != seen[2], "{seen:?}");
}

#[test]
fn blocks_of_rows_save_as_the_whole() {
    let (rows, cols, rank) = (8, 16, 2);
    let w = values(rows * cols, 2);
    let make = |range: Range<usize>| {
        let n = range.len();
        let up =
            Dense::new(values(rows * rank, 3)[range.start * rank..range.end * rank].to_vec(), [n, rank], DType::F32);
        let down = Dense::new(values(rank * cols, 4), [rank, cols], DType::F32).unwrap();
        let low = Factored::new(Box::new(up.unwrap()), Box::new(down)).unwrap();
        let base = DualGrained::new(&w[range.start * cols..range.end * cols], [n, cols], 4);
        Rotated::new(rotation(cols), Box::new(Residual::new(Box::new(base), Box::new(low)).unwrap())).unwrap()
    };
    let (mut whole, mut cut) = (MemTensors::new(), MemTensors::new());
    make(0..rows).save("w", &mut whole).unwrap();
    for first in [4, 0] {
        make(first..first + 4).save_block("w", RowSlot { first, total: rows }, &mut cut).unwrap();
    }
    assert_eq!(whole, cut);
    let (block, all) = (make(4..8), make(0..rows));
    assert_eq!(block.spec_block(RowSlot { first: 4, total: rows }), all.spec(), "a block describes the whole");
}

#[test]
fn rows_have_the_same_bits_in_every_cut() {
    let dense =
        |shape: [usize; 2], salt| Box::new(Dense::new(values(shape[0] * shape[1], salt), shape, DType::F32).unwrap());
    let low_rank = Factored::new(dense([9, 5], 1), dense([5, 1100], 2)).unwrap();
    let op = Residual::new(dense([9, 1100], 3), Box::new(low_rank)).unwrap();
    let whole = rows_of(&op);
    for first in 0..9 {
        for end in first + 1..=9 {
            let mut part = vec![0f32; (end - first) * 1100];
            op.decompress_rows(first..end, &mut part, &Exec::new()).unwrap();
            assert_eq!(part, whole[first * 1100..end * 1100], "rows {first} to {end}");
        }
    }
}

#[test]
fn mismatched_and_hostile_specifications_are_refused() {
    let dense =
        |r: usize, c: usize| Box::new(Dense::new(vec![0.5; r * c], [r, c], DType::F32).unwrap()) as Box<dyn LinearOp>;
    assert!(Residual::new(dense(2, 3), dense(2, 4)).is_err());
    assert!(Split::new(vec![]).is_err() && Split::new(vec![dense(2, 3), dense(3, 3)]).is_err());
    assert!(registry().load(&OpSpec::new("split", [2, 3]), "w", &MemTensors::new()).is_err());
    assert!(Factored::new(dense(2, 3), dense(2, 3)).is_err());
    assert!(Permuted::new(vec![0, 0, 1], dense(2, 3)).is_err());
    assert!(Permuted::new(vec![0, 1, 9], dense(2, 3)).is_err());
    assert!(ScaledInputs::new(vec![1.0, f32::NAN, 1.0], dense(2, 3)).is_err());
    assert!(Rotated::new(rotation(4), dense(2, 3)).is_err());
    assert!(Dense::new(vec![1e30], [1, 1], DType::F16).is_err(), "infinite in f16");
    assert!(Dense::new(vec![f32::NAN], [1, 1], DType::F32).is_err());
    let mut deep = OpSpec::new("dense", [1, 1]);
    for _ in 0..40 {
        deep = OpSpec::new("rotated", [1, 1]).part("op", deep);
    }
    assert!(registry().load(&deep, "w", &MemTensors::new()).is_err());
    let (x, mut y) = ([1f32; 3], [0f32; 2]);
    let input = Input::new(&x, [1, 3]).unwrap();
    let op = dense(2, 4);
    assert!(op.apply(&input, MatViewMut::new(&mut y, [1, 2]).unwrap(), Write::Set, &Exec::new()).is_err());
    let mut short = [0f32; 3];
    assert!(op.decompress_rows(0..1, &mut short, &Exec::new()).is_err());
    assert!(op.decompress_rows(1..3, &mut [0f32; 8], &Exec::new()).is_err());
}
