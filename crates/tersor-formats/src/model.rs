//! A model on disk in either format: its tensors under Hugging Face's names, and its configuration.

use crate::gguf::{self, BlockType, RowOrder};
use crate::safetensors::Shards;
use crate::{describe, json};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Limits, Result, RowSource, StoredRows, TensorSource};

/// Name, shape, stored type and stored size of one tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name of the tensor in Hugging Face's naming. It is the name in the file for a GGUF tensor without a Hugging Face name, and for all
    /// tensors of a GGUF file for which [`Model::config`] is None.
    pub name: String,
    /// Sizes of the tensor's axes, slowest-varying first: `[out_features, in_features]` for a matrix.
    pub shape: Vec<usize>,
    /// Name of the tensor's stored type, such as `F16` for safetensors or `Q4_1` for GGUF.
    pub dtype: String,
    /// Length of the tensor's stored data in bytes.
    pub bytes: u64,
}

/// The format of an open model, safetensors or GGUF, and its open files.
pub enum ModelKind {
    /// Safetensors: the files of a directory, or one such file.
    Safetensors(Shards),
    /// GGUF: the file, and a map from the Hugging Face name of each tensor (its own name, if it has no Hugging Face name) to its name in
    /// the file and the order of its rows.
    Gguf(gguf::File, BTreeMap<String, (String, RowOrder)>),
}

/// An open model in safetensors or GGUF format, with tensors under Hugging Face's names. Headers and `config.json` are in memory; tensor
/// data is read when it is needed.
///
/// ```
/// use tersor_core::Limits;
/// use tersor_formats::Model;
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let model = Model::open(path.as_ref(), &Limits::default()).unwrap();
/// assert_eq!(model.config().unwrap()["model_type"], "llama");
/// let norm = model.tensor("model.norm.weight").unwrap();
/// let mut values = vec![0.0; norm.shape[0]];
/// model.rows("model.norm.weight").unwrap().read_rows(0..1, &mut values).unwrap();
/// assert!(values.iter().all(|v| v.is_finite()));
/// ```
pub struct Model {
    kind: ModelKind,
    path: PathBuf,
    config: Option<Json>,
}

