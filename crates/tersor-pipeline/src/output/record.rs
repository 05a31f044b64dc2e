//! Records of files in progress, with length and hash.

use std::path::Path;

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};

use super::hash_file;

/// Writes the record of a file beside it, under its name with `.json`: `about`, the file's length and its hash.
pub(crate) fn record_file(path: &Path, mut about: Json) -> Result<()> {
    let (bytes, hash) = hash_file(path)?;
    (about["bytes"], about["blake3"]) = (bytes.into(), hash.into());
    write_atomic(&path.with_extension("json"), &files::to_bytes(&about))
}

/// Returns the record of a file that [`record_file`] wrote; none if there is none. Errors if the file has changed since.
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
