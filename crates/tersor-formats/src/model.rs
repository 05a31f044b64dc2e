//! A model on disk in either format: its tensors under Hugging Face's names, and its configuration.

use crate::gguf::{self, BlockType, RowOrder};
use crate::json;
use crate::safetensors::Shards;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Limits, Result, RowSource, StoredRows, TensorSource};

/// Name, shape, stored type and size of one tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name of the tensor in Hugging Face's naming; for a GGUF tensor without a Hugging Face name, its name in the file.
    pub name: String,
    /// Sizes of the tensor's axes, slowest-varying first: `[out_features, in_features]` for a matrix.
    pub shape: Vec<usize>,
    /// Name of the tensor's stored type, such as `F16` or `Q4_1`.
    pub dtype: String,
    /// Length of the tensor's stored data in bytes.
    pub bytes: u64,
}

/// The format of an open model, safetensors or GGUF, with its open files.
pub enum ModelKind {
    /// A directory of safetensors files, or one such file.
    Safetensors(Shards),
    /// A GGUF file, and a map from each Hugging Face name to the tensor's name in the file and the order of its rows.
    Gguf(gguf::File, BTreeMap<String, (String, RowOrder)>),
}

/// An open model, safetensors or GGUF: headers are in memory, tensor data is read on demand.
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
    /// Opens a directory (safetensors files and, if present, `config.json`), a `.safetensors` file or a `.gguf` file, and checks the headers.
    /// Errors if a file is missing, is above `limits`, or breaks its format.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        if path.is_dir() {
            let file = path.join("config.json");
            let config = if file.is_file() { Some(json::read(&file, limits)?) } else { None };
            let kind = ModelKind::Safetensors(Shards::open_dir(path, limits)?);
            return Ok(Self { kind, path: path.to_path_buf(), config });
        }
        let mut magic = [0u8; 4];
        let file = crate::FileAt::open(path)?;
        let gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
            || (crate::ReadAt::len(&file) >= 4
                && crate::ReadAt::read_at(&file, 0, &mut magic).is_ok()
                && &magic == b"GGUF");
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

    /// Returns the path that the model was opened at: a directory or a file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the contents of `config.json`; for a GGUF file, the equivalent configuration built from its metadata by
    /// [`hf_config`](gguf::hf_config). None if a directory has no `config.json`, for a lone `.safetensors` file, or for an unknown GGUF
    /// architecture.
    pub fn config(&self) -> Option<&Json> {
        self.config.as_ref()
    }

    /// Returns the model's format with its open files.
    pub fn kind(&self) -> &ModelKind {
        &self.kind
    }

    /// Returns the safetensors files as one source of stored tensors; none for a GGUF file.
    pub fn stored(&self) -> Option<&dyn TensorSource> {
        match &self.kind {
            ModelKind::Safetensors(s) => Some(s),
            ModelKind::Gguf(..) => None,
        }
    }

    /// Returns the description of every tensor, sorted by name.
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

    /// Returns the description of the tensor `name`. Errors if there is none of that name.
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

    /// Returns a source of the rows of the tensor `name`, dequantized to f32, in Hugging Face's order (the query and key rows of a Llama GGUF file
    /// are un-permuted). A vector is one row; of a tensor with more than two axes, each row runs along the last axis. Errors if there is no tensor
    /// of that name, or its type in a safetensors file is not F32, F16 or BF16.
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

    /// Returns the total length in bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(_, f)| f.bytes()).sum(),
            ModelKind::Gguf(file, _) => file.bytes(),
        }
    }

    /// Returns the file name and the length in bytes of each weight file.
    pub fn files(&self) -> Vec<(String, u64)> {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(n, f)| (n.to_string(), f.bytes())).collect(),
            ModelKind::Gguf(file, _) => {
                let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                vec![(name, file.bytes())]
            }
        }
    }

    /// Returns the name of the safetensors file to write a converted version of this tensor to: the shard that holds it now, or
    /// `model.safetensors` for a GGUF model or an unknown tensor.
    pub fn shard_of(&self, tensor: &str) -> &str {
        match &self.kind {
            ModelKind::Safetensors(s) => s.file_of(tensor).unwrap_or("model.safetensors"),
            ModelKind::Gguf(..) => "model.safetensors",
        }
    }

    /// Returns the open GGUF file; none for a safetensors model.
    pub fn gguf(&self) -> Option<&gguf::File> {
        match &self.kind {
            ModelKind::Gguf(file, _) => Some(file),
            ModelKind::Safetensors(_) => None,
        }
    }

    /// Returns whether a stored type, given by its name such as `Q4_0`, is a block-quantized GGUF type. False for floats and for unknown names.
    pub fn is_block_quantized(dtype: &str) -> bool {
        BlockType::ALL.iter().any(|t| t.name() == dtype && t.elements() > 1)
    }
}
