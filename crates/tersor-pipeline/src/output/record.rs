//! Records of files in progress, with length and hash.

use std::path::Path;

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};

use super::hash_file;

/// Writes the record of the file `path` beside it: the JSON object `about`, to which the file's length (`bytes`) and hash (`blake3`) are added. The
/// name of the record is that of the file with its extension replaced by `json`, so that two files may not differ in their extensions alone.
///
/// # Errors
///
/// An [`Error::Io`] if the file cannot be read or the record cannot be written.
pub(crate) fn record_file(path: &Path, mut about: Json) -> Result<()> {
    let (bytes, hash) = hash_file(path)?;
    (about["bytes"], about["blake3"]) = (bytes.into(), hash.into());
    write_atomic(&path.with_extension("json"), &files::to_bytes(&about))
}

/// Returns the record of the file `path` that [`record_file`] wrote; None if there is no record.
///
/// # Errors
///
/// An [`Error::Format`] if the file is not the one that was recorded: its length or hash differs. An [`Error::Io`] if it cannot be read.
pub(crate) fn recorded(path: &Path) -> Result<Option<Json>> {
    let record = path.with_extension("json");
    if !record.is_file() {
        return Ok(None);
    }
    let json = files::read(&record, &Limits::default())?;
    let (bytes, hash) = hash_file(path)?;
    if json["bytes"].as_u64() != Some(bytes) || json["blake3"].as_str() != Some(&hash) {
        let what = format!("it is not what was written there; delete it and {}", record.display());
        return Err(Error::format(path.display().to_string(), what));
    }
    Ok(Some(json))
}
