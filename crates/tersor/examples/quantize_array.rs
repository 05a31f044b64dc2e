//! An ndarray matrix becomes a compressed operator, goes to a file and comes back: `cargo run --release -p tersor --example quantize_array`.

use std::collections::BTreeMap;

use tersor::core::ndarray::Array2;
use tersor::core::{LinearOp, LinearOpExt, MemTensors, Result, RowSlot, StatNeeds, StatSet, TensorSink, TensorSource};
use tersor::formats::json;
use tersor::formats::safetensors::{File, Writer};
use tersor::groupwise::{Gptq, Rtn};

fn main() -> Result<()> {
    // A weight matrix `[out_features, in_features]`, and inputs `[tokens, in_features]` whose features depend on each other.
    let wave = |a: usize, b: usize| ((a * 31 + b * 17) as f32 * 0.37).sin() + 0.1 * ((a * b) as f32 * 0.011).cos();
    let weights = Array2::from_shape_fn((256, 512), |(r, c)| wave(r, c));
    let mixing = Array2::from_shape_fn((24, 512), |(r, c)| wave(c, r + 3));
    let inputs = Array2::from_shape_fn((2000, 24), |(r, c)| wave(r * 7, c + 5)).dot(&mixing);
    let exact = inputs.dot(&weights.t());

    let mut stats = StatSet::new(512, StatNeeds { gram: true, ..StatNeeds::none() }, 0, 0)?;
    stats.observe(&inputs)?;
    let rounded: Box<dyn LinearOp> = Box::new(Rtn::new().bits(4).group(128).quantize(&weights)?.0);
    let compensated = Gptq::new().bits(4).group(128).quantize(&weights, &stats)?.0;

    println!("{:<12} {:>12} {:>10} {:>16}", "operator", "bits/weight", "bytes", "output error");
    for (name, op) in [("rounded", rounded), ("gptq", compensated)] {
        // To a file: tensors with names of their own, and the specification, which says how to load them.
        let path = std::env::temp_dir().join(format!("tersor-example-{}-{name}.safetensors", std::process::id()));
        save(&path, &*op)?;
        let spec = op.spec_block(RowSlot::whole(op.shape()[0]));
        let spec = json::to_spec(&json::from_spec(&spec))?;
        // And back, where the original stood.
        let again = tersor::registry().load(&spec, "w", &File::open(&path, &Default::default())?)?;
        std::fs::remove_file(&path).map_err(|e| tersor::core::Error::io(&path, e))?;
        let y = again.matmul(&inputs)?;
        assert_eq!(y, op.matmul(&inputs)?);
        let bits = again.storage_bits();
        let error = ((&y - &exact).mapv(|d| d * d).sum() / exact.mapv(|d| d * d).sum()).sqrt();
        println!("{name:<12} {:>12.3} {:>10} {error:>16.5}", bits as f64 / weights.len() as f64, bits / 8);
    }
    Ok(())
}

/// Writes an operator to a safetensors file, as tensors whose names begin with `w.`.
fn save(path: &std::path::Path, op: &dyn LinearOp) -> Result<()> {
    let mut tensors = MemTensors::new();
    op.save_block("w", RowSlot::whole(op.shape()[0]), &mut tensors)?;
    let infos = tensors.names().into_iter().map(|name| Ok((name.clone(), tensors.info(&name)?)));
    let infos = infos.collect::<Result<BTreeMap<_, _>>>()?;
    let mut writer = Writer::create(path, infos.clone())?;
    for (name, info) in &infos {
        writer.write_shared(name, info, tensors.get(name).unwrap_or_default())?;
    }
    writer.finish()
}
