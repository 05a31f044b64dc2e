//! [`save`]: files of figures.

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};
use tersor_models::MANIFEST;

use crate::output::{FileKind, check_file};

/// Writes figures of the model at `model`, such as an [`Evaluation`](super::Evaluation) or a [`TaskEvaluation`](super::TaskEvaluation), to the JSON
/// file `out`. The file has the keys of `figures` when serialized to an object (any other value adds none), beside `model` (the last part of the
/// path) and `recipe` (the name that a compressed model records, `original` for another one), which keys of `figures` may replace. An earlier file of
/// figures, which is one with the keys `weight_bytes` and `peak_rss_bytes`, is replaced. [`report::page`](crate::report::page) takes such files as
/// rows.
///
/// Errors with [`Error::Format`] if `out` is `model`, a directory, or a file other than an earlier file of figures, or if the figures cannot be
/// serialized. Errors with [`Error::Io`] or [`Error::Format`] if the manifest of the model cannot be read, and with [`Error::Io`] if the file cannot
/// be written.
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
