//! GGUF files for llama.cpp and programs built on it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value as Json;
use tersor_core::{DType, Error, ParamError, Result, RowSource, read_finite};
use tersor_formats::gguf::{BlockType, InterleavedRows, MetaWriter, RowOrder, Writer, gguf_meta, gguf_name};
use tersor_llm::{Tokenizer, is_embedding_or_head};
use tersor_operators::{Grid, GroupedLinear};

use super::{Source, Tensor};
use crate::rows::block_rows;

/// How the types of matrices are chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// One type for all matrices. The head gets Q6_K or Q8_0 if that has more bits; embedding and head of a compressed model get Q8_0 if their grid is
    /// not that of the type.
    Type(BlockType),
    /// A mixture of llama.cpp: this type, and Q6_K for the most sensitive matrices.
    Mix(BlockType),
    /// For each compressed matrix, the smallest type with the same grid.
    Exact,
}

/// Names of mixtures, and the main type of each.
const MIXES: [(&str, BlockType); 2] = [("Q4_K_M", BlockType::Q4_K), ("Q5_K_M", BlockType::Q5_K)];

impl Target {
    /// Returns the target of a name. Errors (bad usage) if the name is unknown.
    pub fn from_name(name: &str) -> Result<Self> {
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        if same("exact") {
            return Ok(Target::Exact);
        }
        if let Some((_, base)) = MIXES.iter().find(|m| same(m.0)) {
            return Ok(Target::Mix(*base));
        }
        let kind = BlockType::ALL.into_iter().find(|t| t.can_encode() && same(t.name()));
        let rule = format!("must be one of {}", Self::names().join(", "));
        kind.map(Target::Type).ok_or_else(|| ParamError::new("gguf type", format!("`{name}`"), rule).into())
    }

    /// Returns all names of targets.
    pub fn names() -> Vec<&'static str> {
        let types = BlockType::ALL.into_iter().filter(|t| t.can_encode()).map(|t| t.name());
        types.chain(MIXES.map(|m| m.0)).chain(["exact"]).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Target::Type(t) => t.name(),
            Target::Mix(base) => MIXES.iter().find(|m| m.1 == base).map_or("mix", |m| m.0),
            Target::Exact => "exact",
        }
    }

    /// Returns llama.cpp's number of the file type (`general.file_type`).
    fn file_type(self) -> u32 {
        match self {
            Target::Mix(BlockType::Q4_K) => 15,
            Target::Mix(_) => 17,
            Target::Type(BlockType::F32) => 0,
            Target::Type(BlockType::F16) => 1,
            Target::Type(BlockType::Q4_0) => 2,
            Target::Type(BlockType::Q4_1) => 3,
            Target::Type(BlockType::Q8_0) => 7,
            Target::Type(BlockType::Q5_0) => 8,
            Target::Type(BlockType::Q5_1) => 9,
            Target::Type(BlockType::Q4_K) => 14,
            Target::Type(BlockType::Q5_K) => 16,
            Target::Type(BlockType::Q6_K) => 18,
            Target::Type(BlockType::BF16) => 32,
            // llama.cpp guesses the type from the tensors.
            _ => 1024,
        }
    }
}

/// A tensor of the output file.
struct Item {
    /// The tensor of the model.
    tensor: Tensor,
    /// Its name in the file.
    name: String,
    /// The order of its rows in the file.
    rows: RowOrder,
    /// Its type in the file.
    kind: BlockType,
    /// Whether its codes are copied unchanged.
    codes: bool,
    /// The reason why it has another type than the target's.
    note: Option<String>,
}

/// A file for llama.cpp, written or planned.
#[derive(Clone, Debug, Serialize)]
pub struct GgufExport {
    /// The file; empty if nothing was to be written.
    pub out: PathBuf,
    /// `gguf:` and the name of the target.
    pub to: String,
    /// Every tensor.
    pub tensors: Vec<GgufTensor>,
    /// Total length of the tensors in bytes.
    pub bytes: usize,
    /// Tensors with another type than the target's.
    pub fallbacks: Vec<NotedTensor>,
    /// Compressed matrices that were quantized again.
    pub rounded_again: Vec<RoundedTensor>,
    /// Whether the file was written.
    pub written: bool,
}

