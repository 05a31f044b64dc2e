//! Comparisons: rows of figures for an original model and several recipes, in files and on an HTML page.

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

/// What is to be measured for a row of a comparison.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// The original model.
    Original,
    /// A recipe: its index in the list, and the directory that the model is to be compressed into. The directory may have the result of an earlier
    /// comparison, which [`compress`](crate::compress::compress) finds to be of the same inputs, or refuses.
    Recipe(usize, &'a Path),
}

/// What was measured for a row of a comparison.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Seconds that compression took; 0 for the original.
    pub compress_seconds: f64,
    /// Peak resident memory of compression in bytes; none for the original, or if it is unknown.
    pub compress_peak_rss_bytes: Option<u64>,
    /// The figures on the evaluation text, those of a recipe compared with the original.
    pub figures: Evaluation,
}

/// A row of a comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Name of the recipe, or `original`.
    pub recipe: String,
    /// Seconds that compression took; 0 for the original.
    pub compress_seconds: f64,
    /// Peak resident memory of compression in bytes; none for the original, or if it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress_peak_rss_bytes: Option<u64>,
    /// Whether the weight files are larger than those of the original.
    pub larger_than_original: bool,
    /// Whether the divergence is below the noise floor of the original's row, so that it cannot be told from the rounding of activations to bf16. False
    /// if that row has none.
    #[serde(default)]
    pub kl_below_noise: bool,
    /// The figures on the evaluation text.
    #[serde(flatten)]
    pub figures: Evaluation,
}

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The rows: the original, then each recipe.
    pub rows: Vec<Row>,
    /// The directory with the models, the rows and the page.
    pub out: PathBuf,
    /// The HTML page.
    pub report: PathBuf,
}

/// Compares recipes on a model: calls `measure` for the original, then for each recipe, and writes the rows and an HTML page to the directory `out`,
/// where each recipe has a folder of its name. `measure` compresses and evaluates: in this process, or in another one so that peak memory is that of
/// one recipe. The original is measured first: with [`Options::reference`](crate::evaluate::Options::reference), its text passes through it only once,
/// and with a noise floor in its figures, rows below the floor are marked. Nothing is deleted. Errors if `measure` does, if a file of the comparison is there and is none of an earlier one or cannot be written, or if the work is cancelled.
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
