//! What holds for every stored form: one product by four ways, its transpose, loading, and parts that operators share.

use std::ops::Range;
use std::sync::Arc;

use tersor::blockwise::{Blockwise, LlmInt8};
use tersor::core::operator::{apply_all, storage_bits_of};
use tersor::core::tensors::{join, read_floats, write_floats};
use tersor::core::*;
use tersor::groupwise::{Dgq, Gptq, Qqq, Rtn};
use tersor::lowrank::{Corrected, Rank};
use tersor::operators::{ActQuant, Dense, Factored, Permuted, QuantizedInputs, Residual, Rotated, ScaledInputs, Split};

const ROWS: usize = 70;
const COLS: usize = 96;

fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 1) * (seed + 7919)) as f32 * 0.618).sin() * (1.0 + (i % 7) as f32)).collect()
}

fn dense(shape: [usize; 2], seed: usize) -> Box<dyn LinearOp> {
    Box::new(Dense::new(noise(shape[0] * shape[1], seed), shape, DType::F32).unwrap())
}

fn forms() -> Vec<(&'static str, Box<dyn LinearOp>)> {
    let values = noise(ROWS * COLS, 1);
    let w = MatView::new(&values, [ROWS, COLS]).unwrap();
    let mut stats = StatSet::new(COLS, StatNeeds::none().with_gram(), 0, 0).unwrap();
    stats.observe(&MatView::new(&noise(300 * COLS, 2), [300, COLS]).unwrap()).unwrap();
    let cx = Context::new();
    let calibrated = |m: &dyn Method| m.prepare(&stats, &cx).unwrap().compress(&w, 0..ROWS, &cx).unwrap().op;
    let grouped =
        |bits: u32| -> Box<dyn LinearOp> { Box::new(Rtn::new().bits(bits).group(32).quantize(&w).unwrap().0) };
    // A reflection of three features, and a Hadamard matrix of 32.
    let factor: Vec<f32> = (0..9).map(|i| if i % 4 == 0 { 1.0 / 3.0 } else { -2.0 / 3.0 }).collect();
    let signs: Vec<f32> = (0..COLS).map(|i| if i % 5 == 2 { -1.0 } else { 1.0 }).collect();
    let rotation = Rotation::new(&factor, 32, &signs).unwrap();
    vec![
        ("f32", dense([ROWS, COLS], 3)),
        ("bf16", Box::new(Dense::new(values.clone(), [ROWS, COLS], DType::BF16).unwrap())),
        ("3 bits", grouped(3)),
        ("4 bits", grouped(4)),
        ("8 bits", grouped(8)),
        ("GPTQ", calibrated(&Gptq::new().bits(4).group(32).check().unwrap())),
        ("DGQ", calibrated(&Dgq::new().group(32).check().unwrap())),
        ("QQQ", calibrated(&Qqq::new().group(32).check().unwrap())),
        ("NF4", Box::new(Blockwise::nf4().quantize(&w).unwrap().0)),
        ("int8", Box::new(LlmInt8::new().quantize(&w).unwrap().0)),
        ("factors", Box::new(Factored::new(dense([ROWS, 5], 4), dense([5, COLS], 5)).unwrap())),
        ("sum", Box::new(Residual::new(grouped(4), dense([ROWS, COLS], 6)).unwrap())),
        ("parts", Box::new(Split::new(vec![grouped(8), dense([ROWS, 10], 7)]).unwrap())),
        ("rotated", Box::new(Rotated::new(rotation, grouped(4)).unwrap())),
        ("ordered", Box::new(Permuted::new((0..COLS as u32).rev().collect(), grouped(4)).unwrap())),
        ("scaled", Box::new(ScaledInputs::new((1..=COLS).map(|i| i as f32 / 9.0).collect(), grouped(4)).unwrap())),
        ("rounded inputs", Box::new(QuantizedInputs::new(ActQuant::per_token(8).unwrap(), grouped(4)).unwrap())),
    ]
}

fn product(op: &dyn LinearOp, x: &Input<'_>, exec: &Exec) -> Vec<f32> {
    let [rows, _] = op.shape();
    let shape = [x.shape()[0], rows];
    let mut y = vec![0f32; shape[0] * rows];
    op.apply(x, MatViewMut::new(&mut y, shape).unwrap(), Write::Set, exec).unwrap();
    y
}

fn close(a: &[f32], b: &[f32], tolerance: f32) -> bool {
    let max = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * max)
}

