//! GGUF files for llama.cpp and programs built on it.

mod types;

pub use types::Target;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value as Json;
use tersor_core::{Context, Error, LinearOp, Result, RowSource, read_finite};
use tersor_formats::gguf::{BlockType, InterleavedRows, MetaWriter, RowOrder, Writer, gguf_meta};
use tersor_models::Tokenizer;
use tersor_operators::GroupedLinear;

use super::Source;
use crate::rows::block_rows;
use types::{Item, items};

/// A GGUF file for llama.cpp, as [`export`](super::export) wrote it or [`gguf_types`](super::gguf_types) planned it.
#[derive(Clone, Debug, Serialize)]
pub struct GgufExport {
    /// The path of the file, as it was given; empty if the file was only planned.
    pub out: PathBuf,
    /// The name of the format: `gguf:` with the name of the target, such as `gguf:Q4_K_M`.
    pub to: String,
    /// Every tensor of the model, with its name and type in the file.
    pub tensors: Vec<GgufTensor>,
    /// The total length of these tensors in the file in bytes, without header and metadata.
    pub bytes: usize,
    /// The matrices whose type follows from an exception of the target, with the reason: the output head with a type that has fewer than 7 bits per
    /// element, or rows whose length is no multiple of 256 in a mixture. Compressed matrices are among them only in a mixture.
    pub fallbacks: Vec<NotedTensor>,
    /// The compressed matrices that were decompressed and quantized again to a block type, with the error that this caused. Empty if the file was
    /// only planned.
    pub rounded_again: Vec<RoundedTensor>,
    /// Whether the file was written.
    pub written: bool,
}

/// A tensor of a [`GgufExport`].
#[derive(Clone, Debug, Serialize)]
pub struct GgufTensor {
    /// The name of the tensor in the model.
    pub name: String,
    /// The name of the tensor in the file, such as `blk.0.attn_q.weight`.
    #[serde(rename = "as")]
    pub in_file: String,
    /// The name of its GGUF type, such as `Q4_0`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether the tensor has the codes of a compressed matrix, copied unchanged.
    pub exact: bool,
    /// The length of the tensor in the file in bytes.
    pub bytes: usize,
}

/// A matrix of a [`GgufExport`] whose type follows from an exception of the target.
#[derive(Clone, Debug, Serialize)]
pub struct NotedTensor {
    /// The name of the matrix in the model.
    pub tensor: String,
    /// The name of the GGUF type in which it is stored.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The reason for the type, as a phrase such as `it is the output head`.
    pub why: String,
}

/// A compressed matrix that a [`GgufExport`] stores quantized again.
#[derive(Clone, Debug, Serialize)]
pub struct RoundedTensor {
    /// The name of the matrix in the model.
    pub tensor: String,
    /// The name of the GGUF type in which it is stored.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The relative error of the second quantization, `‖W - Ŵ‖ / ‖W‖` for the weights `W` of the compressed matrix and the weights `Ŵ` of the file; 0
    /// if all weights are 0.
    pub relative_error: f64,
}

