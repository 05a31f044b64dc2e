//! A model on disk as the parts of a network: an original, or what `tersor compress` wrote.

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

/// Name of the file that makes a directory a compressed model.
pub const MANIFEST: &str = "tersor.json";

/// What `tersor.json` says.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// All of it: recipe, fingerprint, reports.
    pub json: Json,
    /// The operator of each compressed matrix.
    pub specs: BTreeMap<String, OpSpec>,
}

impl Manifest {
    /// Version of the file's own format.
    pub const FORMAT: u64 = 1;

    /// Reads it. Error when the format is another, or a specification is broken.
    pub fn from_json(json: Json) -> Result<Self> {
        let bad = |what: String| Error::format(MANIFEST, what);
        match json.get("format").and_then(Json::as_u64) {
            Some(Self::FORMAT) => {}
            Some(other) => {
                let value = format!("{other} (this version reads {})", Self::FORMAT);
                return Err(Error::Unsupported { what: "format of tersor.json", value });
            }
            None => return Err(bad("no `format`".into())),
        }
        let tensors = json.get("tensors").and_then(Json::as_object).ok_or_else(|| bad("no `tensors`".into()))?;
        let mut specs = BTreeMap::new();
        for (name, entry) in tensors {
            let spec = entry.get("spec").ok_or_else(|| bad(format!("no `spec` of `{name}`")))?;
            specs.insert(name.clone(), json::to_spec(spec).map_err(|e| e.in_tensor(name))?);
        }
        Ok(Self { json, specs })
    }
}

/// A matrix of a model and what it takes on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredWeight {
    /// Its name.
    pub name: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Bytes of all tensors that make it up.
    pub bytes: u64,
}

/// An open model with what is needed to make operators of it.
pub struct Checkpoint {
    model: Model,
    manifest: Option<Manifest>,
    registry: Registry,
    architecture: Architecture,
}

impl Checkpoint {
    /// Opens a directory, a `.gguf` file, or what `compress` wrote, within the default limits. `registry` must know the
    /// kinds of operators in it. Error when the architecture does not run here.
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

    /// Sizes and switches.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The files.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What `compress` recorded, if it wrote this.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Whether there is a tensor or operator of that name.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.specs.contains_key(name)) || self.model.tensor(name).is_ok()
    }

    /// A matrix as an operator: what was compressed, or the original's values in f32. Error when it is missing, has another
    /// shape, or holds a value that is not finite.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn LinearOp>> {
        Weights::from(self).matrix(name, shape)
    }

    /// A vector in f32. Error as for [`Checkpoint::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Weights::from(self).vector(name, len)
    }

    /// What a layer's keys are to be rotated by behind their rotary embedding, before a cache rounds them; none where the model says nothing of
    /// it. Error when it is no rotation of so many dimensions.
    pub fn key_rotation(&self, layer: usize, head_dim: usize) -> Result<Option<Rotation>> {
        let name = key_rotation_name(layer);
        if self.model.tensor(&name).is_err() {
            return Ok(None);
        }
        let Some(stored) = self.model.stored() else { return Ok(None) };
        let read = || -> Result<Rotation> { Rotation::dense(&read_floats(stored, &name, &[1, head_dim, head_dim])?) };
        read().map(Some).map_err(|e| e.in_tensor(&name))
    }

    /// The two-dimensional weights and what they take on disk; a head that is tied is not a second one.
    pub fn weights(&self) -> Vec<StoredWeight> {
        let tensors = self.model.tensors();
        let specs = self.manifest.as_ref().map(|m| &m.specs);
        let mut found: BTreeMap<String, StoredWeight> = BTreeMap::new();
        for (name, spec) in specs.into_iter().flatten() {
            found.insert(name.clone(), StoredWeight { name: name.clone(), shape: spec.shape, bytes: 0 });
        }
        for t in tensors {
            // A part is called `weight.part`, of parts of parts likewise.
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

    /// Bits a weight over all matrices, and over those that are neither embedding nor head.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        bits_per_weight(&self.weights())
    }
}

const KEY_ROTATION: &str = ".self_attn.k_rotation";

/// The name of the rotation of a layer's keys, `[1, head_dim, head_dim]` in f32: row `i` is the direction whose coefficient becomes dimension `i`, in all
/// heads alike.
pub fn key_rotation_name(layer: usize) -> String {
    format!("model.layers.{layer}{KEY_ROTATION}")
}

/// Whether a tensor is such a rotation: caches read it, and nothing else.
pub fn is_key_rotation(name: &str) -> bool {
    name.ends_with(KEY_ROTATION)
}

/// The weights of a checkpoint, with folds applied as they are read.
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
    /// With these folds.
    pub fn folded(checkpoint: &'a Checkpoint, folds: &'a [Fold]) -> Self {
        Self { checkpoint, folds }
    }

    /// Whether there is a tensor or operator of that name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// A matrix as an operator: what was compressed, or the original's values in f32. Error when it is missing, has another shape, holds a value
    /// that is not finite, or is folded after it was compressed.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn LinearOp>> {
        let Checkpoint { model, manifest, registry, .. } = self.checkpoint;
        let op = match (manifest.as_ref().and_then(|m| m.specs.get(name)), model.stored()) {
            (Some(_), _) if self.folds.iter().any(|f| f.weight == name) => {
                let value = "a matrix that is compressed already".to_string();
                return Err(Error::Unsupported { what: "folding", value }.in_tensor(name));
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

    /// A vector in f32. Error as for [`Weights::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let rows = self.checkpoint.model.rows(name)?;
        if rows.shape() != [1, len] {
            return Err(Error::shape("length of a vector", len, rows.shape()[1]).in_tensor(name));
        }
        let rows = FoldedRows::new(&*rows, name, self.folds)?;
        read_finite(&rows, 0..1).map_err(|e| e.in_tensor(name))
    }
}

/// Stored bits over elements: of all, and of all but embedding and head. 0 where there are none.
pub fn bits_per_weight(weights: &[StoredWeight]) -> (f64, f64) {
    let ratio = |body: bool| {
        let of = weights.iter().filter(|w| !body || !is_embedding_or_head(&w.name));
        let (bytes, n) = of.fold((0u64, 0f64), |(b, n), w| (b + w.bytes, n + w.shape[0] as f64 * w.shape[1] as f64));
        if n == 0.0 { 0.0 } else { bytes as f64 * 8.0 / n }
    };
    (ratio(false), ratio(true))
}

/// Whether a weight is the embedding or the head.
pub fn is_embedding_or_head(name: &str) -> bool {
    matches!(name, "model.embed_tokens.weight" | "lm_head.weight") || name.ends_with("_embeddings.weight")
}

fn read_dense(rows: &dyn RowSource) -> Result<Dense> {
    let [n, cols] = rows.shape();
    let mut values = vec![0f32; tersor_core::view::elements([n, cols])?];
    // In parts, so that the stored bytes never lie beside the whole in memory.
    const PART: usize = 1024;
    for first in (0..n).step_by(PART) {
        let last = (first + PART).min(n);
        rows.read_rows(first..last, &mut values[first * cols..last * cols])?;
    }
    Dense::new(values, [n, cols], DType::F32)
}
