//! [`inspect`]: the architecture, size and stored tensors of a model.

use std::path::Path;

use serde::Serialize;
use serde_json::Value as Json;
use tersor_core::{Limits, Result};
use tersor_formats::{Model, json as files};
use tersor_models::{Checkpoint, MANIFEST};

use crate::kinds::Kinds;

/// What the headers and the configuration of a model say.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    /// The name of the architecture: the first of `architectures` in `config.json`, otherwise its `model_type`, otherwise `general.architecture` of a
    /// GGUF file. None if the model has none of these.
    pub architecture: Option<String>,
    /// The number of parameters. For a compressed model this is the number of elements of its matrices before compression, plus those of all stored
    /// vectors.
    pub parameters: u64,
    /// The stored tensors, sorted by name. For a compressed model these are codes, scales and the like.
    pub tensors: Vec<TensorEntry>,
    /// The total length of all weight files in bytes, headers included.
    pub weight_bytes: u64,
    /// The number of weight files. It is not serialized.
    #[serde(skip)]
    pub files: usize,
    /// The name of the recipe, a JSON string, for an output directory of [`compress`](crate::compress()); null if its manifest has no name. None for
    /// another model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Json>,
}

/// A stored tensor of a model.
#[derive(Clone, Debug, Serialize)]
pub struct TensorEntry {
    /// The name of the tensor, in the naming of Hugging Face where a GGUF file has a counterpart.
    pub name: String,
    /// The sizes of its axes, such as `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// The name of its stored type, such as `BF16`, or `Q4_0` in a GGUF file.
    pub dtype: String,
    /// The length of its stored data in bytes.
    pub bytes: u64,
}

/// Returns the architecture, size and stored tensors of the model at `path`: a directory in the layout of Hugging Face, a `.safetensors` or `.gguf`
/// file, or an output directory of [`compress`](crate::compress()). Reads headers and JSON files alone. `kinds` has the operators, for an output
/// directory.
///
/// # Errors
///
/// An [`Error::Io`](tersor_core::Error::Io), [`Error::Format`](tersor_core::Error::Format) or [`Error::Limit`](tersor_core::Error::Limit) if a file
/// is missing, invalid or too large. Another error if `path` is an output directory whose architecture is unsupported.
pub fn inspect(path: &Path, kinds: &Kinds) -> Result<Inspected> {
    let limits = Limits::default();
    let model = Model::open(path, &limits)?;
    let tensors = model.tensors();
    let config = model.config();
    let text = |v: &Json| v.as_str().map(String::from);
    let architecture = config
        .and_then(|c| text(&c["architectures"][0]).or_else(|| text(&c["model_type"])))
        .or_else(|| model.gguf().and_then(|g| g.meta().text("general.architecture").map(String::from)));
    let manifest = path.join(MANIFEST);
    let recipe =
        if manifest.is_file() { Some(files::read(&manifest, &limits)?["recipe"]["name"].clone()) } else { None };
    // The stored codes of a compressed model are not parameters; the shapes of its operators give their number.
    let parameters: u64 = if recipe.is_some() {
        let checkpoint = Checkpoint::open(path, &kinds.operators)?;
        let matrices: u64 = checkpoint.weights().iter().map(|w| (w.shape[0] * w.shape[1]) as u64).sum();
        let compressed = |name: &str| {
            let specs = checkpoint.manifest().map(|m| &m.specs);
            name.match_indices('.').any(|(end, _)| specs.is_some_and(|s| s.contains_key(&name[..end])))
        };
        let others = tensors.iter().filter(|t| t.shape.len() != 2 && !compressed(&t.name));
        matrices + others.map(|t| t.shape.iter().map(|&d| d as u64).product::<u64>()).sum::<u64>()
    } else {
        tensors.iter().map(|t| t.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    };
    let (weight_bytes, files) = (model.weight_bytes(), model.files().len());
    let entry =
        |t: tersor_formats::Tensor| TensorEntry { name: t.name, shape: t.shape, dtype: t.dtype, bytes: t.bytes };
    let tensors = tensors.into_iter().map(entry).collect();
    Ok(Inspected { architecture, parameters, tensors, weight_bytes, files, recipe })
}
