//! [`compare`]: rows of figures for an original model and several recipes, in files and on an HTML page.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tersor_core::{Context, Error, ParamError, Result};
use tersor_formats::{json as files, write_atomic};

use crate::evaluate::Evaluation;
use crate::output::{FileKind, check_file};
use crate::recipe::Recipe;
use crate::report::{self, ROWS};

/// Name of the HTML page of a comparison.
const PAGE: &str = "report.html";

/// What [`compare`] asks its caller to measure for one row: the original model, or the model compressed by a recipe.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// The original model is to be evaluated.
    Original,
    /// The model is to be compressed by the recipe of this index in the list that [`compare`] got, counted from 0, into this directory, and the
    /// result is to be evaluated. The directory may have the result of an earlier comparison; [`compress`](crate::compress()) keeps it if its inputs
    /// are the same, and refuses it otherwise.
    Recipe(usize, &'a Path),
}

/// What the caller of [`compare`] measured for one row: the original model or a recipe.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The seconds that compression took; 0 for the original.
    pub compress_seconds: f64,
    /// The peak resident memory of compression in bytes; None for the original, or if it is not known.
    pub compress_peak_rss_bytes: Option<u64>,
    /// The figures on the evaluation text. For a recipe, the predictions are to be compared with those of the original.
    pub figures: Evaluation,
}

/// The row of the original or of a recipe in a [`Comparison`]. In JSON, the figures are keys of the row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The name of the recipe, or `original`.
    pub recipe: String,
    /// The seconds that compression took; 0 for the original.
    pub compress_seconds: f64,
    /// The peak resident memory of compression in bytes; None for the original, or if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress_peak_rss_bytes: Option<u64>,
    /// Whether the weight files have more bytes than those of the original.
    pub larger_than_original: bool,
    /// Whether the mean divergence is below the noise floor in the original's row ([`Evaluation::kl_noise_floor`]), so that it cannot be told from
    /// the rounding of activations to bf16. False if either is missing.
    #[serde(default)]
    pub kl_below_noise: bool,
    /// The figures on the evaluation text.
    #[serde(flatten)]
    pub figures: Evaluation,
}

/// The result of [`compare`]: the rows, and where they were written.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The row of the original, then the row of each recipe, in the order in which the recipes were given.
    pub rows: Vec<Row>,
    /// The directory with the folders of the recipes, the rows and the page, as it was given.
    pub out: PathBuf,
    /// The path of the HTML page, `report.html` in the directory.
    pub report: PathBuf,
}

/// Compares recipes on a model: calls `measure` for the original, then for each of `recipes`, and writes the rows (`rows.json`) and an HTML page
/// (`report.html`) to the directory `out`, which is made if it does not exist. `measure` compresses and evaluates, in this process or in another, so
/// that the peak memory is that of one recipe. It gets for each recipe the folder of `out` with the name of the recipe; the names should differ and
/// be plain file names. Of `model`, only the file name is used, as a title. Progress and cancellation are those of `cx`. Earlier rows and an earlier
/// page are replaced; nothing else is changed or deleted.
///
/// If `measure` stores the predictions of the original ([`Options::reference`](crate::evaluate::Options::reference)), they serve all recipes. If the
/// figures of the original have a noise floor, rows below it are marked.
///
/// Errors as `measure` does. Errors with [`Error::Format`] if a file at the place of the rows or of the page is no earlier one, or, after the rows
/// are written, if a recipe's name is no plain file name or its folder has an invalid manifest. Errors with [`Error::Param`] of the parameter `name`
/// if a recipe has the name of one of these files. Errors with [`Error::Io`] if `out` or a file cannot be written, and with [`Error::Cancelled`] if
/// the work is cancelled before a row.
pub fn compare(
    model: &Path,
    recipes: &[Recipe],
    out: &Path,
    cx: &Context,
    mut measure: impl FnMut(Subject<'_>) -> Result<Measured>,
) -> Result<Comparison> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let (rows_file, page) = (out.join(ROWS), out.join(PAGE));
    check_file(&rows_file, FileKind::Rows, &[])?;
    check_file(&page, FileKind::Page, &[])?;
    if let Some(recipe) = recipes.iter().find(|r| [ROWS, PAGE].contains(&r.name.as_str())) {
        let rule = "it is the name of a file of the comparison; rename the recipe";
        return Err(ParamError::new("name", format!("`{}`", recipe.name), rule).into());
    }
    cx.progress.begin("compare", recipes.len() as u64 + 1);
    let (mut original_bytes, mut noise_floor) = (u64::MAX, None);
    let mut rows = Vec::new();
    for index in 0..=recipes.len() {
        cx.cancel.check()?;
        let (name, found) = match index.checked_sub(1) {
            None => ("original", measure(Subject::Original)?),
            Some(i) => (recipes[i].name.as_str(), measure(Subject::Recipe(i, &out.join(&recipes[i].name)))?),
        };
        if index == 0 {
            original_bytes = found.figures.weight_bytes;
            noise_floor = found.figures.kl_noise_floor;
        }
        rows.push(Row {
            recipe: name.to_string(),
            compress_seconds: found.compress_seconds,
            compress_peak_rss_bytes: found.compress_peak_rss_bytes,
            larger_than_original: found.figures.weight_bytes > original_bytes,
            kl_below_noise: found.figures.below_noise(noise_floor),
            figures: found.figures,
        });
        cx.progress.advance(1, name);
    }
    cx.progress.end();
    let model = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    write_atomic(&rows_file, &files::to_bytes(&json!({"model": model, "rows": rows})))?;
    report::save(&[out.to_path_buf()], &page)?;
    Ok(Comparison { rows, out: out.to_path_buf(), report: page })
}
