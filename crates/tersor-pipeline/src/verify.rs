//! [`verify`]: whether an output directory of `compress` is unchanged.

use std::path::Path;

use serde::Serialize;
use tersor_core::{Context, Error, Result};
use tersor_models::{Checkpoint, MANIFEST};

use crate::kinds::Kinds;
use crate::output::hash_file;
use crate::rows::check_values;

/// What [`verify`] checked. All of it was found valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Verified {
    /// The number of weight files; each has the length and hash that were recorded when it was written.
    pub files: usize,
    /// The number of compressed matrices; each has the shape that the manifest records, and finite values only.
    pub matrices: usize,
    /// The total length of the weight files in bytes.
    pub weight_bytes: u64,
}

/// Checks the output directory `dir` of [`compress`](crate::compress()): length and hash of each weight file that its manifest `tersor.json` lists,
/// that each compressed matrix can be loaded with the shape that the manifest records, and that the values of matrices and vectors are finite. Other
/// files of the directory, such as the manifest itself and the tokenizer, have no recorded hash; they are checked only as far as they must be read.
/// `kinds` loads the operators; progress and cancellation are those of `cx`.
///
/// # Errors
///
/// The first fault: an [`Error::Format`] if the directory has no valid manifest, or a file has another length or hash; an [`Error::Io`] if a file
/// cannot be read; an [`Error::Tensor`] or [`Error::Missing`] with the name of the tensor if a matrix or vector is missing or invalid; an
/// [`Error::Unsupported`] if the architecture or a kind of operator is unknown. [`Error::Cancelled`] if the work is cancelled.
pub fn verify(dir: &Path, kinds: &Kinds, cx: &Context) -> Result<Verified> {
    let bad = |what: String| Error::format(dir.display().to_string(), what);
    let manifest = dir.join(MANIFEST);
    if !manifest.is_file() {
        return Err(bad(format!("it has no {MANIFEST}, so it is not a finished output of `compress`")));
    }
    let recorded = tersor_formats::json::read(&manifest, &tersor_core::Limits::default())?;
    let files = recorded["files"].as_object().ok_or_else(|| bad(format!("{MANIFEST} has no object `files`")))?;
    let mut total = 0;
    cx.progress.begin("verify files", files.len() as u64);
    for (name, was) in files {
        let plain = std::path::Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        if !plain {
            return Err(bad(format!("`{name}` in {MANIFEST} is not the name of a file")));
        }
        cx.cancel.check()?;
        let (bytes, hash) = hash_file(&dir.join(name))?;
        if was["bytes"].as_u64() != Some(bytes) {
            return Err(bad(format!("`{name}` has {bytes} bytes; it had {} when it was written", was["bytes"])));
        }
        if was["blake3"].as_str() != Some(&hash) {
            return Err(bad(format!("`{name}` has changed since it was written: its hash differs")));
        }
        total += bytes;
        cx.progress.advance(1, name);
    }
    cx.progress.end();
    let checkpoint = Checkpoint::open(dir, &kinds.operators)?;
    let specs = checkpoint.manifest().map(|m| m.specs.clone()).unwrap_or_default();
    cx.progress.begin("verify matrices", specs.len() as u64);
    for (name, spec) in &specs {
        cx.cancel.check()?;
        let op = checkpoint.matrix(name, spec.shape)?;
        check_values(&*op, &cx.exec).map_err(|e| e.in_tensor(name))?;
        cx.progress.advance(1, name);
    }
    cx.progress.end();
    let vectors: Vec<_> = checkpoint.model().tensors().into_iter().filter(|t| t.shape.len() == 1).collect();
    for t in vectors.iter().filter(|t| tersor_core::DType::from_name(&t.dtype).is_some_and(|d| d.is_weight())) {
        checkpoint.vector(&t.name, t.shape[0])?;
    }
    Ok(Verified { files: files.len(), matrices: specs.len(), weight_bytes: total })
}
