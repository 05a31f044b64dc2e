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

/// Name of the manifest file, a JSON file whose presence marks a directory as an output of `tersor compress`.
pub const MANIFEST: &str = "tersor.json";

/// The parsed manifest `tersor.json` of a compressed model: which matrices are compressed, and into which operators.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The whole manifest as JSON. Among other keys, `recipe` tells how the model was compressed, `fingerprint` is one hash of everything
    /// that the compressed weights depend on, and `tensors` has, by tensor name, the operator specification (`spec`: kind, shape,
    /// parameters) and the measured errors (`report`) of each compressed matrix.
    pub json: Json,
    /// The operator specification (kind, shape, parameters) of each compressed matrix, by tensor name.
    pub specs: BTreeMap<String, OpSpec>,
}

impl Manifest {
    /// Version of the manifest's format that this crate reads and writes (the key `format`).
    pub const FORMAT: u64 = 1;

    /// Parses the manifest `tersor.json`. Errors if its key `format` is not [`Manifest::FORMAT`], the object `tensors` is missing, or an
    /// entry of it lacks a valid operator specification `spec`.
    ///
    /// ```
    /// let json = serde_json::json!({"format": 1, "tensors": {"w": {"spec": {"kind": "dense", "shape": [2, 3]}}}});
    /// let manifest = tersor_models::Manifest::from_json(json).unwrap();
    /// assert_eq!(manifest.specs["w"].shape, [2, 3]);
    /// assert!(tersor_models::Manifest::from_json(serde_json::json!({"format": 2})).is_err());
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

/// A weight matrix of a model: its name, its shape, and its size on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredWeight {
    /// Tensor name of the weight matrix.
    pub name: String,
    /// Shape of the weight matrix, `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Total length in bytes of the stored tensors that make up the matrix: the matrix itself, or the codes, scales, zeros and factors of a
    /// compressed one.
    pub bytes: u64,
}

/// An open model, original or compressed, whose weights load as operators (matrices) or as f32 vectors.
///
/// ```
/// use tersor_models::Checkpoint;
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let config = checkpoint.architecture()?.decoder()?;
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
    /// None if it is unknown.
    architecture: Option<Architecture>,
}

impl Checkpoint {
    /// Opens a model directory, a `.gguf` file, or an output directory of `tersor compress`. A size that a file states may not exceed
    /// [`Limits::default`]. `registry` has the loaders of the operators in a compressed model; it is used when a matrix is loaded. A model
    /// of unknown architecture opens too: its matrices load, and [`Checkpoint::architecture`] errors. Errors if a file is missing, breaks its
    /// format or exceeds a limit.
    pub fn open(path: &Path, registry: &Registry) -> Result<Self> {
        let limits = Limits::default();
        let model = Model::open(path, &limits)?;
        let manifest = path.join(MANIFEST);
        let manifest = if path.is_dir() && manifest.is_file() {
            Some(Manifest::from_json(json::read(&manifest, &limits)?)?)
        } else {
            None
        };
        let architecture = Architecture::of(&model).ok();
        Ok(Self { model, manifest, registry: registry.clone(), architecture })
    }

    /// Returns the kind of network (decoder or encoder) with its configuration. Errors if the model has no configuration, or its architecture
    /// is unsupported, for the reasons that [`Architecture::of`] states.
    pub fn architecture(&self) -> Result<&Architecture> {
        match &self.architecture {
            Some(known) => Ok(known),
            // An unknown one is determined again, for its error.
            None => Err(match Architecture::of(&self.model) {
                Err(reason) => reason,
                Ok(_) => Error::missing("a supported architecture", self.model.path().display().to_string()),
            }),
        }
    }

