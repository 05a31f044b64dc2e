//! A model on disk as the weights of a network: an original model, or an output of `tersor compress`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;
use tersor_core::tensors::read_floats;
use tersor_core::{
    DType, Error, Fold, FoldedRows, Limits, LinearOp, OpSpec, Registry, Result, Rotation, RowSource, read_finite,
};
use tersor_formats::{Model, json};
use tersor_operators::Dense;

use crate::Architecture;

/// Name of the manifest file, whose presence marks a directory as an output of `tersor compress`.
pub const MANIFEST: &str = "tersor.json";

/// The parsed manifest `tersor.json` of a compressed model.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The whole manifest as JSON: recipe, fingerprint (one hash of everything that the compressed weights depend on), report of each matrix.
    pub json: Json,
    /// The operator specification of each compressed matrix, by tensor name.
    pub specs: BTreeMap<String, OpSpec>,
}

impl Manifest {
    /// Version of the manifest's format that this crate reads and writes.
    pub const FORMAT: u64 = 1;

    /// Parses a manifest. Errors if its format version is not [`Manifest::FORMAT`], or an operator's specification is invalid.
    ///
    /// ```
    /// let json = serde_json::json!({"format": 1, "tensors": {"w": {"spec": {"kind": "dense", "shape": [2, 3]}}}});
    /// let manifest = tersor_llm::Manifest::from_json(json).unwrap();
    /// assert_eq!(manifest.specs["w"].shape, [2, 3]);
    /// assert!(tersor_llm::Manifest::from_json(serde_json::json!({"format": 2})).is_err());
    /// ```
    pub fn from_json(json: Json) -> Result<Self> {
        let bad = |what: String| Error::format(MANIFEST, what);
        match json.get("format").and_then(Json::as_u64) {
            Some(Self::FORMAT) => {}
            Some(other) => {
                let value = format!("{other} (this version of tersor reads {})", Self::FORMAT);
                return Err(Error::Unsupported { what: "format of tersor.json", value });
            }
            None => return Err(bad("`format` is missing or not a number".into())),
        }
        let tensors = json
            .get("tensors")
            .and_then(Json::as_object)
            .ok_or_else(|| bad("`tensors` is missing or not an object".into()))?;
        let mut specs = BTreeMap::new();
        for (name, entry) in tensors {
            let spec = entry.get("spec").ok_or_else(|| bad(format!("the entry of tensor `{name}` has no `spec`")))?;
            specs.insert(name.clone(), json::to_spec(spec).map_err(|e| e.in_tensor(name))?);
        }
        Ok(Self { json, specs })
    }
}

/// A weight matrix of a model and its size on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredWeight {
    /// Tensor name of the weight matrix.
    pub name: String,
    /// Shape of the weight matrix, `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Total length in bytes of the stored tensors that make up the matrix: codes, scales, zeros, factors.
    pub bytes: u64,
}

/// An open model, original or compressed, whose weights load as operators.
///
/// ```
/// use tersor_llm::Checkpoint;
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let config = checkpoint.architecture().decoder()?;
/// let head_dims = config.heads * config.head_dim;
/// let q = checkpoint.matrix("model.layers.0.self_attn.q_proj.weight", [head_dims, config.hidden])?;
/// assert_eq!(q.shape(), [head_dims, config.hidden]);
/// assert!(checkpoint.manifest().is_none());
/// # Ok(())
/// # }
/// ```
pub struct Checkpoint {
    model: Model,
    manifest: Option<Manifest>,
    registry: Registry,
    architecture: Architecture,
}

impl Checkpoint {
    /// Opens a model directory, a `.gguf` file, or an output directory of `tersor compress`, within the bounds of
    /// [`Limits::default`] on sizes that a file states. `registry` loads the kinds of
    /// operators in a compressed model. Errors if a file is missing, breaks its format or exceeds a limit, or the architecture is
    /// unsupported.
    pub fn open(path: &Path, registry: &Registry) -> Result<Self> {
        let limits = Limits::default();
        let model = Model::open(path, &limits)?;
        let manifest = path.join(MANIFEST);
        let manifest = if path.is_dir() && manifest.is_file() {
            Some(Manifest::from_json(json::read(&manifest, &limits)?)?)
        } else {
            None
        };
        let architecture = Architecture::of(&model)?;
        Ok(Self { model, manifest, registry: registry.clone(), architecture })
    }

