//! Files of figures.

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};
use tersor_models::MANIFEST;

use crate::output::{FileKind, check_file};

/// Writes the figures of an evaluation of a model to the JSON file `out`, with the names `model` (the file or directory) and `recipe` (as a compressed
/// model records it; `original` for another one). [`report`](crate::report) takes such files as rows. Errors if `out` exists and is no earlier file of
/// figures, or cannot be written.
pub fn save(out: &Path, model: &Path, figures: &impl Serialize) -> Result<()> {
    check_file(out, FileKind::Figures, &[model])?;
    let name = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut all = json!({"model": name, "recipe": recipe(model)?});
    let figures = serde_json::to_value(figures).map_err(|e| Error::format("figures", e.to_string()))?;
    for (key, value) in figures.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    write_atomic(out, &files::to_bytes(&all))
}

/// Returns the name of the recipe of a compressed model, `original` for another one.
fn recipe(model: &Path) -> Result<String> {
    let manifest = model.join(MANIFEST);
    if !manifest.is_file() {
        return Ok("original".into());
    }
    let manifest = files::read(&manifest, &Limits::default())?;
    Ok(manifest["recipe"]["name"].as_str().unwrap_or("?").to_string())
}
