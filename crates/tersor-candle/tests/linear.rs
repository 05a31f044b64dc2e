//! Compressed layers: their outputs and gradients are those of the decompressed weights, and faults are errors.

mod common;

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor, Var};
use common::{difference, fails, operators, random, refuses, tensor};
use tersor::core::{Exec, Isa, LinearOp};
use tersor::operators::{DType as Stored, Dense};
use tersor_candle::{CompressedEmbedding, CompressedLinear, Error, Matrix};

#[test]
fn outputs_are_those_of_the_decompressed_weights() {
    for (name, op) in operators() {
        let layer = CompressedLinear::new(op, Some(tensor(2, 40))).unwrap();
        let dense = layer.dequantize().unwrap();
        for x in [tensor(3, (5, 96)), tensor(4, (2, 3, 96)), tensor(5, (2, 1, 3, 96))] {
            let (y, expected) = (layer.forward(&x).unwrap(), dense.forward(&x).unwrap());
            assert!(difference(&y, &expected) < 1e-5, "{name}: {}", difference(&y, &expected));
        }
        // A vector, views, and no tokens.
        let one = layer.forward(&tensor(3, 96)).unwrap();
        let row = dense.forward(&tensor(3, (1, 96))).unwrap().squeeze(0).unwrap();
        assert!(difference(&one, &row) < 1e-5);
        let view = tensor(6, (96, 7)).t().unwrap();
        assert!(difference(&layer.forward(&view).unwrap(), &dense.forward(&view).unwrap()) < 1e-5);
        let part = tensor(6, (9, 96)).narrow(0, 3, 4).unwrap();
        assert!(difference(&layer.forward(&part).unwrap(), &dense.forward(&part).unwrap()) < 1e-5);
        let none = Tensor::zeros((2, 0, 96), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(layer.forward(&none).unwrap().dims(), [2, 0, 40]);
    }
}

#[test]
fn halves_are_computed_in_f32_and_rounded() {
    for (name, op) in operators() {
        let layer = CompressedLinear::new(op, Some(tensor(2, 40))).unwrap();
        for (dtype, tolerance) in [(DType::F16, 1e-3), (DType::BF16, 8e-3)] {
            let x = tensor(3, (2, 3, 96)).to_dtype(dtype).unwrap();
            let y = layer.forward(&x).unwrap();
            let exact = layer.forward(&x.to_dtype(DType::F32).unwrap()).unwrap();
            assert_eq!(y.dtype(), dtype);
            let off = difference(&y.to_dtype(DType::F32).unwrap(), &exact);
            assert!(off < tolerance, "{name} {dtype:?}: {off}");
        }
    }
}

#[test]
fn gradients_are_those_of_candle_on_the_decompressed_weights() {
    for (name, op) in operators() {
        let bias = Var::from_tensor(&tensor(2, 40)).unwrap();
        let layer = CompressedLinear::new(op, Some(bias.as_tensor().clone())).unwrap();
        let dense = layer.dequantize().unwrap();
        let x = Var::from_tensor(&tensor(3, (2, 3, 96))).unwrap();
        let loss = |layer: &dyn Module, x: &Tensor| layer.forward(x)?.sqr()?.sum_all();
        let (ours, theirs) = (loss(&layer, &x).unwrap(), loss(&dense, &x).unwrap());
        assert!(difference(&ours, &theirs) < 1e-5);
        let (ours, theirs) = (ours.backward().unwrap(), theirs.backward().unwrap());
        for var in [&x, &bias] {
            let off = difference(ours.get(var).unwrap(), theirs.get(var).unwrap());
            assert!(off < 1e-5, "{name}: {off}");
        }
        // Through a view, in half precision.
        let half = Var::from_tensor(&tensor(3, (96, 4)).to_dtype(DType::BF16).unwrap()).unwrap();
        let grads = loss(&layer, &half.t().unwrap()).unwrap().backward().unwrap();
        let wide = Var::from_tensor(&half.to_dtype(DType::F32).unwrap()).unwrap();
        let exact = loss(&dense, &wide.t().unwrap()).unwrap().backward().unwrap();
        let found = grads.get(&half).unwrap();
        assert_eq!(found.dtype(), DType::BF16);
        assert!(difference(&found.to_dtype(DType::F32).unwrap(), exact.get(&wide).unwrap()) < 0.03);
    }
}

#[test]
fn two_backward_passes_give_the_same() {
    let (_, op) = operators().remove(0);
    let layer = CompressedLinear::new(op, None).unwrap();
    let x = Var::from_tensor(&tensor(3, (3, 96))).unwrap();
    let loss =
        layer.forward(&layer.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap().broadcast_as((3, 96)).unwrap());
    let loss = loss.unwrap().sum_all().unwrap();
    let grad = || loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(grad(), grad());
}

#[test]
fn instruction_sets_and_threads_agree() {
    for (_, op) in operators() {
        let layer = CompressedLinear::new(op, None).unwrap();
        let serial = layer.clone().with_exec(Exec::serial());
        let scalar = layer.clone().with_exec(Exec::new().with_isa(Isa::SCALAR));
        let x = tensor(3, (7, 96));
        let (y, one) = (layer.forward(&x).unwrap(), serial.forward(&x).unwrap());
        assert_eq!(y.to_vec2::<f32>().unwrap(), one.to_vec2::<f32>().unwrap());
        assert!(difference(&scalar.forward(&x).unwrap(), &y) < 1e-5);
    }
}

#[test]
fn faults_are_errors() {
    for (_, op) in operators() {
        let layer = CompressedLinear::new(op.clone(), None).unwrap();
        fails(layer.forward(&tensor(1, (2, 95))), &["features of the input", "96", "95"]);
        fails(layer.forward(&Tensor::zeros((), DType::F32, &Device::Cpu).unwrap()), &["axis"]);
        let mut values = random(1, 2 * 96);
        values[96 + 3] = f32::NAN;
        let nan = Tensor::from_vec(values, (1, 2, 96), &Device::Cpu).unwrap();
        fails(layer.forward(&nan), &["NaN", "row 1", "column 3"]);
        for dtype in [DType::F64, DType::I64, DType::U8] {
            fails(layer.forward(&tensor(1, (2, 96)).to_dtype(dtype).unwrap()), &[&format!("{dtype:?}"), "to_dtype"]);
        }
        refuses(CompressedLinear::new(op, Some(tensor(1, 41))), &["bias", "[40]", "[41]"]);
    }
    let matrix = tensor(1, (3, 4));
    let typed = Matrix::new(&matrix.to_dtype(DType::U8).unwrap());
    assert!(matches!(typed, Err(Error::DType { found: DType::U8, .. })));
    refuses(Matrix::new(&tensor(1, (1, 3, 4))), &["axes of a matrix"]);
}

#[test]
fn embeddings_are_rows() {
    let (_, op) = operators().remove(2);
    let table = CompressedLinear::new(op.clone(), None).unwrap().dequantize().unwrap().weight().clone();
    let ids = Tensor::new(&[[0u32, 39, 7], [7, 7, 1]], &Device::Cpu).unwrap();
    let embedding = CompressedEmbedding::new(op.clone(), DType::F32).unwrap();
    let rows = embedding.forward(&ids).unwrap();
    assert_eq!(rows.dims(), [2, 3, 96]);
    let expected = table.index_select(&ids.flatten_all().unwrap(), 0).unwrap().reshape((2, 3, 96)).unwrap();
    assert!(difference(&rows, &expected) == 0.0);
    let half = CompressedEmbedding::new(op.clone(), DType::F16).unwrap().forward(&ids).unwrap();
    assert_eq!(half.dtype(), DType::F16);
    fails(embedding.forward(&Tensor::new(&[40u32], &Device::Cpu).unwrap()), &["0..40", "40"]);
    fails(embedding.forward(&Tensor::new(&[-1i64], &Device::Cpu).unwrap()), &["-1"]);
    fails(embedding.forward(&Tensor::new(&[1f32], &Device::Cpu).unwrap()), &["F32", "to_dtype"]);
    refuses(CompressedEmbedding::new(op, DType::I64), &["I64"]);
}

#[test]
fn matrices_of_any_strides_and_types() {
    use tersor::core::IntoMat;
    let w = tensor(1, (6, 8));
    let values = |m: &Matrix| m.with_mat(|m| Ok((m.shape(), m.to_f32().into_owned()))).unwrap();
    let own = w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&Matrix::new(&w).unwrap()), ([6, 8], own.clone()));
    assert_eq!(values(&Matrix::new(&w.t().unwrap().contiguous().unwrap().t().unwrap()).unwrap()), ([6, 8], own));
    let part = w.narrow(0, 2, 3).unwrap().narrow(1, 1, 4).unwrap();
    let expected = part.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&Matrix::new(&part).unwrap()), ([3, 4], expected));
    let half = w.to_dtype(DType::BF16).unwrap();
    let expected = half.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&Matrix::new(&half).unwrap()), ([6, 8], expected));
}

#[test]
fn modules_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<CompressedLinear>();
    shared::<CompressedEmbedding>();
    shared::<tersor_candle::ObservedLinear<CompressedLinear>>();
    shared::<tersor_candle::TapLinear>();
    shared::<tersor_candle::Function>();
}

#[test]
fn clones_share_the_matrix() {
    let op: Arc<dyn LinearOp> = Arc::new(Dense::new(random(1, 8), [2, 4], Stored::F16).unwrap());
    let layer = CompressedLinear::new(op.clone(), None).unwrap();
    let other = layer.clone();
    assert!(Arc::ptr_eq(layer.op(), other.op()) && Arc::ptr_eq(layer.op(), &op));
    let shown = format!("{layer:?}");
    assert!(shown.contains("dense") && shown.contains("[2, 4]") && shown.contains("bias: false"), "{shown}");
}