    /// Returns the kind and configuration of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns the open model files.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the manifest of a compressed model; none for an original one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Returns whether the model has a weight called `name`: a stored tensor or a compressed matrix.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.specs.contains_key(name)) || self.model.tensor(name).is_ok()
    }

    /// Loads the matrix `name` as an operator: the compressed one, or a dense f32 one from the original's values. Errors if it is missing, its shape
    /// is not `shape` (`[out_features, in_features]`), or it holds a value that is not finite.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn LinearOp>> {
        Weights::from(self).matrix(name, shape)
    }

    /// Loads the vector `name` of `len` elements in f32. Errors if it is missing, has another length, or holds a value that is not finite.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Weights::from(self).vector(name, len)
    }

    /// Loads the stored orthogonal matrix `[head_dim, head_dim]` by which a quantized cache rotates the keys of a layer, after rotary embedding and
    /// before rounding; none if the model stores none. Errors if the stored tensor has another shape or is not orthogonal.
    pub fn key_rotation(&self, layer: usize, head_dim: usize) -> Result<Option<Rotation>> {
        let name = key_rotation_name(layer);
        if self.model.tensor(&name).is_err() {
            return Ok(None);
        }
        let Some(stored) = self.model.stored() else { return Ok(None) };
        let read = || -> Result<Rotation> { Rotation::dense(&read_floats(stored, &name, &[1, head_dim, head_dim])?) };
        read().map(Some).map_err(|e| e.in_tensor(&name))
    }

    /// Returns every two-dimensional weight with its size on disk, sorted by name. A head that shares the embedding's matrix is not listed.
    pub fn weights(&self) -> Vec<StoredWeight> {
        let tensors = self.model.tensors();
        let specs = self.manifest.as_ref().map(|m| &m.specs);
        let mut found: BTreeMap<String, StoredWeight> = BTreeMap::new();
        for (name, spec) in specs.into_iter().flatten() {
            found.insert(name.clone(), StoredWeight { name: name.clone(), shape: spec.shape, bytes: 0 });
        }
        for t in tensors {
            // The tensors of a compressed matrix are called `NAME.part`, those of nested operators `NAME.part.part`.
            let mut owner = t.name.as_str();
            let home = loop {
                if found.contains_key(owner) && specs.is_some_and(|s| s.contains_key(owner)) {
                    break Some(owner.to_string());
                }
                match owner.rsplit_once('.') {
                    Some((rest, _)) => owner = rest,
                    None => break None,
                }
            };
            if let Some(w) = home.and_then(|h| found.get_mut(&h)) {
                w.bytes += t.bytes;
            } else if let [rows, cols] = t.shape[..] {
                found.insert(t.name.clone(), StoredWeight { name: t.name, shape: [rows, cols], bytes: t.bytes });
            }
        }
        found.into_values().collect()
    }

    /// Returns the stored bits per weight over all matrices, and over all but embedding and head; see [`bits_per_weight`].
    pub fn bits_per_weight(&self) -> (f64, f64) {
        bits_per_weight(&self.weights())
    }
}

const KEY_ROTATION: &str = ".self_attn.k_rotation";

/// Returns the tensor name of the key rotation of a layer. The tensor is an orthogonal f32 matrix `[1, head_dim, head_dim]` shared by all heads; row
/// `i` is the direction whose coefficient becomes dimension `i` of the rotated keys.
pub fn key_rotation_name(layer: usize) -> String {
    format!("model.layers.{layer}{KEY_ROTATION}")
}

/// Returns whether a tensor, by its name, is a key rotation (see [`key_rotation_name`]); only quantized caches read these.
pub fn is_key_rotation(name: &str) -> bool {
    name.ends_with(KEY_ROTATION)
}

/// The weights of a checkpoint with folds (scales, permutations, rotations merged into weights) applied as they are read.
///
/// ```
/// use tersor_llm::{Checkpoint, Weights};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let weights = Weights::folded(&checkpoint, &[]);
/// let hidden = checkpoint.architecture().hidden();
/// assert_eq!(weights.vector("model.norm.weight", hidden)?.len(), hidden);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    folds: &'a [Fold],
}