#[test]
fn all_ways_to_multiply_agree() {
    for (name, op) in forms() {
        let [rows, cols] = op.shape();
        let weight = op.decompress().unwrap();
        for isa in [Isa::detect(), Isa::SCALAR] {
            let exec = Exec::new().with_isa(isa);
            for tokens in [1, 3, 40] {
                let values = noise(tokens * cols, 11);
                let x = Input::new(&values, [tokens, cols]).unwrap();
                let y = product(&*op, &x, &exec);
                // Against the rows that the operator gives back; inputs of 8 bits are coarser.
                let want: Vec<f32> = values
                    .chunks(cols)
                    .flat_map(|x| weight.chunks(cols).map(move |w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()))
                    .collect();
                let tolerance = if name == "rounded inputs" { 2e-2 } else { 2e-4 };
                assert!(close(&y, &want, tolerance), "{name}, {tokens} tokens, {}", isa.name());
                // Added to what is there.
                let mut sum = want.clone();
                let view = MatViewMut::new(&mut sum, [tokens, rows]).unwrap();
                op.apply(&x, view, Write::Add, &exec).unwrap();
                let twice: Vec<f32> = y.iter().zip(&want).map(|(a, b)| a + b).collect();
                assert!(close(&sum, &twice, 1e-5), "{name}, added, {tokens} tokens, {}", isa.name());
                // Beside others, to the bit.
                let (mut a, mut b) = (vec![0f32; y.len()], vec![0f32; y.len()]);
                let views = vec![
                    MatViewMut::new(&mut a, [tokens, rows]).unwrap(),
                    MatViewMut::new(&mut b, [tokens, rows]).unwrap(),
                ];
                apply_all(&[&*op, &*op], &x, views, &exec).unwrap();
                assert!(a == y && b == y, "{name}, joint, {tokens} tokens, {}", isa.name());
            }
        }
    }
}

#[test]
fn the_transpose_is_that_of_the_rows() {
    for (name, op) in forms() {
        let ([rows, cols], tokens) = (op.shape(), 5);
        let (dy, weight) = (noise(tokens * rows, 21), op.decompress().unwrap());
        let mut dx = vec![1f32; tokens * cols];
        let view = MatViewMut::new(&mut dx, [tokens, cols]).unwrap();
        op.apply_transposed(MatView::new(&dy, [tokens, rows]).unwrap(), view, &Exec::new()).unwrap();
        let at = |t: usize, c: usize| (0..rows).map(|r| dy[t * rows + r] * weight[r * cols + c]).sum::<f32>();
        let want: Vec<f32> = (0..tokens * cols).map(|i| 1.0 + at(i / cols, i % cols)).collect();
        assert!(close(&dx, &want, 1e-4), "{name}");
    }
}

#[test]
fn what_is_saved_multiplies_to_the_same_bits() {
    for (name, op) in forms() {
        let mut file = MemTensors::new();
        op.save("w", &mut file).unwrap();
        assert_eq!(op.storage_bits(), 8 * file.bytes() as u64, "{name}");
        let again = tersor::registry().load(&op.spec(), "w", &file).unwrap();
        let values = noise(3 * op.shape()[1], 31);
        let x = Input::new(&values, [3, op.shape()[1]]).unwrap();
        assert_eq!(product(&*again, &x, &Exec::new()), product(&*op, &x, &Exec::new()), "{name}");
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (name, op) in forms() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = noise(2 * op.shape()[1], 41);
            values[op.shape()[1] + 3] = bad;
            let x = Input::new(&values, [2, op.shape()[1]]);
            let mut y = vec![0f32; 2 * ROWS];
            let view = MatViewMut::new(&mut y, [2, ROWS]).unwrap();
            let done = x.and_then(|x| op.apply(&x, view, Write::Set, &Exec::new()));
            assert!(matches!(done, Err(Error::NonFinite { row: 1, .. })), "{name}: {done:?}");
        }
    }
}

/// What a typed entry gives.
type Typed = (Box<dyn LinearOp>, Report);

