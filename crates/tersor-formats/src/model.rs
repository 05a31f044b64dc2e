//! A model on disk, whatever its format: tensors by Hugging Face's names, and a configuration.

use crate::gguf::{self, BlockType, Heads};
use crate::json;
use crate::safetensors::Shards;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Limits, Result, RowSource, StoredRows, TensorSource};

/// A stored tensor as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Hugging Face's name, where the format has another; the file's own otherwise.
    pub name: String,
    /// Axes, slowest first.
    pub shape: Vec<usize>,
    /// Stored type: `F16`, `Q4_1`.
    pub dtype: String,
    /// Stored bytes.
    pub bytes: u64,
}

/// Where a model comes from.
pub enum ModelKind {
    /// A directory or file of safetensors.
    Safetensors(Shards),
    /// A GGUF file; the map leads from Hugging Face's names to the file's.
    Gguf(gguf::File, BTreeMap<String, (String, Heads)>),
}

/// An open model: headers in memory, tensors read on demand.
pub struct Model {
    kind: ModelKind,
    path: PathBuf,
    config: Option<Json>,
}

impl Model {
    /// Opens a directory (safetensors, `config.json` where there is one), a `.safetensors` or a `.gguf` file.
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
        // An architecture that is not known can still be inspected, under the file's own names.
        let config = match gguf::hf_config(&file) {
            Ok(config) => Some(config),
            Err(Error::Unsupported { .. } | Error::Missing { .. }) => None,
            Err(e) => return Err(e),
        };
        let mut names = BTreeMap::new();
        for own in file.tensors().keys() {
            let known = if config.is_some() { gguf::hf_name(own) } else { None };
            let (name, heads) = known.map_or((own.clone(), Heads::None), |h| (h.name, h.heads));
            if let Some((other, _)) = names.insert(name.clone(), (own.clone(), heads)) {
                let what = format!("`{other}` and `{own}` both mean `{name}`");
                return Err(Error::format(path.display().to_string(), what));
            }
        }
        Ok(Self { kind: ModelKind::Gguf(file, names), path: path.to_path_buf(), config })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, or what GGUF metadata says of the same.
    pub fn config(&self) -> Option<&Json> {
        self.config.as_ref()
    }

    /// The format.
    pub fn kind(&self) -> &ModelKind {
        &self.kind
    }

    /// The stored tensors, where they are plain ones.
    pub fn stored(&self) -> Option<&dyn TensorSource> {
        match &self.kind {
            ModelKind::Safetensors(s) => Some(s),
            ModelKind::Gguf(..) => None,
        }
    }

    /// Every tensor, sorted by name.
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
                let entry = |(name, (own, _)): (&String, &(String, Heads))| {
                    let t = file.tensors().get(own)?;
                    let dtype = t.kind.name().to_string();
                    Some(Tensor { name: name.clone(), shape: t.shape.clone(), dtype, bytes: t.bytes })
                };
                names.iter().filter_map(entry).collect()
            }
        }
    }

    /// One tensor's description. Error when there is none of that name.
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

    /// The rows of a tensor (of a vector: one; of more than two axes: the last is the row), in f32 and in Hugging Face's order. Error when there is none of that name.
    pub fn rows<'a>(&'a self, name: &'a str) -> Result<Box<dyn RowSource + 'a>> {
        match &self.kind {
            ModelKind::Safetensors(s) => Ok(Box::new(StoredRows::new(s, name)?)),
            ModelKind::Gguf(file, names) => {
                let found = names.get(name);
                let (own, heads) = found
                    .ok_or_else(|| Error::Missing { name: name.into(), place: self.path.display().to_string() })?;
                let rows = file.rows(own)?;
                // Llama files store q and k for interleaved rotary embeddings; Qwen's do not.
                let llama = file.meta().text("general.architecture") == Some("llama");
                if llama && *heads == Heads::Rotary {
                    let dim = self.config.as_ref().and_then(|c| c["head_dim"].as_u64()).unwrap_or(0) as usize;
                    return Ok(Box::new(rows.unpermuted(dim).map_err(|e| e.in_tensor(name))?));
                }
                Ok(Box::new(rows))
            }
        }
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(_, f)| f.bytes()).sum(),
            ModelKind::Gguf(file, _) => file.bytes(),
        }
    }

    /// Names and lengths of the weight files.
    pub fn files(&self) -> Vec<(String, u64)> {
        match &self.kind {
            ModelKind::Safetensors(s) => s.files().map(|(n, f)| (n.to_string(), f.bytes())).collect(),
            ModelKind::Gguf(file, _) => {
                let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                vec![(name, file.bytes())]
            }
        }
    }

    /// The file that output for this tensor belongs in: the name of its shard, or `model.safetensors`.
    pub fn shard_of(&self, tensor: &str) -> &str {
        match &self.kind {
            ModelKind::Safetensors(s) => s.file_of(tensor).unwrap_or("model.safetensors"),
            ModelKind::Gguf(..) => "model.safetensors",
        }
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&gguf::File> {
        match &self.kind {
            ModelKind::Gguf(file, _) => Some(file),
            ModelKind::Safetensors(_) => None,
        }
    }

    /// Whether the stored type of a tensor is a block type rather than a float.
    pub fn is_blocks(dtype: &str) -> bool {
        BlockType::ALL.iter().any(|t| t.name() == dtype && t.elements() > 1)
    }
}