/// Converts a model to the GGUF file `out`; with None, returns what would be written. Errors as [`export`](super::export) does.
pub(crate) fn run(source: &Source, target: Target, out: Option<&Path>, cx: &Context) -> Result<GgufExport> {
    let config = source.model.config().ok_or_else(|| Error::Missing {
        name: "config.json".into(),
        place: source.model.path().display().to_string(),
    })?;
    let (meta, frequencies) = meta(source, config, target)?;
    let dim = config["head_dim"]
        .as_u64()
        .or_else(|| config["hidden_size"].as_u64()?.checked_div(config["num_attention_heads"].as_u64()?));
    let interleaved = meta_architecture(config) == "llama";
    let items = items(source, target, config)?;
    let note = |i: &Item| {
        let (tensor, kind) = (i.tensor.name.clone(), i.kind.name());
        i.note.clone().map(|why| NotedTensor { tensor, kind, why })
    };
    let fallbacks = items.iter().filter_map(note).collect();
    let bytes = |i: &Item| i.tensor.shape.iter().product::<usize>() / i.kind.elements() * i.kind.bytes();
    let total: usize = items.iter().map(bytes).sum();
    let mut rounded_again = Vec::new();
    if let Some(out) = out {
        if out.exists() {
            let what = "it exists; remove it or choose another name";
            return Err(Error::format(out.display().to_string(), what));
        }
        let mut layout: Vec<_> = items.iter().map(|i| (i.name.clone(), i.tensor.shape.clone(), i.kind)).collect();
        if let Some(f) = &frequencies {
            layout.push(("rope_freqs.weight".into(), vec![f.len()], BlockType::F32));
        }
        let mut file = Writer::create(out, &meta, &layout)?;
        cx.progress.begin("convert", items.len() as u64);
        for item in &items {
            cx.cancel.check()?;
            let dim = if interleaved && item.rows == RowOrder::Interleaved { dim } else { None };
            let dim = dim.map(|d| usize::try_from(d).unwrap_or(0));
            let error = write(source, item, dim, &mut file, cx).map_err(|e| e.in_tensor(&item.tensor.name))?;
            // Only compressed matrices that are quantized again are reported.
            if source.spec(&item.tensor.name).is_some() && !item.codes && item.kind.elements() > 1 {
                let (tensor, kind) = (item.tensor.name.clone(), item.kind.name());
                rounded_again.push(RoundedTensor { tensor, kind, relative_error: error });
            }
            cx.progress.advance(1, &item.tensor.name);
        }
        cx.progress.end();
        if let Some(f) = &frequencies {
            file.write("rope_freqs.weight", f)?;
        }
        file.finish()?;
    }
    let tensor = |i: &Item| GgufTensor {
        name: i.tensor.name.clone(),
        in_file: i.name.clone(),
        kind: i.kind.name(),
        exact: i.codes,
        bytes: bytes(i),
    };
    Ok(GgufExport {
        out: out.map(Path::to_path_buf).unwrap_or_default(),
        to: format!("gguf:{}", target.name()),
        tensors: items.iter().map(tensor).collect(),
        bytes: total,
        fallbacks,
        rounded_again,
        written: out.is_some(),
    })
}

/// Returns the GGUF architecture of a configuration.
fn meta_architecture(config: &Json) -> &str {
    match config["model_type"].as_str() {
        Some("mistral") => "llama",
        other => other.unwrap_or_default(),
    }
}

/// Returns the metadata, copied from a GGUF source or built from configuration and tokenizer, and the values of `rope_freqs.weight` if there are any.
fn meta(source: &Source, config: &Json, target: Target) -> Result<(MetaWriter, Option<Vec<f32>>)> {
    let (mut meta, frequencies) = match source.model.gguf() {
        Some(file) => {
            let mut meta = MetaWriter::new();
            for key in file.meta().0.keys().filter(|k| *k != "general.alignment" && !k.starts_with("split.")) {
                meta.raw(key, &file.raw_meta(key)?);
            }
            let mut frequencies = None;
            if let Some(t) = file.tensors().get("rope_freqs.weight") {
                let mut values = vec![0f32; t.shape.iter().product()];
                file.rows("rope_freqs.weight")?.read_rows(0..1, &mut values)?;
                frequencies = Some(values);
            }
            (meta, frequencies)
        }
        None => {
            let (mut meta, frequencies) = gguf_meta(config)?;
            if let Some(name) = source.model.path().file_name() {
                meta.text("general.name", &name.to_string_lossy());
            }
            Tokenizer::write_gguf_meta(&Tokenizer::json_of(&source.model)?, config, &mut meta)?;
            template(source, &mut meta);
            (meta, frequencies)
        }
    };
    meta.uint("general.file_type", target.file_type()).uint("general.quantization_version", 2);
    Ok((meta, frequencies))
}

/// Adds the chat template, from `chat_template.jinja` or `tokenizer_config.json`.
fn template(source: &Source, meta: &mut MetaWriter) {
    let at = |name: &str| std::fs::read_to_string(source.model.path().join(name)).ok();
    let inside = || {
        let config: Json = serde_json::from_str(&at("tokenizer_config.json")?).ok()?;
        Some(config["chat_template"].as_str()?.to_string())
    };
    if let Some(text) = at("chat_template.jinja").or_else(inside) {
        meta.text("tokenizer.chat_template", &text);
    }
}

