//! Inspection: the architecture and tensors of a model.

use std::path::Path;

use serde::Serialize;
use serde_json::Value as Json;
use tersor_core::{Limits, Result};
use tersor_formats::{Model, json as files};
use tersor_llm::{Checkpoint, MANIFEST};

use crate::kinds::Kinds;

/// What a model has.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    /// Name of the architecture; none if the model does not say.
    pub architecture: Option<String>,
    /// Number of parameters.
    pub parameters: u64,
    /// The stored tensors.
    pub tensors: Vec<TensorEntry>,
    /// Total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// Number of weight files.
    #[serde(skip)]
    pub files: usize,
    /// Name of the recipe (a string) of an output of [`compress`](crate::compress()); none for another model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Json>,
}

/// A stored tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorEntry {
    /// Name of the tensor.
    pub name: String,
    /// Shape of the tensor, rows first.
    pub shape: Vec<usize>,
    /// Name of its type.
    pub dtype: String,
    /// Stored bytes.
    pub bytes: u64,
}

/// Returns the architecture and tensors of a model file or directory. Errors if it cannot be opened.
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
        matrices + tensors.iter().filter(|t| t.shape.len() == 1).map(|t| t.shape[0] as u64).sum::<u64>()
    } else {
        tensors.iter().map(|t| t.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    };
    let (weight_bytes, files) = (model.weight_bytes(), model.files().len());
    let entry =
        |t: tersor_formats::Tensor| TensorEntry { name: t.name, shape: t.shape, dtype: t.dtype, bytes: t.bytes };
    let tensors = tensors.into_iter().map(entry).collect();
    Ok(Inspected { architecture, parameters, tensors, weight_bytes, files, recipe })
}
