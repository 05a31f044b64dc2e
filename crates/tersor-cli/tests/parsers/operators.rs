//! Loaders of operators: each kind of the registry, and bitsandbytes' modules. A loaded operator is used, too.

use tersor::blockwise::{Blockwise, bitsandbytes};
use tersor::core::{
    DType, Exec, Input, LinearOp, MatView, MatViewMut, MemTensors, OpSpec, Rotation, TensorSource, Write,
};
use tersor::formats::json;
use tersor::groupwise::{Grid, Rtn};
use tersor::operators::{
    ActQuant, Dense, DualLinear, Factored, Permuted, QuantizedInputs, Residual, Rotated, RowwiseInt8, ScaledInputs,
    Split, TableLinear,
};

use super::{file_of, parsed, split, stored};

type Op = Box<dyn LinearOp>;

/// Values of a matrix whose compressed forms are used completely; larger ones are loaded only.
const MAX_ELEMENTS: usize = 1 << 16;

/// Returns `n` numbers between -1 and 1.
pub fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Quantizes a matrix `[4, 20]` by round-to-nearest.
fn rounded(rtn: Rtn) -> Op {
    Box::new(rtn.quantize(&MatView::new(&values(80), [4, 20]).unwrap()).unwrap().0)
}

fn dense(shape: [usize; 2], dtype: DType) -> Op {
    Box::new(Dense::new(values(shape[0] * shape[1]), shape, dtype).unwrap())
}

/// Quantizes a matrix `[4, 20]` by blocks.
fn blocks(method: Blockwise) -> Op {
    Box::new(method.quantize(&MatView::new(&values(80), [4, 20]).unwrap()).unwrap().0)
}

/// Returns an orthogonal matrix of order 3 over a Hadamard matrix of order 4.
pub fn rotation() -> Rotation {
    let factor: Vec<f32> = (0..9).map(|i| f32::from(u8::from(i % 4 == 0)) - 2.0 / 3.0).collect();
    let signs: Vec<f32> = (0..12).map(|i| if i % 5 < 2 { -1.0 } else { 1.0 }).collect();
    Rotation::new(&factor, 4, &signs).unwrap()
}

/// Returns an operator of each kind, and of each variant of a kind that is stored in another way.
fn all() -> Vec<Op> {
    let codes: Vec<u8> = (0..80).map(|i| (i * 7 % 15 + 1) as u8).collect();
    let group = |n| tersor::core::GroupSize::size(n).unwrap();
    let dual = DualLinear::new([4, 20], group(8), &codes, vec![3; 12], vec![7; 12], vec![0.5; 4]).unwrap();
    let full = Rtn::new().bits(4).group(8).grid(Grid::SymFull).quantize(&MatView::new(&values(80), [4, 20]).unwrap());
    let rowwise = RowwiseInt8::from_parts((0..80).map(|i| (i * 3 - 120) as i8).collect(), vec![0.5; 4], [4, 20]);
    let low_rank = || Factored::new(dense([4, 2], DType::F16), dense([2, 20], DType::BF16)).unwrap();
    let acts = [
        ActQuant::per_token(8).unwrap(),
        ActQuant::per_tensor(4).unwrap(),
        ActQuant::fixed(8, 0.5).unwrap(),
        ActQuant::channels(8, vec![0.5; 20]).unwrap(),
        ActQuant::mxint(8, 16).unwrap(),
        ActQuant::asymmetric(4, 2).unwrap(),
    ];
    let rtn = || Rtn::new().bits(4).group(8);
    let mut all: Vec<Op> = vec![
        dense([3, 5], DType::F32),
        dense([3, 5], DType::F16),
        dense([3, 5], DType::BF16),
        rounded(Rtn::new().bits(3).group(8)),
        rounded(rtn().symmetric()),
        rounded(Rtn::new().bits(8).per_channel().grid(Grid::SymNarrow).scales(DType::F32)),
        rounded(Rtn::new().bits(5).per_tensor()),
        rounded(Rtn::mxint(4)),
        Box::new(dual),
        Box::new(TableLinear::of_grouped(&full.unwrap().0, &Exec::serial()).unwrap()),
        blocks(Blockwise::nf4()),
        blocks(Blockwise::fp4().block(16).nested(true)),
        blocks(Blockwise::dynamic()),
        Box::new(rowwise.unwrap()),
        Box::new(low_rank()),
        Box::new(Residual::new(rounded(rtn()), Box::new(low_rank())).unwrap()),
        Box::new(Split::new(vec![rounded(rtn()), dense([4, 3], DType::F16)]).unwrap()),
        Box::new(Rotated::new(rotation(), dense([4, 12], DType::F16)).unwrap()),
        Box::new(Permuted::new((0..20).rev().collect(), rounded(rtn())).unwrap()),
        Box::new(ScaledInputs::new(vec![0.5; 20], rounded(rtn())).unwrap()),
    ];
    all.extend(acts.map(|a| Box::new(QuantizedInputs::new(a, rounded(rtn().symmetric())).unwrap()) as Op));
    all
}

