//! Directories: what the pipeline writes is loaded matrix by matrix, originals too, and faults are errors.
#![cfg(feature = "models")]

mod common;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, Tensor};
use common::{difference, refuses, tensor};
use tersor::core::{Context, Limits, LinearOpExt};
use tersor::models::Checkpoint;
use tersor::pipeline::Pipeline;
use tersor_candle::{Compressed, Error};

fn tiny() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki"))
}

fn compress(recipe: &str, out: &Path) {
    let (kinds, cx) = (tersor::kinds(), Context::new());
    Pipeline::open(tiny(), recipe, kinds).unwrap().plan(&cx).unwrap().compress(out, &cx).unwrap();
}

#[test]
fn a_compressed_directory_loads_matrix_by_matrix() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["w4-g32-rtn", "w4-g64-nf4", "w4a8-g32-rtn", "w3-g32-rtn-lqer-r8"] {
        let out = dir.path().join(recipe);
        compress(recipe, &out);
        let (model, original) = (Compressed::open(&out).unwrap(), Compressed::open(tiny()).unwrap());
        // The same weights have the same names.
        assert!(model.names().eq(original.names()), "{recipe}");
        assert!(model.names().filter(|n| model.is_compressed(n)).count() > 7);
        let checkpoint = Checkpoint::open(&out, &tersor::registry()).unwrap();
        for name in ["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"].map(|n| format!("model.layers.1.{n}")) {
            let layer = model.linear(&name).unwrap();
            let weight = format!("{name}.weight");
            assert!(model.is_compressed(&weight) && !original.is_compressed(&weight));
            let values = checkpoint.matrix(&weight, layer.shape()).unwrap().decompress().unwrap();
            let dense = model.tensor(&weight).unwrap();
            assert_eq!(dense.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
            let x = tensor(3, (2, 5, layer.shape()[1]));
            let (y, expected) = (layer.forward(&x).unwrap(), layer.dequantize().unwrap().forward(&x).unwrap());
            // Integer activations are rounded.
            let tolerance = if recipe.contains("a8") { 0.02 } else { 1e-5 };
            assert!(difference(&y, &expected) < tolerance, "{recipe} {name}: {}", difference(&y, &expected));
            let before = original.linear(&name).unwrap().forward(&x).unwrap();
            let off = difference(&y, &before);
            assert!(off > 0.0 && off < 0.3, "{recipe} {name}: {off}");
        }
        let norm = model.tensor("model.norm.weight").unwrap();
        assert!(difference(&norm, &original.tensor("model.norm.weight").unwrap()) == 0.0);
        let table = model.embedding("model.embed_tokens", DType::F32).unwrap();
        let rows = table.forward(&Tensor::new(&[[3u32, 5]], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(rows.dims(), [1, 2, table.op().shape()[1]]);
        assert!(model.checkpoint().architecture().is_ok());
    }
}

#[test]
fn an_original_keeps_its_types() {
    let model = Compressed::open(tiny()).unwrap();
    let stored = tersor::formats::Model::open(&tiny(), &Limits::default()).unwrap();
    for name in model.names() {
        let (tensor, about) = (model.tensor(name).unwrap(), stored.tensor(name).unwrap());
        assert_eq!((tensor.dims(), format!("{:?}", tensor.dtype())), (&about.shape[..], about.dtype));
    }
}

/// Writes a directory with one safetensors file, and no configuration.
fn directory(dir: &Path, tensors: &[(&str, Tensor)]) {
    let all = tensors.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
    candle_core::safetensors::save::<String, _>(&all, dir.join("model.safetensors")).unwrap();
}

#[test]
fn biases_types_and_models_of_any_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let (w, b) = (tensor(1, (6, 4)), tensor(2, 6).to_dtype(DType::F16).unwrap());
    let count = Tensor::new(7i64, &Device::Cpu).unwrap();
    let conv = tensor(5, (2, 3, 3, 3)).to_dtype(DType::F64).unwrap();
    let bad = (tensor(1, 4) * f64::INFINITY).unwrap();
    let half = w.to_dtype(DType::BF16).unwrap();
    let all =
        [("a.weight", w.clone()), ("a.bias", b.clone()), ("plain", half), ("count", count), ("conv.weight", conv)];
    let wrong = [("bad", bad), ("short.weight", w.clone()), ("short.bias", tensor(1, 5))];
    directory(dir.path(), &[&all[..], &wrong[..]].concat());
    let model = Compressed::open(dir.path()).unwrap();
    let layer = model.linear("a").unwrap();
    let x = tensor(3, (3, 4));
    let expected = candle_nn::Linear::new(w.clone(), Some(b.to_dtype(DType::F32).unwrap())).forward(&x).unwrap();
    assert!(difference(&layer.forward(&x).unwrap(), &expected) < 1e-5);
    assert_eq!(model.linear("plain").unwrap().shape(), [6, 4]);
    assert_eq!(model.tensor("count").unwrap().to_scalar::<i64>().unwrap(), 7);
    assert_eq!(model.tensor("conv.weight").unwrap().dtype(), DType::F64);
    refuses(model.linear("conv"), &["conv.weight", "axes", "2", "4"]);
    refuses(model.linear("short"), &["bias", "[6]", "[5]"]);
    refuses(model.tensor("bad"), &["bad", "inf"]);
    for found in [model.linear("b").err(), model.tensor("b.weight").err(), model.embedding("b", DType::F32).err()] {
        let found = found.unwrap();
        assert!(
            matches!(&found, Error::Tersor(tersor::core::Error::Missing { name, .. }) if name == "b.weight"),
            "{found}"
        );
    }
    refuses(Compressed::open(dir.path().join("none")), &["none"]);
}