#[test]
fn typed_entries_report_what_the_method_reports() {
    let values = noise(ROWS * COLS, 1);
    let w = MatView::new(&values, [ROWS, COLS]).unwrap();
    let mut stats = StatSet::new(COLS, StatNeeds::none().with_gram().with_channel(), 0, 0).unwrap();
    stats.observe(&MatView::new(&noise(300 * COLS, 2), [300, COLS]).unwrap()).unwrap();
    fn boxed<T: LinearOp + 'static>((op, report): (T, Report)) -> Typed {
        (Box::new(op), report)
    }
    let rtn = || Box::new(Rtn::new().bits(3).group(32).check().unwrap());
    let (gptq, dgq, qqq) = (Gptq::new().bits(3).group(32), Dgq::new().group(32), Qqq::new().group(32));
    let corrected = || Corrected::l2qer(rtn()).rank(Rank::Fixed(4));
    let ways: [(Box<dyn Method>, Typed); 6] = [
        (rtn(), boxed(Rtn::new().bits(3).group(32).quantize(&w).unwrap())),
        (Box::new(gptq.check().unwrap()), gptq.quantize(&w, &stats).unwrap()),
        (Box::new(dgq.check().unwrap()), boxed(dgq.quantize(&w, &stats).unwrap())),
        (Box::new(qqq.check().unwrap()), boxed(qqq.quantize(&w, &stats).unwrap())),
        (Box::new(corrected().check().unwrap()), corrected().quantize(&w, &stats).unwrap()),
        (Box::new(Blockwise::nf4().check().unwrap()), boxed(Blockwise::nf4().quantize(&w).unwrap())),
    ];
    for (method, (op, report)) in ways {
        let none = StatSet::none();
        let stats = if method.needs().any_data() { &stats } else { &none };
        let done = method.prepare(stats, &Context::new()).unwrap().compress(&w, 0..ROWS, &Context::new()).unwrap();
        let name = method.name();
        assert_eq!(op.spec(), done.op.spec(), "{name}");
        assert_eq!(op.decompress().unwrap(), done.op.decompress().unwrap(), "{name}");
        assert_eq!(Report { seconds: 0.0, ..report.clone() }, Report { seconds: 0.0, ..done.report }, "{name}");
        assert_eq!(report.data_energy.is_some(), report.data_error.is_some(), "{name}: {report:?}");
    }
}

/// A matrix of codes into a codebook that all matrices of a network share.
#[derive(Clone)]
struct Shared {
    codes: Vec<u8>,
    cols: usize,
    book: Arc<Vec<f32>>,
}

impl Shared {
    fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
        let book = loading.shared("book", || read_floats(loading.source(), "book", &[4]))?;
        let codes = tensors::read_expected(loading.source(), &join(prefix, "codes"), DType::U8, &spec.shape)?;
        Ok(Box::new(Self { codes, cols: spec.shape[1], book }))
    }
}

impl LinearOp for Shared {
    fn shape(&self) -> [usize; 2] {
        [self.codes.len() / self.cols, self.cols]
    }
    fn storage_bits(&self) -> u64 {
        self.codes.len() as u64 * 8
    }
    fn shared_parts(&self) -> Vec<(String, u64)> {
        vec![("book".into(), self.book.len() as u64 * 32)]
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
        let codes = &self.codes[rows.start * self.cols..rows.end * self.cols];
        out.iter_mut().zip(codes).for_each(|(o, c)| *o = self.book[usize::from(*c)]);
        Ok(())
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new("shared", [at.total, self.cols])
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let info = TensorInfo { dtype: DType::U8, shape: vec![at.total, self.cols] };
        sink.write_rows(&join(prefix, "codes"), &info, at.first, &self.codes)
    }
}

#[test]
fn a_part_of_several_operators_is_stored_loaded_and_counted_once() {
    let book = Arc::new(vec![-1.0, 0.0, 0.5, 1.0]);
    let made =
        |seed: usize| Shared { codes: (0..6).map(|i| ((i + seed) % 4) as u8).collect(), cols: 3, book: book.clone() };
    let (a, b) = (made(0), made(1));
    let mut file = MemTensors::new();
    write_floats(&mut file, "book", &[4], &book).unwrap();
    a.save("a", &mut file).unwrap();
    b.save("b", &mut file).unwrap();
    // Shared by those inside of a composition too.
    let ops: [Box<dyn LinearOp>; 2] =
        [Box::new(a.clone()), Box::new(Permuted::new(vec![2, 0, 1], Box::new(b.clone())).unwrap())];
    let own: u64 = ops.iter().map(|op| op.storage_bits()).sum();
    assert_eq!(storage_bits_of(ops.iter().map(|op| &**op)), own + 4 * 32);
    assert_eq!(storage_bits_of([&a as &dyn LinearOp, &b]), 8 * file.bytes() as u64);
    let mut registry = tersor::registry();
    registry.register("shared", Shared::load);
    let loading = Loading::new(&registry, &file);
    let (again, other) = (loading.load(&a.spec(), "a").unwrap(), loading.load(&b.spec(), "b").unwrap());
    assert_eq!(again.decompress().unwrap(), a.decompress().unwrap());
    assert_eq!(other.decompress().unwrap(), b.decompress().unwrap());
    let mut reads = 0;
    let found = loading.shared("book", || -> Result<Vec<f32>> {
        reads += 1;
        Ok(Vec::new())
    });
    assert_eq!((&*found.unwrap(), reads), (&*book, 0), "made once, by the first operator");
    assert!(loading.shared("book", || Ok(1u8)).is_err(), "another type");
    // A part made of another shared part.
    let sum = loading.shared("sum", || Ok(loading.shared("book", || Ok(Vec::new()))?.iter().sum::<f32>())).unwrap();
    assert_eq!(*sum, 0.5);
}