/// Returns a specification and a file of tensors as one file: the length of the specification in 4 bytes, the specification as JSON, the tensors as
/// safetensors.
pub fn joined(spec: &OpSpec, tensors: &MemTensors) -> Vec<u8> {
    let spec = json::from_spec(spec).to_string().into_bytes();
    [&(spec.len() as u32).to_le_bytes()[..], &spec, &file_of(tensors)].concat()
}

pub fn operators() -> Vec<Vec<u8>> {
    let save = |op: &Op| {
        let mut tensors = MemTensors::new();
        op.save("w", &mut tensors).unwrap();
        joined(&op.spec(), &tensors)
    };
    all().iter().map(save).collect()
}

pub fn operator(bytes: &[u8]) -> bool {
    let Some((spec, file)) = split(bytes) else { return false };
    let spec = parsed(spec).and_then(|j| json::to_spec(&j).ok());
    spec.zip(stored(file)).is_some_and(|(spec, file)| loads(&spec, &file))
}

/// Returns a compressed matrix `[4, 20]` with its tensors.
pub fn small() -> (OpSpec, MemTensors) {
    let op = rounded(Rtn::new().bits(3).group(8));
    let op = QuantizedInputs::new(ActQuant::per_token(8).unwrap(), op).unwrap();
    let mut tensors = MemTensors::new();
    op.save("w", &mut tensors).unwrap();
    (op.spec(), tensors)
}

/// Loads an operator and uses it.
pub fn loads(spec: &OpSpec, source: &dyn TensorSource) -> bool {
    tersor::registry().load(spec, "w", source).is_ok_and(|op| works(&*op))
}

/// Uses all of an operator: reads its rows, multiplies, saves, and loads what was saved. Returns whether the products have no error.
///
/// # Panics
///
/// If what was saved does not load.
fn works(op: &dyn LinearOp) -> bool {
    let [rows, cols] = op.shape();
    let size = rows.checked_mul(cols).filter(|n| *n.max(&rows).max(&cols) < MAX_ELEMENTS);
    let Some(size) = size else { return true };
    let mut tensors = MemTensors::new();
    if op.save("w", &mut tensors).is_ok() {
        let again = tersor::registry().load(&op.spec(), "w", &tensors);
        assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
        assert_eq!(op.storage_bits(), 8 * tensors.bytes() as u64, "bits of a `{}`", op.spec().kind);
    }
    let exec = Exec::serial();
    let mut ok = op.decompress_rows(0..rows, &mut vec![0.0; size], &exec).is_ok();
    // One token takes other kernels than several.
    for tokens in [1, 3] {
        let (x, mut y) = (values(tokens * cols), vec![0.0; tokens * rows]);
        let input = Input::new(&x, [tokens, cols]).unwrap();
        ok &= op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Set, &exec).is_ok();
        let (dy, mut dx) = (values(tokens * rows), vec![0.0; tokens * cols]);
        let dx = MatViewMut::new(&mut dx, [tokens, cols]).unwrap();
        ok &= op.apply_transposed(MatView::new(&dy, [tokens, rows]).unwrap(), dx, &exec).is_ok();
    }
    ok
}

pub fn bitsandbytes_files() -> Vec<Vec<u8>> {
    let fours = [Blockwise::nf4(), Blockwise::fp4().block(16), Blockwise::nf4().block(16).nested(true)];
    let mut files: Vec<Vec<u8>> = (fours.into_iter())
        .map(|method| {
            let mut tensors = MemTensors::new();
            blocks(method).save("m.weight", &mut tensors).unwrap();
            file_of(&tensors)
        })
        .collect();
    let mut tensors = MemTensors::new();
    let int8 = RowwiseInt8::from_parts((0..15).map(|i| i * 8).collect(), vec![0.5, 0.0, 2.0], [3, 5]).unwrap();
    bitsandbytes::write_int8(&int8, "m", &mut tensors).unwrap();
    files.push(file_of(&tensors));
    files
}

pub fn bitsandbytes_file(bytes: &[u8]) -> bool {
    stored(bytes).is_some_and(|file| bitsandbytes::read_linear("m", &file).is_ok_and(|op| works(&*op)))
}
