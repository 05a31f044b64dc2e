//! Work in progress: a file (a part) for each finished matrix, and the hidden states between two layers.
//!
//! A matrix is finished when its record exists; the record is written after the part. File names are numbers, because names of tensors are never used
//! as paths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, LinearOp, Result, TensorSink};
use tersor_formats::safetensors::{File, Writer};
use tersor_formats::{json as files, write_atomic};

use crate::kinds::Kinds;
use crate::output::{hash_file, record_file, recorded};
use crate::plan::Entry;
use crate::rows::copy_rows;

/// The directory of work in progress, with the finished matrices.
pub(crate) struct Parts {
    dir: PathBuf,
}

/// The record of a finished matrix. The part of the matrix is a safetensors file with its stored tensors.
pub(crate) struct Record {
    /// The entry of the matrix in the manifest.
    pub(crate) manifest: Json,
    /// The seconds that its compression took.
    pub(crate) seconds: f64,
    bytes: u64,
    hash: String,
}

/// Saved hidden states: the activations behind some number of layers, of all calibration windows.
pub(crate) struct SavedStream {
    /// The number of layers in front of the hidden states.
    pub(crate) layers: usize,
    /// The hashes of the copied and folded tensors of those layers, as they were read, by the name of the tensor.
    pub(crate) sources: BTreeMap<String, String>,
    /// The path of the file of hidden states.
    pub(crate) path: PathBuf,
}

impl Parts {
    /// Returns the parts in the directory of work in progress `work`, which must exist.
    pub(crate) fn new(work: &Path) -> Self {
        Self { dir: work.to_path_buf() }
    }

    /// Returns the directory of work in progress, in which temporary files may be made.
    pub(crate) fn scratch(&self) -> &Path {
        &self.dir
    }

    fn part(&self, number: usize) -> PathBuf {
        self.dir.join(format!("{number:06}.part"))
    }

    fn record(&self, number: usize) -> PathBuf {
        self.dir.join(format!("{number:06}.json"))
    }

    /// Returns whether any result exists: a matrix, statistics, or the changes of a rewrite. Errors if the directory cannot be listed.
    pub(crate) fn any(&self) -> Result<bool> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let names = entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
        Ok({ names }.any(|n| {
            n.ends_with(".json") && n != "inputs.json" || n.starts_with("statistics") || n.starts_with("factors")
        }))
    }

    /// Returns the record of the matrix whose entry has the index `number` in the plan; None if it is not finished. Errors if the record is invalid
    /// or cannot be read.
    pub(crate) fn finished(&self, number: usize) -> Result<Option<Record>> {
        let path = self.record(number);
        if !path.is_file() {
            return Ok(None);
        }
        let json = files::read(&path, &Limits::default())?;
        let bad = || Error::format(path.display().to_string(), "it is not a record of a finished matrix; delete it");
        Ok(Some(Record {
            manifest: json["manifest"].clone(),
            seconds: json["seconds"].as_f64().unwrap_or(0.0),
            bytes: json["bytes"].as_u64().ok_or_else(bad)?,
            hash: json["blake3"].as_str().ok_or_else(bad)?.to_string(),
        }))
    }

    /// Begins the part of `entry`, which has the index `number` in the plan. Errors if the file cannot be written.
    pub(crate) fn create(&self, number: usize, entry: &Entry) -> Result<Writer> {
        Writer::create(&self.part(number), entry.tensors.iter().cloned().collect())
    }

    /// Finishes the part that [`create`](Self::create) began and records it, with the entry of the matrix in the manifest and the seconds of its
    /// compression. Errors if a tensor was not written whole, or a file cannot be written.
    pub(crate) fn commit(&self, number: usize, writer: Writer, manifest: Json, seconds: f64) -> Result<()> {
        writer.finish()?;
        let (bytes, hash) = hash_file(&self.part(number))?;
        let record = json!({"manifest": manifest, "seconds": seconds, "bytes": bytes, "blake3": hash});
        write_atomic(&self.record(number), &files::to_bytes(&record))
    }

    /// Opens the part of a finished matrix. Errors if the file has changed since it was recorded, or cannot be read.
    pub(crate) fn open(&self, number: usize, record: &Record) -> Result<File> {
        let path = self.part(number);
        let (bytes, hash) = hash_file(&path)?;
        if (bytes, &hash) != (record.bytes, &record.hash) {
            let what = format!(
                "it is not what was written there; delete {} to compress the matrix again",
                self.record(number).display()
            );
            return Err(Error::format(path.display().to_string(), what));
        }
        File::open(&path, &Limits::default())
    }

    /// Loads the operator of a finished matrix by the loaders of `kinds`. Errors if the part has changed since it was recorded, or its kind is
    /// unknown.
    pub(crate) fn operator(
        &self,
        number: usize,
        entry: &Entry,
        record: &Record,
        kinds: &Kinds,
    ) -> Result<Arc<dyn LinearOp>> {
        let spec = files::to_spec(&record.manifest["spec"])?;
        let op = kinds.operators.load(&spec, &entry.name, &self.open(number, record)?);
        Ok(op.map_err(|e| e.in_tensor(&entry.name))?.into())
    }

    /// Copies the tensors of a finished matrix into `sink`. Errors if the part has changed since it was recorded, or cannot be read or copied.
    pub(crate) fn copy(&self, number: usize, entry: &Entry, record: &Record, sink: &mut dyn TensorSink) -> Result<()> {
        let file = self.open(number, record)?;
        for (name, info) in &entry.tensors {
            copy_rows(&file, name, info, |_, _| Ok(()), sink)?;
        }
        Ok(())
    }

    fn stream(&self, layers: usize) -> PathBuf {
        self.dir.join(format!("stream-{layers:06}"))
    }

    /// Returns the path of the file of hidden states behind `layers` layers. The file counts once [`record_stream`](Self::record_stream) has recorded
    /// it.
    pub(crate) fn stream_path(&self, layers: usize) -> PathBuf {
        self.stream(layers)
    }

    /// Records the saved hidden states behind `layers` layers, with the hashes of the copied and folded tensors of these layers, and deletes those
    /// behind fewer layers. Errors if a file cannot be read, written or deleted.
    pub(crate) fn record_stream(&self, layers: usize, sources: &BTreeMap<String, String>) -> Result<()> {
        record_file(&self.stream(layers), json!({"layers": layers, "sources": sources}))?;
        for before in 0..layers {
            let path = self.stream(before);
            let old = path.with_extension("json");
            if old.is_file() {
                std::fs::remove_file(&old).map_err(|e| Error::io(&old, e))?;
            }
            if path.is_file() {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(())
    }

    /// Returns the saved hidden states behind the largest number of layers up to `max`; None if there are none. Errors if the file has changed since
    /// it was recorded, or the record is invalid.
    pub(crate) fn latest_stream(&self, max: usize) -> Result<Option<SavedStream>> {
        for layers in (1..=max).rev() {
            let path = self.stream(layers);
            let Some(json) = recorded(&path)? else { continue };
            let sources = serde_json::from_value(json["sources"].clone());
            let sources =
                sources.map_err(|e| Error::format(path.with_extension("json").display().to_string(), e.to_string()))?;
            return Ok(Some(SavedStream { layers, sources, path }));
        }
        Ok(None)
    }
}
