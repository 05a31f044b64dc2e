//! `tersor convert`: any model as plain Hugging Face safetensors.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tersor::core::compose::Dense;
use tersor::core::{DType, Error, Limits, LinearOp, ParamError, Registry, Result, RowSlot, TensorInfo, TensorSink};
use tersor::formats::safetensors::Writer;
use tersor::formats::{Model, json as files};
use tersor::llm::{MANIFEST, Manifest};

use crate::compress::each_block;
use crate::output::{self, Output, Share};
use crate::{args, megabytes, print_json};

/// File that says what a converted directory was made of.
const RECORD: &str = "conversion.json";

/// A tensor on its way: where it comes from and what it becomes.
struct Item {
    name: String,
    info: TensorInfo,
    file: String,
}

pub fn run(a: &args::Convert, json: bool) -> Result<()> {
    let dtype = DType::from_name(&a.to).filter(|d| d.is_weight());
    let dtype = dtype.ok_or_else(|| ParamError::new("to", format!("`{}`", a.to), "must be f16, bf16 or f32"))?;
    let model = Model::open(&a.model, &Limits::default())?;
    let manifest = a.model.join(MANIFEST);
    let manifest =
        if manifest.is_file() { Some(Manifest::from_json(files::read(&manifest, &Limits::default())?)?) } else { None };
    let items = items(&model, manifest.as_ref(), dtype);
    let inputs = json!({
        "model": blake3::hash(format!("{:?}{:?}", model.files(), model.tensors()).as_bytes()).to_hex().to_string(),
        "fingerprint": manifest.as_ref().map(|m| m.json["fingerprint"].clone()), "to": dtype.name(), "version": env!("CARGO_PKG_VERSION"),
    });
    let total = match output::open(&a.out, &inputs, &Json::Null, RECORD, Share::Alone)? {
        Output::Finished => items.iter().map(|i| i.info.bytes().unwrap_or(0) as u64).sum(),
        Output::Open(work) => {
            let mut layout: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
            for i in &items {
                layout.entry(i.file.clone()).or_default().insert(i.name.clone(), i.info.clone());
            }
            let mut shards = Vec::new();
            let registry = tersor::registry();
            for (file, tensors) in layout {
                let names = tensors.keys().cloned().collect();
                let mut writer = Writer::create(&work.pending(&file), tensors)?;
                for item in items.iter().filter(|i| i.file == file) {
                    write(&model, manifest.as_ref(), &registry, item, &mut writer)
                        .map_err(|e| e.in_tensor(&item.name))?;
                }
                writer.finish()?;
                shards.push((file, names));
            }
            let total: u64 = items.iter().map(|i| i.info.bytes().unwrap_or(0) as u64).sum();
            let config = model.config().cloned().map(|c| with_dtype(c, dtype));
            let beside = output::companions(&model, config, &shards, total)?;
            let weights: Vec<String> = shards.into_iter().map(|(f, _)| f).collect();
            work.finish(&weights, &beside, (RECORD, files::to_bytes(&json!({"inputs": inputs}))))?;
            total
        }
    };
    if json {
        print_json(&json!({"out": a.out, "to": dtype.name(), "tensors": items.len(), "bytes": total}));
    } else {
        crate::say!("{}: {} tensors, {} in {}", a.out.display(), items.len(), megabytes(total), dtype.name());
    }
    Ok(())
}

fn with_dtype(mut config: Json, dtype: DType) -> Json {
    config["torch_dtype"] = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
    .into();
    config
}

fn items(model: &Model, manifest: Option<&Manifest>, dtype: DType) -> Vec<Item> {
    let specs = manifest.map(|m| &m.specs);
    let tied = model.config().is_some_and(|c| c["tie_word_embeddings"] == true);
    let mut out: Vec<Item> = Vec::new();
    for (name, spec) in specs.into_iter().flatten() {
        // Parts of one matrix lie in one file; any of them tells which.
        let part = model
            .tensors()
            .into_iter()
            .find(|t| t.name.strip_prefix(name.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.')));
        let file = part.map_or("model.safetensors".into(), |t| model.shard_of(&t.name).to_string());
        out.push(Item { name: name.clone(), info: TensorInfo { dtype, shape: spec.shape.to_vec() }, file });
    }
    for t in model.tensors() {
        let part = specs.is_some_and(|s| {
            s.keys().any(|n| t.name.strip_prefix(n.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.')))
        });
        if part || (tied && t.name == "lm_head.weight") || (model.gguf().is_some() && t.name == "rope_freqs.weight") {
            continue;
        }
        let stored = DType::from_name(&t.dtype);
        // Whole numbers and the like keep their type.
        let kept = stored.filter(|d| !d.is_weight() && *d != DType::F64);
        let file = model.shard_of(&t.name).to_string();
        out.push(Item { name: t.name, info: TensorInfo { dtype: kept.unwrap_or(dtype), shape: t.shape }, file });
    }
    out
}

fn write(
    model: &Model,
    manifest: Option<&Manifest>,
    registry: &Registry,
    item: &Item,
    sink: &mut Writer,
) -> Result<()> {
    if let (Some(spec), Some(stored)) = (manifest.and_then(|m| m.specs.get(&item.name)), model.stored()) {
        let op = registry.load(spec, &item.name, stored)?;
        let [rows, cols] = op.shape();
        return each_block(&*op, |first, block| put(item, block, [rows, cols], first, sink));
    }
    if !item.info.dtype.is_weight() {
        let stored =
            model.stored().ok_or_else(|| Error::Unsupported { what: "type", value: item.info.dtype.name().into() })?;
        let mut bytes = vec![0u8; item.info.bytes()?];
        stored.read_at(&item.name, 0, &mut bytes)?;
        return sink.write_shared(&item.name, &item.info, &bytes);
    }
    let rows = model.rows(&item.name)?;
    let [n, cols] = rows.shape();
    // What is no matrix is small, and goes out in one piece.
    let step = if item.info.shape.len() == 2 { ((8usize << 20) / 4 / cols.max(1)).max(1) } else { n.max(1) };
    for first in (0..n).step_by(step) {
        let block = tersor::core::read_finite(&*rows, first..(first + step).min(n))?;
        put(item, block, [n, cols], first, sink)?;
    }
    if n == 0 || cols == 0 {
        sink.write_shared(&item.name, &item.info, &[])?;
    }
    Ok(())
}

/// Rounds a block of rows to the item's type; a value that becomes infinite is an error.
fn put(item: &Item, block: Vec<f32>, [rows, cols]: [usize; 2], first: usize, sink: &mut Writer) -> Result<()> {
    let n = block.len() / cols.max(1);
    let dense = Dense::new(block, [n, cols], item.info.dtype).map_err(|e| match e {
        Error::NonFinite { row, col, value } => Error::NonFinite { row: first + row, col, value },
        other => other,
    })?;
    if item.info.shape.len() == 2 {
        return dense.save(&item.name, RowSlot { first, total: rows }, sink);
    }
    // A vector is one row here and an axis of its own in the file.
    let mut bytes = vec![0u8; item.info.bytes()?];
    let mut values = vec![0f32; n * cols];
    dense.decompress_rows(0..n, &mut values)?;
    item.info.dtype.narrow_bytes(&values, &mut bytes);
    sink.write_shared(&item.name, &item.info, &bytes)
}
