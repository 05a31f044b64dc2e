//! Operators made of parts that do not know each other: build, save, load, apply.
//!
//! The parts are stand-ins for the methods' own: a dual-grained grid (integer group scales under one float
//! scale a row), a plain four-bit grid, and factors. Nothing here is known to the wrappers.

use std::ops::Range;
use std::rc::Rc;

use tersor_core::compose::{Dense, Factored, Permuted, QuantizedInputs, Residual, Rotated, ScaledInputs, Split};
use tersor_core::op::apply_by_rows;
use tersor_core::tensors::{join, read_expected};
use tersor_core::*;
use tersor_kernels::dense::Write;

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

    fn load(spec: &OpSpec, p: &str, src: &dyn TensorSource, _: &Registry) -> Result<Box<dyn LinearOp>> {
        let ([rows, cols], group) = (spec.shape, spec.get_size("group")?);
        let codes = read_expected(src, &join(p, "codes"), DType::U8, &[rows, cols])?;
        let inner = read_expected(src, &join(p, "inner"), DType::U8, &[rows, cols.div_ceil(group)])?;
        let bytes = read_expected(src, &join(p, "outer"), DType::F32, &[rows])?;
        let mut outer = vec![0f32; rows];
        DType::F32.widen_bytes(&bytes, &mut outer);
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
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
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
    fn apply_add(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        apply_by_rows(self, x, y, Write::Add, exec)
    }
    fn spec(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]]).int("group", self.group as i64)
    }
    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
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
    let mut r = Registry::core();
    r.register(DualGrained::KIND, DualGrained::load);
    r
}

fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + salt) * 7919) % 997) as f32 / 400.0 - 1.2).collect()
}

fn rows_of(op: &dyn LinearOp) -> Vec<f32> {
    let [rows, cols] = op.shape();
    let mut out = vec![0f32; rows * cols];
    op.decompress_rows(0..rows, &mut out).unwrap();
    out
}

fn apply(op: &dyn LinearOp, x: &[f32], tokens: usize) -> Vec<f32> {
    let [rows, cols] = op.shape();
    let mut y = vec![7f32; tokens * rows];
    let input = Input::new(x, [tokens, cols]).unwrap();
    op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), &Exec::new()).unwrap();
    y
}

/// Saves, loads and applies; returns the file.
fn round_trip(op: &dyn LinearOp, exact_input: bool) -> MemTensors {
    let [rows, cols] = op.shape();
    let mut file = MemTensors::new();
    op.save("layer.weight", RowSlot::whole(rows), &mut file).unwrap();
    assert_eq!(op.storage_bits(), file.bytes() as u64 * 8, "storage_bits are the bytes written");
    let again = registry().load(&op.spec(op.whole()), "layer.weight", &file).unwrap();
    assert_eq!(again.spec(op.whole()), op.spec(op.whole()));
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
    let mut turned = w.clone();
    rotation(cols).forward(&mut turned);
    let part =
        |range: Range<usize>| -> Vec<f32> { turned.chunks(cols).flat_map(|r| r[range.clone()].to_vec()).collect() };
    let low = Box::new(DualGrained::new(&part(0..28), [rows, 28], 7));
    let high = Box::new(Dense::new(part(28..32), [rows, 4], DType::BF16).unwrap());
    let order: Vec<u32> = (0..cols as u32).rev().collect();
    let act = ActQuant::per_token(8).unwrap();
    let split = Box::new(Split::new(vec![low, high]).unwrap());
    let op = Rotated::new(rotation(cols), split).unwrap();
    round_trip(&op, true);
    assert!(metrics::cosine(&rows_of(&op), &w) > 0.97, "rows come back in the original basis");
    let op = Permuted::new(order, Box::new(QuantizedInputs::new(act, Box::new(op)))).unwrap();
    round_trip(&op, false);
}

#[test]
fn hadamard_over_eight_bit_activations_over_four_bit_weights() {
    let (rows, cols) = (9, 64);
    let w = values(rows * cols, 6);
    let mut turned = w.clone();
    rotation(cols).forward(&mut turned);
    let weights = Box::new(DualGrained::new(&turned, [rows, cols], 16));
    let act = ActQuant::per_token(8).unwrap();
    let op = Rotated::new(rotation(cols), Box::new(QuantizedInputs::new(act, weights))).unwrap();
    round_trip(&op, false);
    let x = values(3 * cols, 8);
    let dense = Dense::new(w, [rows, cols], DType::F32).unwrap();
    assert!(metrics::cosine(&apply(&op, &x, 3), &apply(&dense, &x, 3)) > 0.98);
    let scaled = ScaledInputs::new(vec![0.5; cols], Box::new(op)).unwrap();
    round_trip(&scaled, false);
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
        let want = {
            let input = Input::new(&x, [tokens, cols]).unwrap();
            let input = input.quantized(&act, Isa::detect()).unwrap();
            let mut rounded = input.data().to_vec();
            for (row, offset) in rounded.chunks_mut(cols).zip(input.offsets()) {
                row.iter_mut().for_each(|v| *v += offset);
            }
            apply(&plain, &rounded, tokens)
        };
        let op = QuantizedInputs::new(act.clone(), Box::new(plain));
        round_trip(&op, false);
        let found = apply(&op, &x, tokens);
        let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
        assert!(error < 1e-3, "{}: {error}", act.reach());
        assert!(
            metrics::cosine(&found, &apply(&Dense::new(w.clone(), [rows, cols], DType::F32).unwrap(), &x, tokens))
                > 0.98
        );
    }
    let other = QuantizedInputs::new(
        ActQuant::channels(8, scales[1..].to_vec()).unwrap(),
        Box::new(Dense::new(w, [rows, cols], DType::F32).unwrap()),
    );
    let mut y = vec![0f32; rows];
    let input = Input::new(&x[..cols], [1, cols]).unwrap();
    assert!(other.apply(&input, MatViewMut::new(&mut y, [1, rows]).unwrap(), &Exec::new()).is_err());
}

#[test]
fn consumers_of_one_input_share_its_rotated_and_quantized_form() {
    let x = values(2 * 16, 1);
    let input = Input::new(&x, [2, 16]).unwrap();
    let (a, b) = (rotation(16), rotation(16));
    let first = input.form(a.key(), |v| a.forward(v));
    let second = input.form(b.key(), |_| panic!("equal rotations share one form"));
    assert!(Rc::ptr_eq(&first, &second));
    let act = ActQuant::per_token(4).unwrap();
    let q = first.quantized(&act, Isa::detect()).unwrap();
    assert!(Rc::ptr_eq(&q, &second.quantized(&act, Isa::detect()).unwrap()));
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
    make(0..rows).save("w", RowSlot::whole(rows), &mut whole).unwrap();
    for first in [4, 0] {
        make(first..first + 4).save("w", RowSlot { first, total: rows }, &mut cut).unwrap();
    }
    assert_eq!(whole, cut);
    let (block, all) = (make(4..8), make(0..rows));
    assert_eq!(block.spec(RowSlot { first: 4, total: rows }), all.spec(all.whole()), "a block describes the whole");
}

#[test]
fn misfits_and_hostile_specifications_are_refused() {
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
    assert!(op.apply(&input, MatViewMut::new(&mut y, [1, 2]).unwrap(), &Exec::new()).is_err());
    let mut short = [0f32; 3];
    assert!(op.decompress_rows(0..1, &mut short).is_err());
    assert!(op.decompress_rows(1..3, &mut [0f32; 8]).is_err());
}
