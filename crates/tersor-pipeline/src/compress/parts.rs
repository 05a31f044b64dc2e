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

/// The directory of finished matrices.
pub(crate) struct Parts {
    dir: PathBuf,
}

/// The record of a finished matrix.
pub(crate) struct Record {
    /// Its entry in the manifest.
    pub(crate) manifest: Json,
    /// Seconds that its compression took.
    pub(crate) seconds: f64,
    bytes: u64,
    hash: String,
}

/// Saved hidden states between two layers.
pub(crate) struct SavedStream {
    /// Number of layers before them.
    pub(crate) layers: usize,
    /// Hashes of the copied tensors of those layers, as they were read.
    pub(crate) sources: BTreeMap<String, String>,
    /// The file of hidden states.
    pub(crate) path: PathBuf,
}

impl Parts {
    /// Uses a directory of work in progress.
    pub(crate) fn new(work: &Path) -> Self {
        Self { dir: work.to_path_buf() }
    }

    /// Returns the directory for temporary files.
    pub(crate) fn scratch(&self) -> &Path {
        &self.dir
    }

    fn part(&self, number: usize) -> PathBuf {
        self.dir.join(format!("{number:06}.part"))
    }

    fn record(&self, number: usize) -> PathBuf {
        self.dir.join(format!("{number:06}.json"))
    }

    /// Returns whether any result exists: a matrix, statistics, or factors.
    pub(crate) fn any(&self) -> Result<bool> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let names = entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
        Ok({ names }.any(|n| {
            n.ends_with(".json") && n != "inputs.json" || n.starts_with("statistics") || n.starts_with("factors")
        }))
    }

    /// Returns the record of a matrix; none if it is not finished. Errors if the record is invalid.
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

    /// Starts the part of an entry.
    pub(crate) fn create(&self, number: usize, entry: &Entry) -> Result<Writer> {
        Writer::create(&self.part(number), entry.tensors.iter().cloned().collect())
    }

    /// Finishes a part and records it.
    pub(crate) fn commit(&self, number: usize, writer: Writer, manifest: Json, seconds: f64) -> Result<()> {
        writer.finish()?;
        let (bytes, hash) = hash_file(&self.part(number))?;
        let record = json!({"manifest": manifest, "seconds": seconds, "bytes": bytes, "blake3": hash});
        write_atomic(&self.record(number), &files::to_bytes(&record))
    }

    /// Opens a finished part. Errors if it has changed since it was recorded.
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

    /// Loads the operator of a finished part.
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

    /// Copies the tensors of a finished part into `sink`.
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

    /// Returns the path for the hidden states after `layers` layers; they are used once [`Parts::record_stream`] has recorded them.
    pub(crate) fn stream_path(&self, layers: usize) -> PathBuf {
        self.stream(layers)
    }

    /// Records the saved hidden states after `layers` layers, and deletes those of earlier layers.
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

    /// Returns the latest saved hidden states after at most `max` layers. Errors if the file has changed since it was recorded.
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
