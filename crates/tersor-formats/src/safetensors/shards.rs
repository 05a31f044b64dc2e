//! A model stored in one safetensors file, or in shards with an index.

use super::File;
use crate::content::no_weights_in;
use crate::{describe, json};
use std::collections::BTreeMap;
use std::path::Path;
use tersor_core::{Error, Limits, Result, TensorInfo, TensorSource};

/// File name of the index of a sharded model: a JSON file whose object `weight_map` maps each tensor's name to the file that holds it.
pub const INDEX: &str = "model.safetensors.index.json";

/// The safetensors files of a model, opened together and read as one set of tensors through [`TensorSource`] (bytes of a tensor at an
/// offset).
///
/// ```
/// use tersor_core::{DType, Limits, MemTensors, TensorInfo, TensorSink, TensorSource};
/// use tersor_formats::safetensors::{INDEX, Shards, write};
/// let dir = tempfile::tempdir().unwrap();
/// for (file, tensor) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
///     let mut tensors = MemTensors::default();
///     tensors.write_rows(tensor, &TensorInfo { dtype: DType::U8, shape: vec![1] }, 0, &[5]).unwrap();
///     write(&dir.path().join(file), &tensors).unwrap();
/// }
/// let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
/// std::fs::write(dir.path().join(INDEX), index).unwrap();
/// let shards = Shards::open_dir(dir.path(), &Limits::default()).unwrap();
/// assert_eq!(shards.names(), ["a", "b"]);
/// assert_eq!(shards.file_of("b"), Some("2.safetensors"));
/// ```
pub struct Shards {
    /// File name and open file, sorted by name.
    files: Vec<(String, File)>,
    /// Index in `files` of each tensor's file, by tensor name.
    place: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens the safetensors files of the directory `dir`: the shards that `model.safetensors.index.json` lists; without this index,
    /// `model.safetensors`; without that file, the only `.safetensors` file. Errors if there is no such file, if there are several without
    /// an index, if a shard is missing or does not have exactly the tensors that the index places in it, or if a file breaks the format or
    /// exceeds `limits`.
    pub fn open_dir(dir: &Path, limits: &Limits) -> Result<Self> {
        let index = dir.join(INDEX);
        if index.is_file() {
            return Self::open_index(dir, &index, limits);
        }
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single, limits);
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                found.push(path);
            }
        }
        match &found[..] {
            [one] => Self::open_file(one, limits),
            [] => Err(no_weights_in(dir)?),
            _ => Err(Error::format(
                dir.display().to_string(),
                format!("it has {} safetensors files and no `{INDEX}` that lists the shards of the model", found.len()),
            )),
        }
    }

    /// Opens the safetensors file at `path` as a whole model. Errors if it cannot be opened, and under the conditions of [`File::open`]:
    /// its header is above `limits`, is invalid, or does not agree with the length of the file.
    pub fn open_file(path: &Path, limits: &Limits) -> Result<Self> {
        let file = open_weights(path, limits)?;
        let place = file.names().into_iter().map(|n| (n, 0)).collect();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { files: vec![(name, file)], place })
    }

    fn open_index(dir: &Path, index: &Path, limits: &Limits) -> Result<Self> {
        let bad = |what: String| Error::format(index.display().to_string(), what);
        let map = json::read(index, limits)?;
        let map = map
            .get("weight_map")
            .and_then(|m| m.as_object())
            .ok_or_else(|| bad("it has no object `weight_map`".into()))?;
        let mut place = BTreeMap::new();
        let mut names: Vec<String> = Vec::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().ok_or_else(|| bad(format!("the shard of `{tensor}` is not a string")))?;
            // A shard must be a plain file name; a path could leave the directory.
            let plain = Path::new(shard).file_name().is_some_and(|n| n == shard) && !shard.contains(['/', '\\', '\0']);
            if !plain {
                return Err(bad(format!("`{shard}` is not the name of a file beside the index")));
            }
            let at = names.iter().position(|n| n == shard).unwrap_or_else(|| {
                names.push(shard.to_string());
                names.len() - 1
            });
            place.insert(tensor.clone(), at);
        }
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|&a, &b| names[a].cmp(&names[b]));
        let mut files = Vec::new();
        for &i in &order {
            let path = dir.join(&names[i]);
            if !path.is_file() {
                return Err(bad(format!("it names the shard `{}`, which does not exist", names[i])));
            }
            files.push((names[i].clone(), open_weights(&path, limits)?));
        }
        for at in place.values_mut() {
            *at = order.iter().position(|i| i == at).unwrap_or(0);
        }
        let mut home: BTreeMap<String, usize> = BTreeMap::new();
        for (i, (shard, file)) in files.iter().enumerate() {
            for tensor in file.names() {
                if let Some(other) = home.insert(tensor.clone(), i) {
                    return Err(bad(format!("tensor `{tensor}` is in `{}` and in `{shard}`", files[other].0)));
                }
            }
        }
        for (tensor, at) in &place {
            if home.get(tensor) != Some(at) {
                return Err(bad(format!(
                    "it places tensor `{tensor}` in `{}`, which does not contain it",
                    files[*at].0
                )));
            }
        }
        if let Some((tensor, at)) = home.iter().find(|(t, _)| !place.contains_key(*t)) {
            return Err(bad(format!("it does not list tensor `{tensor}`, which is in `{}`", files[*at].0)));
        }
        Ok(Self { files, place })
    }

    /// Iterates over the file name, without directory, and the open file of each shard, sorted by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(n, f)| (n.as_str(), f))
    }

    /// Returns the name, without directory, of the file that holds the tensor `tensor`; None if no file does.
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.place.get(tensor).map(|&i| self.files[i].0.as_str())
    }

    fn home(&self, name: &str) -> Result<&File> {
        let place = || self.files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>().join(", ");
        let at = self.place.get(name);
        let at = at.ok_or_else(|| Error::Missing { name: name.to_string(), place: place() })?;
        Ok(&self.files[*at].1)
    }
}

impl TensorSource for Shards {
    fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }
    fn info(&self, name: &str) -> Result<TensorInfo> {
        self.home(name)?.info(name)
    }
    fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.home(name)?.read_at(name, offset, out)
    }
}

/// Opens a safetensors file of a model. If it is a file of another kind, the error says which.
fn open_weights(path: &Path, limits: &Limits) -> Result<File> {
    let content = describe(path)?;
    if content.is_no_weights() {
        return Err(content.instead_of_model(path));
    }
    File::open(path, limits)
}