impl Model {
    /// Opens the model at `path` and reads and checks its headers. A directory has the safetensors files that its
    /// `model.safetensors.index.json` lists, or a single one (see [`Shards::open_dir`]), and may have a `config.json`. A file is read as
    /// GGUF if its name ends in `.gguf` or its content begins with `GGUF`, otherwise as safetensors. Errors if `path` does not exist, a
    /// weight file is missing, or a file breaks its format or exceeds `limits`. Errors if a shard does not have exactly the tensors that
    /// the index of the directory places in it. Errors if two tensors of a GGUF file have the same Hugging Face name. If a file is of another
    /// kind, such as a pickle, the error says which and what to do.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        if path.is_dir() {
            let file = path.join("config.json");
            let config = if file.is_file() { Some(json::read(&file, limits)?) } else { None };
            let kind = ModelKind::Safetensors(Shards::open_dir(path, limits)?);
            return Ok(Self { kind, path: path.to_path_buf(), config });
        }
        let mut magic = [0u8; 4];
        let file = crate::FileAt::open(path)?;
        let marked =
            crate::ReadAt::len(&file) >= 4 && crate::ReadAt::read_at(&file, 0, &mut magic).is_ok() && &magic == b"GGUF";
        let gguf = marked || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let content = describe(path)?;
        if content.is_no_weights() {
            return Err(content.instead_of_model(path));
        }
        if gguf {
            return Self::from_gguf(gguf::File::open(path, limits)?, path);
        }
        Ok(Self {
            kind: ModelKind::Safetensors(Shards::open_file(path, limits)?),
            path: path.to_path_buf(),
            config: None,
        })
    }

    fn from_gguf(file: gguf::File, path: &Path) -> Result<Self> {
        // A file of an unknown architecture can still be inspected, under the file's own names.
        let config = match gguf::hf_config(&file) {
            Ok(config) => Some(config),
            Err(Error::Unsupported { .. } | Error::Missing { .. }) => None,
            Err(e) => return Err(e),
        };
        let mut names = BTreeMap::new();
        for own in file.tensors().keys() {
            let known = if config.is_some() { gguf::hf_name(own) } else { None };
            let (name, rows) = known.map_or((own.clone(), RowOrder::Same), |t| (t.name, t.rows));
            if let Some((other, _)) = names.insert(name.clone(), (own.clone(), rows)) {
                let what = format!("tensors `{other}` and `{own}` both have the Hugging Face name `{name}`");
                return Err(Error::format(path.display().to_string(), what));
            }
        }
        Ok(Self { kind: ModelKind::Gguf(file, names), path: path.to_path_buf(), config })
    }

    /// Returns the path that the model was opened at, a directory or a file, as it was given to [`Model::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the contents of `config.json`; for a GGUF file, the equivalent configuration that [`hf_config`](gguf::hf_config) builds from
    /// its metadata. None if a directory has no `config.json`, for a lone `.safetensors` file, and for a GGUF file whose architecture or
    /// rotary embedding is unsupported or whose metadata lacks a size.
    pub fn config(&self) -> Option<&Json> {
        self.config.as_ref()
    }

    /// Returns the model's format, safetensors or GGUF, with its open files.
    pub fn kind(&self) -> &ModelKind {
        &self.kind
    }

    /// Returns the safetensors files as one source of stored tensors (by name, type, shape and bytes); None for a GGUF file.
    pub fn stored(&self) -> Option<&dyn TensorSource> {
        match &self.kind {
            ModelKind::Safetensors(s) => Some(s),
            ModelKind::Gguf(..) => None,
        }
    }

    /// Returns name, shape, stored type and stored bytes of every tensor, sorted by name.
    pub fn tensors(&self) -> Vec<Tensor> {
        match &self.kind {
            ModelKind::Safetensors(s) => {
                let mut all = Vec::new();
                for (_, file) in s.files() {
                    for (name, e) in &file.header().tensors {
                        let (shape, dtype) = (e.info.shape.clone(), e.info.dtype.name().to_string());
                        all.push(Tensor { name: name.clone(), shape, dtype, bytes: e.bytes });
                    }
                }
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all
            }
            ModelKind::Gguf(file, names) => {
                let entry = |(name, (own, _)): (&String, &(String, RowOrder))| {
                    let t = file.tensors().get(own)?;
                    let dtype = t.kind.name().to_string();
                    Some(Tensor { name: name.clone(), shape: t.shape.clone(), dtype, bytes: t.bytes })
                };
                names.iter().filter_map(entry).collect()
            }
        }
    }

    /// Returns shape, stored type and stored bytes of the tensor `name` (Hugging Face's naming). Errors if the model has no tensor of that
    /// name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match &self.kind {
            ModelKind::Safetensors(s) => {
                let info = s.info(name)?;
                let bytes = info.bytes()? as u64;
                Ok(Tensor { name: name.into(), shape: info.shape, dtype: info.dtype.name().into(), bytes })
            }
            ModelKind::Gguf(file, names) => {
                let own = names.get(name).and_then(|(own, _)| file.tensors().get(own));
                let t =
                    own.ok_or_else(|| Error::Missing { name: name.into(), place: self.path.display().to_string() })?;
                Ok(Tensor { name: name.into(), shape: t.shape.clone(), dtype: t.kind.name().into(), bytes: t.bytes })
            }
        }
    }

    /// Returns a source of the rows of the tensor `name` (Hugging Face's naming), as a matrix `[rows, cols]`. Rows are converted to f32
    /// when they are read. `cols` is the size of the last (fastest-varying) axis, `rows` the product of the sizes of the others; a vector
    /// is one row. Rows are in Hugging Face's order: the query and key rows of a Llama GGUF file are un-permuted. Errors if the model has
    /// no tensor of that name, if its type in a safetensors file is not F32, F16 or BF16, or if the query or key rows of a Llama GGUF file
    /// are not whole heads of an even number of rows.
    pub fn rows<'a>(&'a self, name: &'a str) -> Result<Box<dyn RowSource + 'a>> {
        match &self.kind {
            ModelKind::Safetensors(s) => Ok(Box::new(StoredRows::new(s, name)?)),
            ModelKind::Gguf(file, names) => {
                let found = names.get(name);
                let (own, order) = found
                    .ok_or_else(|| Error::Missing { name: name.into(), place: self.path.display().to_string() })?;
                let rows = file.rows(own)?;
                // Llama files store q and k for interleaved rotary embeddings; Qwen's do not.
                let llama = file.meta().text("general.architecture") == Some("llama");
                if llama && *order == RowOrder::Interleaved {
                    let dim = self.config.as_ref().and_then(|c| c["head_dim"].as_u64()).unwrap_or(0) as usize;
                    return Ok(Box::new(rows.unpermuted(dim).map_err(|e| e.in_tensor(name))?));
                }
                Ok(Box::new(rows))
            }
        }
    }

    /// Returns the total length in bytes of all weight files (safetensors or GGUF), headers included.
    pub fn weight_bytes(&self) -> u64 {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(_, f)| f.bytes()).sum(),
            ModelKind::Gguf(file, _) => file.bytes(),
        }
    }

    /// Returns the file name, without directory, and the length in bytes of each weight file, sorted by name.
    pub fn files(&self) -> Vec<(String, u64)> {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(n, f)| (n.to_string(), f.bytes())).collect(),
            ModelKind::Gguf(file, _) => {
                let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                vec![(name, file.bytes())]
            }
        }
    }

    /// Returns the name of the safetensors file that a converted version of the tensor `tensor` belongs into: the name of the file that
    /// holds the tensor now, or `model.safetensors` for a GGUF model or a tensor that the model does not have.
    pub fn shard_of(&self, tensor: &str) -> &str {
        match &self.kind {
            ModelKind::Safetensors(s) => s.file_of(tensor).unwrap_or("model.safetensors"),
            ModelKind::Gguf(..) => "model.safetensors",
        }
    }

    /// Returns the open GGUF file; None for a safetensors model.
    pub fn gguf(&self) -> Option<&gguf::File> {
        match &self.kind {
            ModelKind::Gguf(file, _) => Some(file),
            ModelKind::Safetensors(_) => None,
        }
    }

    /// Returns whether `dtype` is the name of a block-quantized GGUF type, such as `Q4_0` or `Q6_K`. False for the names of float types and
    /// for unknown names.
    pub fn is_block_quantized(dtype: &str) -> bool {
        BlockType::ALL.iter().any(|t| t.name() == dtype && t.elements() > 1)
    }
}