impl<'a> From<&'a Checkpoint> for Weights<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, folds: &[] }
    }
}

impl<'a> Weights<'a> {
    /// Returns the weights of a checkpoint with these [folds](Fold) applied; `From<&Checkpoint>` gives them without folds.
    pub fn folded(checkpoint: &'a Checkpoint, folds: &'a [Fold]) -> Self {
        Self { checkpoint, folds }
    }

    /// Returns whether the checkpoint has a weight called `name`: a stored tensor or a compressed matrix.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// Loads the matrix `name` as an operator: the compressed one, or a dense f32 one from the original's values with the folds applied. Errors if
    /// it is missing, its shape after the folds is not `shape` (`[out_features, in_features]`), it holds a value that is not finite, or a fold
    /// applies to a compressed matrix.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn LinearOp>> {
        let Checkpoint { model, manifest, registry, .. } = self.checkpoint;
        let op = match (manifest.as_ref().and_then(|m| m.specs.get(name)), model.stored()) {
            (Some(_), _) if self.folds.iter().any(|f| f.weight == name) => {
                let value = "the matrix is already compressed; fold into the original".to_string();
                return Err(Error::Unsupported { what: "folding into this matrix", value }.in_tensor(name));
            }
            (Some(spec), Some(stored)) => registry.load(spec, name, stored)?,
            _ => {
                let rows = model.rows(name)?;
                let rows = FoldedRows::new(&*rows, name, self.folds)?;
                Box::new(read_dense(&rows).map_err(|e| e.in_tensor(name))?)
            }
        };
        if op.shape() != shape {
            return Err(Error::shape("shape of a matrix", shape, op.shape()).in_tensor(name));
        }
        Ok(op)
    }

    /// Loads the vector `name` in f32, with the folds applied; `len` is its number of elements before them. Errors if it is missing, has another
    /// length, holds a value that is not finite, or a fold does not fit it.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let rows = self.checkpoint.model.rows(name)?;
        if rows.shape() != [1, len] {
            return Err(Error::shape("length of a vector", len, rows.shape()[1]).in_tensor(name));
        }
        let rows = FoldedRows::new(&*rows, name, self.folds)?;
        read_finite(&rows, 0..1).map_err(|e| e.in_tensor(name))
    }
}

/// Returns stored bits per element over all `weights`, and over all but embedding and head; 0 if there are none.
///
/// ```
/// use tersor_llm::{StoredWeight, bits_per_weight};
/// let weight = |name: &str, bytes| StoredWeight { name: name.into(), shape: [4, 8], bytes };
/// let weights = [weight("lm_head.weight", 32), weight("model.layers.0.mlp.up_proj.weight", 16)];
/// assert_eq!(bits_per_weight(&weights), (6.0, 4.0));
/// ```
pub fn bits_per_weight(weights: &[StoredWeight]) -> (f64, f64) {
    let ratio = |body: bool| {
        let of = weights.iter().filter(|w| !body || !is_embedding_or_head(&w.name));
        let (bytes, n) = of.fold((0u64, 0f64), |(b, n), w| (b + w.bytes, n + w.shape[0] as f64 * w.shape[1] as f64));
        if n == 0.0 { 0.0 } else { bytes as f64 * 8.0 / n }
    };
    (ratio(false), ratio(true))
}

/// Returns whether a weight, by its name, is an embedding table or the output head.
pub fn is_embedding_or_head(name: &str) -> bool {
    matches!(name, "model.embed_tokens.weight" | "lm_head.weight") || name.ends_with("_embeddings.weight")
}

/// Reads all rows into a dense f32 operator. Errors if a value is not finite.
fn read_dense(rows: &dyn RowSource) -> Result<Dense> {
    let [n, cols] = rows.shape();
    let mut values = vec![0f32; tersor_core::view::elements([n, cols])?];
    // Reads in blocks, so that the stored bytes and the f32 values of the whole matrix are never in memory together.
    const PART: usize = 1024;
    for first in (0..n).step_by(PART) {
        let last = (first + PART).min(n);
        rows.read_rows(first..last, &mut values[first * cols..last * cols])?;
    }
    Dense::new(values, [n, cols], DType::F32)
}