/// Writes a tensor; returns the relative error of its quantization (0 if its codes are copied).
fn write(source: &Source, item: &Item, head_dim: Option<usize>, file: &mut Writer, cx: &Context) -> Result<f64> {
    if item.codes
        && let Some(op) = source.grouped(&item.tensor.name)?
    {
        return transcode(item, &op, head_dim, file).map(|()| 0.0);
    }
    let plain = source.rows(&item.tensor.name)?;
    let interleaved;
    let rows: &dyn RowSource = match head_dim {
        Some(dim) => {
            interleaved = InterleavedRows::new(&*plain, dim)?;
            &interleaved
        }
        None => &*plain,
    };
    let [n, cols] = rows.shape();
    let (mut error, mut energy) = (0f64, 0f64);
    let (step, kind) = (block_rows(cols), item.kind);
    for first in (0..n).step_by(step) {
        let values = read_finite(rows, first..(first + step).min(n))?;
        // Rows are encoded in parallel.
        let width = cols / kind.elements() * kind.bytes();
        let mut bytes = vec![0u8; values.len() / cols.max(1) * width];
        let encode = |(row, (x, out)): (usize, (&[f32], &mut [u8]))| {
            let located = |e| match e {
                Error::ScaleRange { group, value, dtype, .. } => {
                    Error::ScaleRange { row: first + row, group, value, dtype }
                }
                other => other,
            };
            kind.encode(x, out).map_err(located)
        };
        let pairs = values.par_chunks_exact(cols.max(1)).zip(bytes.par_chunks_exact_mut(width.max(1)));
        cx.run(|| pairs.enumerate().map(encode).collect::<Result<Vec<()>>>())?;
        let mut back = vec![0f32; values.len()];
        kind.decode(&bytes, &mut back)?;
        error += tersor_core::metrics::squared_error(&values, &back);
        energy += tersor_core::metrics::energy(&values);
        file.write_blocks(&item.name, &bytes)?;
    }
    Ok(if energy > 0.0 { (error / energy).sqrt() } else { 0.0 })
}

/// Writes the codes of a compressed matrix unchanged, in blocks of 32; the scale of a larger group is repeated.
fn transcode(item: &Item, op: &GroupedLinear, head_dim: Option<usize>, file: &mut Writer) -> Result<()> {
    let ([rows, cols], kind) = (op.shape(), item.kind);
    if let Some(dim) = head_dim
        && (dim == 0 || !rows.is_multiple_of(dim))
    {
        return Err(Error::shape("rows in heads", format!("a multiple of {dim}"), rows));
    }
    // The zero that the type implies for its codes.
    let zero = match kind {
        BlockType::Q4_0 => 8i32,
        BlockType::Q5_0 => 16,
        BlockType::Q8_0 => 128,
        _ => 0,
    };
    let mut out = vec![0u8; cols / 32 * kind.bytes()];
    for r in 0..rows {
        let from = head_dim.map_or(r, |d| InterleavedRows::hf_index(r, d));
        let codes: Cow<'_, [u8]> = op.row_codes(from)?.into();
        for (b, (codes, block)) in codes.chunks_exact(32).zip(out.chunks_exact_mut(kind.bytes())).enumerate() {
            let missing = || Error::ScaleRange { row: from, group: b, value: f32::NAN, dtype: kind.name() };
            let affine = op.quant_params_of(from, b * 32).ok_or_else(missing)?;
            let own = i32::from(affine.zero);
            let mut moved = [0u8; 32];
            for (m, c) in moved.iter_mut().zip(codes) {
                *m = if zero == 0 { *c } else { (i32::from(*c) - own + zero) as u8 };
            }
            // The minimum of the block is rounded to f16; everything else is exact.
            let min = if zero == 0 { -affine.scale * f32::from(affine.zero) } else { 0.0 };
            let range = || Error::ScaleRange { row: from, group: b, value: affine.scale, dtype: kind.name() };
            kind.pack_codes(affine.scale, min, &moved, block).ok_or_else(range)?;
        }
        file.write_blocks(&item.name, &out)?;
    }
    Ok(())
}
