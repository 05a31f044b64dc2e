//! A model in one file, or in shards with an index.

use super::File;
use crate::json;
use std::collections::BTreeMap;
use std::path::Path;
use tersor_core::{Error, Limits, Result, TensorInfo, TensorSource};

/// File name of the index of a sharded model.
pub const INDEX: &str = "model.safetensors.index.json";

/// The safetensors files of a directory, as one set of tensors.
pub struct Shards {
    /// File name and content, in the order of names.
    files: Vec<(String, File)>,
    /// Tensor to the number of its file.
    place: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens `model.safetensors.index.json` and the shards that it names, or else `model.safetensors`, or else the one
    /// `.safetensors` file there is. Error naming both files when the index and the shards disagree.
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
            [] => Err(Error::Missing { name: "model.safetensors".into(), place: dir.display().to_string() }),
            _ => Err(Error::format(
                dir.display().to_string(),
                format!("{} safetensors files and no `{INDEX}` to say which belong together", found.len()),
            )),
        }
    }

    /// Opens one file.
    pub fn open_file(path: &Path, limits: &Limits) -> Result<Self> {
        let file = File::open(path, limits)?;
        let place = file.names().into_iter().map(|n| (n, 0)).collect();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { files: vec![(name, file)], place })
    }

    fn open_index(dir: &Path, index: &Path, limits: &Limits) -> Result<Self> {
        let bad = |what: String| Error::format(index.display().to_string(), what);
        let map = json::read(index, limits)?;
        let map = map.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| bad("no `weight_map`".into()))?;
        let mut place = BTreeMap::new();
        let mut names: Vec<String> = Vec::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().ok_or_else(|| bad(format!("the shard of `{tensor}` is not a string")))?;
            // A name, never a path.
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
                return Err(bad(format!("names the shard `{}`, which is not there", names[i])));
            }
            files.push((names[i].clone(), File::open(&path, limits)?));
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
                return Err(bad(format!("says that `{tensor}` is in `{}`, which does not have it", files[*at].0)));
            }
        }
        if let Some((tensor, at)) = home.iter().find(|(t, _)| !place.contains_key(*t)) {
            return Err(bad(format!("does not list `{tensor}`, which is in `{}`", files[*at].0)));
        }
        Ok(Self { files, place })
    }

    /// File names and files, in order.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(n, f)| (n.as_str(), f))
    }

    /// Name of the file that a tensor is in.
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
