//! [`Target`]: the type of each tensor in a GGUF file.

use serde_json::Value as Json;
use tersor_core::{DType, Error, ParamError, Result};
use tersor_formats::gguf::{BlockType, RowOrder, gguf_name};
use tersor_models::is_embedding_or_head;
use tersor_operators::Grid;

use super::super::{Source, Tensor};

/// The rule by which the types of the matrices of a GGUF file are chosen. A type, such as `Q4_0`, is a block quantization of llama.cpp or a float
/// type. Vectors are stored in f32 in all cases.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// One type for all matrices. If it has fewer than 7 bits per element, the output head gets Q6_K, Q8_0 if its rows are no multiple of 256, or F16
    /// if they are no multiple of 32. A compressed matrix keeps its codes, and must have a grid that the type can hold; embedding and head may be
    /// quantized again to Q8_0. A matrix that was compressed to a float type keeps that type.
    Type(BlockType),
    /// A mixture of llama.cpp, by its main type, Q4_K (`Q4_K_M`) or Q5_K (`Q5_K_M`). The output head and the value and down projections of some
    /// layers get Q6_K, and all other matrices the main type. For rows whose length is no multiple of 256, Q5_0, Q5_1 and Q8_0 take the place of
    /// Q4_K, Q5_K and Q6_K, and F16 if the length is no multiple of 32. A compressed matrix is decompressed and quantized again.
    Mix(BlockType),
    /// For each matrix of a compressed model, the smallest type that holds its codes unchanged; a matrix that was compressed to a float type keeps
    /// that type. Embedding and head may be quantized again to Q8_0. A matrix that is not compressed is refused.
    Exact,
}

/// Names of mixtures, and the main type of each.
const MIXES: [(&str, BlockType); 2] = [("Q4_K_M", BlockType::Q4_K), ("Q5_K_M", BlockType::Q5_K)];

impl Target {
    /// Returns the target that `name` stands for, in upper or lower case: `exact`, a mixture (`Q4_K_M`, `Q5_K_M`), or the name of a type such as
    /// `Q4_0`. Errors with [`Error::Param`] if the name is unknown or is that of a type that can only be read (`Q2_K`, `Q3_K`); the message lists all
    /// valid names.
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

    /// Returns all names that [`from_name`](Self::from_name) takes, in the usual case.
    pub fn names() -> Vec<&'static str> {
        let types = BlockType::ALL.into_iter().filter(|t| t.can_encode()).map(|t| t.name());
        types.chain(MIXES.map(|m| m.0)).chain(["exact"]).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Target::Type(t) => t.name(),
            Target::Mix(base) => MIXES.iter().find(|m| m.1 == base).map_or("mix", |m| m.0),
            Target::Exact => "exact",
        }
    }

    /// Returns llama.cpp's number of the file type (`general.file_type`).
    pub(super) fn file_type(self) -> u32 {
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
pub(crate) struct Item {
    /// The tensor of the model.
    pub(crate) tensor: Tensor,
    /// Its name in the file.
    pub(crate) name: String,
    /// The order in which the file has the rows of the tensor: that of the model, or that of queries and keys for an interleaved rotary embedding.
    pub(crate) rows: RowOrder,
    /// Its type in the file.
    pub(crate) kind: BlockType,
    /// Whether its codes are copied unchanged.
    pub(crate) codes: bool,
    /// The reason why it has another type than the target names; None if it has not, or no reason is reported.
    pub(crate) note: Option<String>,
}

/// Returns every tensor of the model with its type in the file. `config` is the configuration of the model. Errors, with the name of the tensor and
/// the reason, if a tensor cannot be converted.
pub(crate) fn items(source: &Source, target: Target, config: &Json) -> Result<Vec<Item>> {
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
