//! Reports: one self-contained HTML page with a table and charts of results.

mod charts;
mod svg;

use std::path::{Component, Path, PathBuf};

use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};
use tersor_models::MANIFEST;

use crate::compress::TIMING;
use crate::output::{FileKind, PAGE_MARK, check_file};
use crate::units::megabytes;
use charts::Run;
use svg::escape;

/// The name of the JSON file, in the output directory of a comparison, that has its rows. [`page`] reads it.
pub const ROWS: &str = "rows.json";

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#1d2733}\
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.3em .6em;text-align:right;border-bottom:1px solid #dde3ea}\
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:#51606f}svg{width:100%;height:auto}\
.note{color:#51606f}text{font:12px system-ui,sans-serif;fill:#1d2733}.axis{fill:#51606f}";

/// Writes the HTML page of the results `dirs`, as [`page`] makes it, to the file `out`. An earlier page is replaced.
///
/// # Errors
///
/// Those of [`page`]. An [`Error::Format`] if `out` is one of `dirs`, a directory, or a file that is no earlier page. An [`Error::Io`] if it cannot
/// be written.
pub fn save(dirs: &[PathBuf], out: &Path) -> Result<()> {
    check_file(out, FileKind::Page, &dirs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    write_atomic(out, page(dirs)?.as_bytes())
}

/// Returns an HTML page with a table of figures and with charts (size and perplexity, errors by layer, time and memory; those for which there is no
/// data are left out). `dirs` are the paths of results: output directories of the commands `compare` and `demo`, which have a file [`ROWS`] and give
/// several rows; output directories of [`compress`](crate::compress()), each of which is a row; and files of figures that
/// [`evaluate::save`](crate::evaluate::save) wrote, each of which is a row. If an earlier row has the recipe of a file of figures, the name of the
/// model is put behind the recipe.
///
/// # Errors
///
/// An [`Error::Format`] with the path if one of `dirs` is none of these, or one of its JSON files is invalid. An [`Error::Io`] if a file cannot be
/// read.
pub fn page(dirs: &[PathBuf]) -> Result<String> {
    let (mut rows, mut runs, mut models) = (Vec::new(), Vec::new(), Vec::new());
    for dir in dirs {
        let limits = Limits::default();
        let compared = dir.join(ROWS);
        if dir.is_file() {
            rows.push(figures(dir, &limits, &rows, &mut models)?);
        } else if compared.is_file() {
            let found = files::read(&compared, &limits)?;
            models.extend(found["model"].as_str().map(String::from));
            for row in found["rows"].as_array().into_iter().flatten() {
                let name = row["recipe"].as_str().unwrap_or_default();
                if Path::new(name).components().any(|c| !matches!(c, Component::Normal(_))) {
                    let what = format!("its row `{name}` is not the name of a recipe");
                    return Err(Error::format(compared.display().to_string(), what));
                }
                let manifest = dir.join(name).join(MANIFEST);
                if manifest.is_file() {
                    runs.push(Run { name: name.to_string(), manifest: files::read(&manifest, &limits)? });
                }
                rows.push(row.clone());
            }
        } else if dir.join(MANIFEST).is_file() {
            let (row, run) = compressed(dir, &limits)?;
            rows.push(row);
            runs.push(run);
        } else {
            let what = format!(
                "it has neither {ROWS} nor {MANIFEST}, so it is no output of `compare`, `demo` or `compress`, nor a file of `eval --out`"
            );
            return Err(Error::format(dir.display().to_string(), what));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    models.retain(|m: &String| seen.insert(m.clone()));
    let title =
        if models.is_empty() { "Compressed models".into() } else { format!("Recipes on {}", models.join(", ")) };
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
        {PAGE_MARK}<title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1><p class=\"note\">Tersor {1}</p>",
        escape(&title),
        env!("CARGO_PKG_VERSION")
    );
    out += &table(&rows);
    let mut section = |heading: &str, note: &str, chart: Option<String>| {
        if let Some(chart) = chart {
            out += &format!("<h2>{heading}</h2><p class=\"note\">{note}</p>{chart}");
        }
    };
    section(
        "Size against perplexity",
        "Lower and further left is better. The dashed line is the original.",
        charts::size_against_perplexity(&rows),
    );
    section(
        "Weight error by layer and kind",
        "Relative error of each matrix, the root of Σ(w−ŵ)² over Σw², on a logarithmic axis.",
        charts::error_by_layer(&runs.iter().map(charts::of_matrices).collect::<Vec<_>>(), &charts::MATRICES),
    );
    section(
        "Activation error by layer and site",
        "Relative error ‖x−x₀‖ over ‖x₀‖ of the inputs of each site on the evaluation text. Calibration reduces this error; a calibrated \
        matrix may have a larger weight error than a rounded one and yet a smaller activation error.",
        charts::error_by_layer(&rows.iter().filter_map(charts::of_sites).collect::<Vec<_>>(), &charts::SITES),
    );
    section(
        "Time and memory",
        "Seconds to compress, and peak resident memory while compressing.",
        charts::time_and_memory(&rows),
    );
    out += "</body></html>\n";
    Ok(out)
}

/// Returns the row and the run of a compressed model that has not been evaluated.
fn compressed(dir: &Path, limits: &Limits) -> Result<(Json, Run)> {
    let manifest = files::read(&dir.join(MANIFEST), limits)?;
    let name = manifest["recipe"]["name"].as_str().unwrap_or("?").to_string();
    let bytes: u64 = manifest["files"].as_object().into_iter().flatten().filter_map(|(_, f)| f["bytes"].as_u64()).sum();
    let timing = files::read(&dir.join(TIMING), limits).unwrap_or_default();
    let row = json!({"recipe": name, "bits_per_weight": manifest["bits_per_weight"], "body_bits_per_weight": manifest["body_bits_per_weight"],
        "weight_bytes": bytes, "compress_seconds": timing["compress_seconds"]});
    Ok((row, Run { name, manifest }))
}

/// Returns the row of a file of figures. Errors if it is none.
fn figures(file: &Path, limits: &Limits, rows: &[Json], models: &mut Vec<String>) -> Result<Json> {
    if !FileKind::Figures.matches(file) {
        let what = "it is no file of `eval --out`; name such a file, or an output directory of `compare`, `demo` or `compress`";
        return Err(Error::format(file.display().to_string(), what));
    }
    let mut row = files::read(file, limits)?;
    let model = row["model"].as_str().unwrap_or("?").to_string();
    let recipe = row["recipe"].as_str().unwrap_or("?").to_string();
    if rows.iter().any(|r| r["recipe"] == recipe.as_str()) {
        row["recipe"] = format!("{recipe} ({model})").into();
    }
    if recipe == "original" {
        models.push(model);
    }
    Ok(row)
}

/// Returns the HTML table of all rows. Columns without any value are left out, except the first ones and those of size.
fn table(rows: &[Json]) -> String {
    let columns: [(&str, &str, usize, f64); 13] = [
        ("perplexity", "perplexity", 3, 1.0),
        ("KL, nats", "kl_mean", 5, 1.0),
        ("KL, median", "kl_median", 5, 1.0),
        ("KL, 90 %", "kl_p90", 5, 1.0),
        ("top-1, %", "top1_agreement", 2, 100.0),
        ("answers, %", "task_accuracy", 1, 100.0),
        ("cosine, mean", "cosine_mean", 5, 1.0),
        ("cosine, minimum", "cosine_min", 5, 1.0),
        ("bits per weight", "bits_per_weight", 3, 1.0),
        ("body", "body_bits_per_weight", 3, 1.0),
        ("prefill, tokens/s", "prefill_tokens_per_s", 0, 1.0),
        ("decode, tokens/s", "decode_tokens_per_s", 1, 1.0),
        ("compress, s", "compress_seconds", 2, 1.0),
    ];
    const OPTIONAL: [&str; 5] = ["kl_median", "kl_p90", "task_accuracy", "cosine_mean", "cosine_min"];
    let shown = |key: &str| !OPTIONAL.contains(&key) || rows.iter().any(|r| r[key].is_number());
    let columns: Vec<_> = columns.into_iter().filter(|c| shown(c.1)).collect();
    let mut out = "<table><thead><tr><th>recipe</th>".to_string();
    for c in &columns {
        out += &format!("<th>{}</th>", c.0);
    }
    out += "<th>weights</th></tr></thead><tbody>";
    for r in rows {
        let mark = if r["larger_than_original"] == true { " (larger than the original)" } else { "" };
        out += &format!("<tr><td>{}{mark}</td>", escape(r["recipe"].as_str().unwrap_or("?")));
        for (_, key, digits, scale) in &columns {
            let value = r[*key].as_f64().map_or("–".into(), |v| format!("{:.*}", digits, v * scale));
            let noise = if *key == "kl_mean" && below_noise(r) { "<br>below the noise of bf16" } else { "" };
            out += &format!("<td>{value}{noise}</td>");
        }
        out += &format!("<td>{}</td></tr>", megabytes(r["weight_bytes"].as_u64().unwrap_or(0)));
    }
    out += "</tbody></table>";
    for floor in rows.iter().filter_map(|r| Some((r["recipe"].as_str()?, r["kl_noise_floor"].as_f64()?))) {
        out += &format!(
            "<p class=\"note\">Rounding activations to bf16 alone makes a KL of {:.6} nats ({}).</p>",
            floor.1,
            escape(floor.0)
        );
    }
    out
}

/// Returns whether the divergence of a row is marked as below the noise floor, or is below its own.
fn below_noise(row: &Json) -> bool {
    let below = row["kl_mean"].as_f64().zip(row["kl_noise_floor"].as_f64()).is_some_and(|(kl, floor)| kl < floor);
    below || row["kl_below_noise"] == true
}