    /// Returns the open model files, which give stored tensors and `config.json`.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the parsed manifest `tersor.json` of a compressed model; None for an original one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Returns whether the model has a weight called `name`: a stored tensor of this name, or a compressed matrix.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.specs.contains_key(name)) || self.model.tensor(name).is_ok()
    }

    /// Loads the matrix `name` as an operator: the compressed one if the manifest lists it, otherwise a dense f32 one. Errors if there is
    /// no such matrix, its shape is not `shape` (`[out_features, in_features]`), it holds a value that is not finite, or the registry
    /// cannot load the kind of operator.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn LinearOp>> {
        Weights::from(self).matrix(name, shape)
    }

    /// Loads the vector `name` of `len` elements in f32. Errors if there is no such tensor, it has another length, or it holds a value that
    /// is not finite.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Weights::from(self).vector(name, len)
    }

    /// Loads the stored orthogonal matrix `M`, `[head_dim, head_dim]`, by which a quantized cache rotates the keys of layer `layer`
    /// (counted from 0), after rotary embedding and before rounding: a key `k` becomes `M k`. All heads share it. Returns None if the model
    /// stores none for this layer. Errors if the stored tensor is not f32 `[1, head_dim, head_dim]`, has a value that is not finite, or is
    /// not orthogonal: a vector `v` of random signs may differ from `M Mᵀ v` by at most 1e-4 in each component.
    pub fn key_rotation(&self, layer: usize, head_dim: usize) -> Result<Option<Rotation>> {
        let name = key_rotation_name(layer);
        if self.model.tensor(&name).is_err() {
            return Ok(None);
        }
        let Some(stored) = self.model.stored() else { return Ok(None) };
        let read = || -> Result<Rotation> { Rotation::dense(&read_floats(stored, &name, &[1, head_dim, head_dim])?) };
        read().map(Some).map_err(|e| e.in_tensor(&name))
    }

    /// Returns name, shape and size on disk of every two-dimensional weight, compressed or not, sorted by name. A head that shares the
    /// embedding's matrix has no tensor of its own and is not listed.
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

    /// Returns the stored bits per matrix element, first over all matrices, then over all but embedding tables and output head. A value is
    /// 0 if there are no such matrices. See [`bits_per_weight`].
    pub fn bits_per_weight(&self) -> (f64, f64) {
        bits_per_weight(&self.weights())
    }
}

const KEY_ROTATION: &str = ".self_attn.k_rotation";

/// Returns the tensor name of the key rotation of layer `layer`, counted from 0. The tensor is an orthogonal f32 matrix
/// `[1, head_dim, head_dim]` that all heads share: dimension `i` of a rotated key is the dot product of row `i` with the key.
pub fn key_rotation_name(layer: usize) -> String {
    format!("model.layers.{layer}{KEY_ROTATION}")
}

/// Returns whether a tensor called `name` is a key rotation: an orthogonal matrix by which quantized caches rotate keys (see
/// [`key_rotation_name`]). Nothing but quantized caches reads such tensors.
pub fn is_key_rotation(name: &str) -> bool {
    name.ends_with(KEY_ROTATION)
}

/// The weights of a checkpoint with folds applied as they are read. A [fold](Fold) is a change of one stored weight: scaled, permuted,
/// rotated or replaced rows or columns.
///
/// ```
/// use tersor_models::{Checkpoint, Weights};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let weights = Weights::folded(&checkpoint, &[]);
/// let hidden = checkpoint.architecture()?.hidden();
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
    /// Returns the weights of `checkpoint` with the changes `folds` applied when they are read. Each [`Fold`] changes the rows or columns
    /// of the weight that it names; folds of one weight are applied in the order of the list. A fold that names no weight of the checkpoint
    /// has no effect. A fold that does not match the length of the axis that it changes is an error not here, but when the weight is read.
    /// `Weights::from(&checkpoint)` gives the weights without folds.
    pub fn folded(checkpoint: &'a Checkpoint, folds: &'a [Fold]) -> Self {
        Self { checkpoint, folds }
    }

    /// Returns whether the checkpoint has a weight called `name`: a stored tensor of this name, or a compressed matrix.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// Loads the matrix `name` as an operator: the compressed one if the manifest lists it, otherwise a dense f32 one with the folds
    /// applied. Errors for a compressed matrix if a fold names it, or if the registry cannot load its kind of operator. Errors for any
    /// other matrix if there is no tensor of this name, if a fold does not match the length of the axis that it changes, or if a value
    /// after the folds is not finite. Errors for both if the shape of the operator is not `shape` (`[out_features, in_features]`, after the
    /// folds).
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

    /// Loads the vector `name` in f32, with the folds applied. `len` is its number of elements before the folds; the result has another
    /// length if a fold selects or combines elements. Errors if there is no such tensor, if its length before the folds is not `len`, if a
    /// fold does not match the length of the vector that it changes, or if a value after the folds is not finite.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let rows = self.checkpoint.model.rows(name)?;
        if rows.shape() != [1, len] {
            return Err(Error::shape("length of a vector", len, rows.shape()[1]).in_tensor(name));
        }
        let rows = FoldedRows::new(&*rows, name, self.folds)?;
        read_finite(&rows, 0..1).map_err(|e| e.in_tensor(name))
    }
}

/// Returns the stored bits per matrix element, `8 * bytes / elements`, first over all `weights`, then over those that are not embedding
/// tables or output head by their names. A value is 0 if there are no such weights.
///
/// ```
/// use tersor_models::{StoredWeight, bits_per_weight};
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

/// Returns whether `name` is the tensor name of an embedding table or of the output head: `model.embed_tokens.weight`, `lm_head.weight`, or
/// a name that ends in `_embeddings.weight`.
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
