//! Reports: one self-contained HTML page with tables and charts of results.

mod charts;
mod svg;

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};
use tersor_llm::MANIFEST;

use crate::compress::TIMING;
use crate::output::{FileKind, PAGE_MARK, check_file};
use crate::units::megabytes;
use charts::Run;
use svg::escape;

/// Name of the file with the rows of a comparison, which [`page`] reads.
pub const ROWS: &str = "rows.json";

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#1d2733}\
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.3em .6em;text-align:right;border-bottom:1px solid #dde3ea}\
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:#51606f}svg{width:100%;height:auto}\
.note{color:#51606f}text{font:12px system-ui,sans-serif;fill:#1d2733}.axis{fill:#51606f}";

/// Writes the HTML page for output directories of `compare`, `demo` and `compress` to the file `out`. Errors if a directory is none of these, or if
/// `out` exists and is no earlier page.
pub fn save(dirs: &[PathBuf], out: &Path) -> Result<()> {
    check_file(out, FileKind::Page, &[])?;
    write_atomic(out, page(dirs)?.as_bytes())
}

/// Returns the HTML page for output directories of `compare`, `demo` and `compress`. Errors if a directory is none of these.
pub fn page(dirs: &[PathBuf]) -> Result<String> {
    let (mut rows, mut runs, mut models) = (Vec::new(), Vec::new(), Vec::new());
    for dir in dirs {
        let limits = Limits::default();
        let compared = dir.join(ROWS);
        if compared.is_file() {
            let found = files::read(&compared, &limits)?;
            models.extend(found["model"].as_str().map(String::from));
            for row in found["rows"].as_array().into_iter().flatten() {
                let name = row["recipe"].as_str().unwrap_or_default();
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
            let what =
                format!("it has neither {ROWS} nor {MANIFEST}, so it is no output of `compare`, `demo` or `compress`");
            return Err(Error::format(dir.display().to_string(), what));
        }
    }
    models.dedup();
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

/// Returns the HTML table of all rows.
fn table(rows: &[Json]) -> String {
    let columns: [(&str, &str, usize, f64); 8] = [
        ("perplexity", "perplexity", 3, 1.0),
        ("KL, nats", "kl_mean", 5, 1.0),
        ("top-1, %", "top1_agreement", 2, 100.0),
        ("bits per weight", "bits_per_weight", 3, 1.0),
        ("body", "body_bits_per_weight", 3, 1.0),
        ("prefill, tokens/s", "prefill_tokens_per_s", 0, 1.0),
        ("decode, tokens/s", "decode_tokens_per_s", 1, 1.0),
        ("compress, s", "compress_seconds", 2, 1.0),
    ];
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
            out += &format!("<td>{value}</td>");
        }
        out += &format!("<td>{}</td></tr>", megabytes(r["weight_bytes"].as_u64().unwrap_or(0)));
    }
    out + "</tbody></table>"
}