/// A tensor of a file for llama.cpp.
#[derive(Clone, Debug, Serialize)]
pub struct GgufTensor {
    /// Name in the model.
    pub name: String,
    /// Name in the file.
    #[serde(rename = "as")]
    pub in_file: String,
    /// Name of its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether its codes are copied unchanged.
    pub exact: bool,
    /// Length in bytes.
    pub bytes: usize,
}

/// A tensor with another type than the target's.
#[derive(Clone, Debug, Serialize)]
pub struct NotedTensor {
    /// Name in the model.
    pub tensor: String,
    /// Name of its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The reason.
    pub why: String,
}

/// A compressed matrix that was quantized again.
#[derive(Clone, Debug, Serialize)]
pub struct RoundedTensor {
    /// Name in the model.
    pub tensor: String,
    /// Name of its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The root of the squared error over the squared values.
    pub relative_error: f64,
}

/// Converts a model to the file `out`; without one, returns what would be written.
pub fn run(source: &Source, target: Target, out: Option<&Path>) -> Result<GgufExport> {
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
        for item in &items {
            let dim = if interleaved && item.rows == RowOrder::Interleaved { dim } else { None };
            let dim = dim.map(|d| usize::try_from(d).unwrap_or(0));
            let error = write(source, item, dim, &mut file).map_err(|e| e.in_tensor(&item.tensor.name))?;
            // Only compressed matrices that are quantized again are reported.
            if source.spec(&item.tensor.name).is_some() && !item.codes && item.kind.elements() > 1 {
                let (tensor, kind) = (item.tensor.name.clone(), item.kind.name());
                rounded_again.push(RoundedTensor { tensor, kind, relative_error: error });
            }
        }
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

/// Returns every tensor with its type in the file. Errors, with name and reason, if a tensor cannot be converted.
fn items(source: &Source, target: Target, config: &Json) -> Result<Vec<Item>> {
    let tied = config["tie_word_embeddings"] == true;
    let layers = config["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    let item = |tensor: Tensor| -> Result<Item> {
        let known = gguf_name(&tensor.name).ok_or_else(|| Error::Unsupported {
            what: "tensor in a GGUF file",
            value: "llama.cpp has no name for it".into(),
        });
        let known = known.map_err(|e| e.in_tensor(&tensor.name))?;
        let (rows, name) = (known.rows, known.name);
        let mut made = Item { tensor, name, rows, kind: BlockType::F32, codes: false, note: None };
        // Norms and biases stay in f32.
        let [_, cols] = made.tensor.shape[..] else { return Ok(made) };
        let chosen = match source.spec(&made.tensor.name) {
            Some(_) if !matches!(target, Target::Mix(_)) => compressed(source, target, &mut made),
            _ => original(target, &mut made, cols, tied, layers),
        };
        chosen.map_err(|e| e.in_tensor(&made.tensor.name))?;
        Ok(made)
    };
    source.tensors().into_iter().map(item).collect()
}

/// Chooses the type of a matrix that is not compressed.
fn original(target: Target, item: &mut Item, cols: usize, tied: bool, layers: usize) -> Result<()> {
    let fits = |t: BlockType| cols.is_multiple_of(t.elements());
    match target {
        Target::Exact => {
            let value = "the matrix is not compressed, so it has no codes to copy; name a type".to_string();
            return Err(Error::Unsupported { what: "exact conversion", value });
        }
        // As in llama.cpp, the head has more bits than the other matrices.
        Target::Type(kind) if is_head(&item.name, tied) && kind.bytes() * 8 < 7 * kind.elements() => {
            item.kind = if fits(BlockType::Q6_K) { BlockType::Q6_K } else { BlockType::Q8_0 };
            item.note = Some("it is the output head".into());
            if !fits(item.kind) {
                item.kind = BlockType::F16;
            }
        }
        Target::Type(kind) if fits(kind) => item.kind = kind,
        Target::Type(kind) => {
            let smaller = if fits(BlockType::Q8_0) { "Q4_0 to Q8_0 fit" } else { "F16 fits" };
            let value = format!("rows of {cols} are not a multiple of blocks of {}; {smaller}", kind.elements());
            return Err(Error::Unsupported { what: kind.name(), value });
        }
        Target::Mix(base) => {
            let wanted = mixed(base, &item.name, tied, layers);
            // The fallbacks of llama.cpp for rows that are not a multiple of 256.
            let small = match wanted {
                BlockType::Q4_K => BlockType::Q5_0,
                BlockType::Q5_K => BlockType::Q5_1,
                _ => BlockType::Q8_0,
            };
            item.kind = [wanted, small, BlockType::F16].into_iter().find(|t| fits(*t)).unwrap_or(BlockType::F16);
            if item.kind != wanted {
                item.note = Some(format!("instead of {}: rows of {cols} are not a multiple of 256", wanted.name()));
            }
        }
    }
    Ok(())
}

fn is_head(name: &str, tied: bool) -> bool {
    name == "output.weight" || (tied && name == "token_embd.weight")
}

/// Returns the type of a matrix in a mixture, by the rules of llama.cpp.
fn mixed(base: BlockType, name: &str, tied: bool, layers: usize) -> BlockType {
    if is_head(name, tied) {
        return BlockType::Q6_K;
    }
    let layer = name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
    let eighth = layers / 8;
    let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
    if more && (name.contains("attn_v.") || name.contains("ffn_down.")) { BlockType::Q6_K } else { base }
}

/// Chooses the type with the grid of a compressed matrix.
fn compressed(source: &Source, target: Target, item: &mut Item) -> Result<()> {
    let name = item.tensor.name.clone();
    let spec = source.spec(&name).ok_or_else(|| Error::Missing { name: name.clone(), place: "the manifest".into() })?;
    let refuse = |what: &str| {
        let to = target.name();
        let value = format!(
            "{what}; to quantize it again, `convert --to f32`, then `--to gguf:{}`",
            if to == "exact" { "TYPE" } else { to }
        );
        Err(Error::Unsupported { what: "exact conversion", value })
    };
    if spec.kind == tersor_operators::Dense::KIND {
        item.kind = match DType::from_name(spec.get_text("dtype")?) {
            Some(DType::F16) => BlockType::F16,
            Some(DType::BF16) => BlockType::BF16,
            _ => BlockType::F32,
        };
        return Ok(());
    }
    let Some(op) = source.grouped(&name)? else { return refuse(&format!("GGUF has no `{}`", spec.kind)) };
    let grid = op.group_spec();
    let [_, cols] = spec.shape;
    let (bits, width) = (grid.bits().get(), grid.group().width(cols));
    let possible: &[BlockType] = match (grid.grid(), bits) {
        // Asymmetric codes below 8 bits, minus their zero, fit into signed bytes.
        (Grid::Asym, ..=4) => &[BlockType::Q4_1, BlockType::Q5_1, BlockType::Q8_0],
        (Grid::Asym, 5) => &[BlockType::Q5_1, BlockType::Q8_0],
        (Grid::Asym, 6 | 7) => &[BlockType::Q8_0],
        (Grid::Asym, _) => &[],
        (_, ..=4) => &[BlockType::Q4_0, BlockType::Q5_0, BlockType::Q8_0],
        (_, 5) => &[BlockType::Q5_0, BlockType::Q8_0],
        _ => &[BlockType::Q8_0],
    };
    let whole = cols.is_multiple_of(32) && (width.is_multiple_of(32) || width == cols);
    let halves = grid.scale_dtype() == DType::F16 || op.scales().iter().all(|s| half::f16::from_f32(*s).to_f32() == *s);
    let wanted = match target {
        Target::Type(kind) => possible.iter().find(|k| **k == kind),
        _ => possible.first(),
    };
    match wanted {
        Some(kind) if whole && halves => {
            (item.kind, item.codes) = (*kind, true);
            Ok(())
        }
        // Embedding and head may be quantized again at 8 bits.
        _ if is_embedding_or_head(&name) && cols.is_multiple_of(32) => {
            item.kind = BlockType::Q8_0;
            Ok(())
        }
        _ if !whole => refuse(&format!("groups of {width} in rows of {cols} are not a multiple of blocks of 32")),
        _ if !halves => refuse(&format!("its scales are {}; those of GGUF are f16", grid.scale_dtype().name())),
        _ => {
            let have: Vec<_> = possible.iter().map(|k| k.name()).collect();
            let have = if have.is_empty() { "no GGUF type".to_string() } else { have.join(", ") };
            refuse(&format!("{bits} bits on grid {} can be stored as {have} only", grid.grid().name()))
        }
    }
}

/// Writes a tensor; returns the relative error of its quantization (0 if its codes are copied).
fn write(source: &Source, item: &Item, head_dim: Option<usize>, file: &mut Writer) -> Result<f64> {
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
        pairs.enumerate().map(encode).collect::<Result<Vec<()>>>()?;
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
    use tersor_core::LinearOp;
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
