//! Hugging Face safetensors in f16, bf16 or f32.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value as Json, json};
use tersor_core::{Context, DType, Error, Exec, LinearOp, Result, RowSlot, TensorInfo, TensorSink, read_finite};
use tersor_formats::json as files;
use tersor_formats::safetensors::Writer;
use tersor_operators::Dense;

use super::Source;
use crate::output::{self, Output, Share};
use crate::rows::block_rows;

/// The name of the JSON file that records the inputs of a converted directory.
pub(crate) const RECORD: &str = "conversion.json";

/// A tensor to write: name, type, shape, and file.
struct Item {
    name: String,
    info: TensorInfo,
    file: String,
}

/// A directory of safetensors files, as [`export`](super::export) wrote it.
#[derive(Clone, Debug, Serialize)]
pub struct PlainExport {
    /// The directory, as it was given.
    pub out: PathBuf,
    /// The name of the float type of the tensors: `F16`, `BF16` or `F32`.
    pub to: &'static str,
    /// The number of tensors.
    pub tensors: usize,
    /// The total length of the tensors in bytes, without headers.
    pub bytes: u64,
}

/// Writes the tensors of `source` in the float type `dtype` to the directory `out`. Errors as [`export`](super::export) does.
pub(crate) fn run(source: &Source, dtype: DType, out: &Path, cx: &Context) -> Result<PlainExport> {
    let bytes = write_out(source, dtype, out, cx)?;
    Ok(PlainExport { out: out.to_path_buf(), to: dtype.name(), tensors: source.tensors().len(), bytes })
}

/// Writes the directory `out`, unless it is finished; returns the total length of its tensors in bytes. Errors as [`export`](super::export) does.
pub(crate) fn write_out(source: &Source, dtype: DType, out: &Path, cx: &Context) -> Result<u64> {
    let items = items(source, dtype);
    let inputs = source.inputs(dtype.name())?;
    let total: u64 = items.iter().map(|i| i.info.bytes().unwrap_or(0) as u64).sum();
    if let Output::Open(work) = output::open(out, &inputs, &Json::Null, RECORD, Share::Alone)? {
        let mut layout: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
        for i in &items {
            layout.entry(i.file.clone()).or_default().insert(i.name.clone(), i.info.clone());
        }
        let mut shards = Vec::new();
        cx.progress.begin("convert", items.len() as u64);
        for (file, tensors) in layout {
            let names = tensors.keys().cloned().collect();
            let mut writer = Writer::create(&work.pending(&file), tensors)?;
            for item in items.iter().filter(|i| i.file == file) {
                cx.cancel.check()?;
                write(source, item, &mut writer).map_err(|e| e.in_tensor(&item.name))?;
                cx.progress.advance(1, &item.name);
            }
            writer.finish()?;
            shards.push((file, names));
        }
        cx.progress.end();
        let config = source.model.config().cloned().map(|c| with_dtype(c, dtype));
        let beside = output::companions(&source.model, config, &shards, total)?;
        let weights: Vec<String> = shards.into_iter().map(|(f, _)| f).collect();
        work.finish(&weights, &beside, (RECORD, files::to_bytes(&json!({"inputs": inputs}))), &*cx.progress)?;
    }
    Ok(total)
}

fn items(source: &Source, dtype: DType) -> Vec<Item> {
    let item = |t: super::Tensor| {
        // Tensors that are no floats keep their type.
        let info = TensorInfo { dtype: t.non_float.unwrap_or(dtype), shape: t.shape };
        Item { file: source.file_of(&t.name), name: t.name, info }
    };
    source.tensors().into_iter().map(item).collect()
}

fn write(source: &Source, item: &Item, sink: &mut Writer) -> Result<()> {
    if !item.info.dtype.is_weight() {
        let stored = source.model.stored();
        let stored = stored.ok_or_else(|| Error::Unsupported { what: "type", value: item.info.dtype.name().into() })?;
        let mut bytes = vec![0u8; item.info.bytes()?];
        stored.read_at(&item.name, 0, &mut bytes)?;
        return sink.write_shared(&item.name, &item.info, &bytes);
    }
    let rows = source.rows(&item.name)?;
    let [n, cols] = rows.shape();
    // Tensors that are no matrices are small and are written whole.
    let step = if item.info.shape.len() == 2 { block_rows(cols) } else { n.max(1) };
    for first in (0..n).step_by(step) {
        let block = read_finite(&*rows, first..(first + step).min(n))?;
        put(item, block, [n, cols], first, sink)?;
    }
    if n == 0 || cols == 0 {
        sink.write_shared(&item.name, &item.info, &[])?;
    }
    Ok(())
}

/// Rounds a block of rows to the item's type and writes it. Errors if a value becomes infinite.
fn put(item: &Item, block: Vec<f32>, [rows, cols]: [usize; 2], first: usize, sink: &mut Writer) -> Result<()> {
    let n = block.len() / cols.max(1);
    let dense = Dense::new(block, [n, cols], item.info.dtype).map_err(|e| match e {
        Error::NonFinite { row, col, value } => Error::NonFinite { row: first + row, col, value },
        other => other,
    })?;
    if item.info.shape.len() == 2 {
        return dense.save_block(&item.name, RowSlot { first, total: rows }, sink);
    }
    // A vector is one row here, and has a single axis in the file.
    let mut bytes = vec![0u8; item.info.bytes()?];
    let mut values = vec![0f32; n * cols];
    dense.decompress_rows(0..n, &mut values, &Exec::new())?;
    item.info.dtype.narrow_bytes(&values, &mut bytes)?;
    sink.write_shared(&item.name, &item.info, &bytes)
}

/// Sets the type in a configuration.
fn with_dtype(mut config: Json, dtype: DType) -> Json {
    config["torch_dtype"] = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
    .into();
    config
}
