//! `tersor compare` and `tersor demo`: compress with several recipes and evaluate each, in separate processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};
use tersor::core::{Error, Progress, Result};
use tersor::formats::{json as files, write_atomic};

use crate::recipe::Recipe;
use crate::{args, megabytes, output, print_json, progress, report};

/// Recipes of the demonstration: rounding to nearest and GPTQ at several widths; the last is a TOML file.
const DEMO: [&str; 12] = [
    "bf16",
    "w8-rtn",
    "w8-gptq",
    "w4-g128-rtn",
    "w4-g128-gptq",
    "w4-g32-rtn",
    "w4-g32-gptq",
    "w3-g64-rtn",
    "w3-g64-gptq",
    "w2-g32-rtn",
    "w2-g32-gptq",
    "examples/recipes/mixed.toml",
];

/// Name of the file with the results of `compare`, which `report` reads.
pub const ROWS: &str = "rows.json";

pub fn demo(a: &args::Demo, json: bool, threads: usize) -> Result<()> {
    let root = shipped_root()?;
    let at = |p: &str| root.join(p);
    let recipes = DEMO.map(|r| if r.ends_with(".toml") { at(r).display().to_string() } else { r.to_string() });
    let a = args::Compare {
        model: at("examples/models/tiny-wiki"),
        recipes: recipes.to_vec(),
        calibration: args::Calibration {
            calib: Some(at("examples/data/wiki-calib.txt")),
            calib_windows: 128,
            ..Default::default()
        },
        text: at("examples/data/wiki-eval.txt"),
        ctx: None,
        windows: None,
        out: a.out.clone(),
    };
    run(&a, json, threads)
}

/// Returns the directory that has `examples/models`: the current one, or the source tree that this program was built from.
fn shipped_root() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found =
        [PathBuf::from("."), built].into_iter().find(|p| p.join("examples/models/tiny-wiki/config.json").is_file());
    found.ok_or_else(|| Error::Missing {
        name: "examples/models/tiny-wiki".into(),
        place: "the current directory; run the demo in Tersor's source tree".into(),
    })
}

pub fn run(a: &args::Compare, json: bool, threads: usize) -> Result<()> {
    let recipes: Vec<Recipe> = a.recipes.iter().map(|r| Recipe::find(r)).collect::<Result<_>>()?;
    let dir = match &a.out {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            dir.clone()
        }
        None => {
            let dir = tempfile::Builder::new().prefix("tersor-").tempdir();
            dir.map_err(|e| Error::io(std::env::temp_dir(), e))?.keep()
        }
    };
    let bars = progress::bars();
    bars.begin("compare", recipes.len() as u64 + 1);
    let mut rows = Vec::new();
    let mut first = measure(a, &a.model, false, threads)?;
    first["recipe"] = "original".into();
    first["compress_seconds"] = 0.0.into();
    let original_bytes = first["weight_bytes"].as_u64().unwrap_or(u64::MAX);
    first["larger_than_original"] = false.into();
    rows.push(first);
    bars.advance(1, "original");
    for (recipe, name) in recipes.iter().zip(&a.recipes) {
        let out = dir.join(&recipe.name);
        let done = compress(a, name, &out, threads)?;
        let mut row = measure(a, &out, true, threads)?;
        row["recipe"] = recipe.name.clone().into();
        row["compress_seconds"] = done["compress_seconds"].clone();
        row["compress_peak_rss_bytes"] = done["peak_rss_bytes"].clone();
        row["larger_than_original"] = (row["weight_bytes"].as_u64() > Some(original_bytes)).into();
        rows.push(row);
        bars.advance(1, &recipe.name);
    }
    bars.end();
    let model = a.model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let result = json!({"model": model, "rows": rows});
    write_atomic(&dir.join(ROWS), &files::to_bytes(&result))?;
    let page = dir.join("report.html");
    write_atomic(&page, report::page(std::slice::from_ref(&dir))?.as_bytes())?;
    if json {
        print_json(&json!({"rows": result["rows"], "out": dir, "report": page}));
    } else {
        crate::outln!("{}", table(&result["rows"]).trim_end());
        crate::outln!("report: {}", page.display());
    }
    Ok(())
}

/// Runs this program as a child process and returns the JSON object that it prints.
fn child(args: &[String]) -> Result<Json> {
    let program = std::env::current_exe().map_err(|e| Error::io("tersor", e))?;
    let out = Command::new(&program).args(args).stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let out = out.map_err(|e| Error::io(&program, e))?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let stderr = stderr.trim().trim_start_matches("error: ").to_string();
        return Err(Error::format(
            format!("tersor {}", args[0]),
            if stderr.is_empty() { out.status.to_string() } else { stderr },
        ));
    }
    eprint!("{stderr}");
    serde_json::from_slice(&out.stdout).map_err(|e| Error::format(format!("tersor {}", args[0]), e.to_string()))
}

fn compress(a: &args::Compare, recipe: &str, out: &Path, threads: usize) -> Result<Json> {
    let mut list = vec!["compress".to_string(), a.model.display().to_string()];
    list.extend(["--json", "--recipe", recipe, "--out"].map(String::from));
    list.push(out.display().to_string());
    list.extend(["--threads".to_string(), threads.to_string()]);
    if let Some(calib) = &a.calibration.calib {
        list.extend(["--calib".to_string(), calib.display().to_string()]);
        list.extend(["--calib-windows".to_string(), a.calibration.calib_windows.to_string()]);
        if let Some(ctx) = a.ctx {
            list.extend(["--ctx".to_string(), ctx.to_string()]);
        }
    }
    match child(&list) {
        // The directory is an older output of this comparison (from another version, for example): it is replaced.
        Err(_) if output::is_compressed(out) => {
            std::fs::remove_dir_all(out).map_err(|e| Error::io(out, e))?;
            child(&list)
        }
        other => other,
    }
}

fn measure(a: &args::Compare, model: &Path, against: bool, threads: usize) -> Result<Json> {
    let mut list = vec!["eval".to_string(), model.display().to_string(), "--json".to_string()];
    let mut option = |name: &str, value: String| list.extend([name.to_string(), value]);
    option("--text", a.text.display().to_string());
    option("--threads", threads.to_string());
    if let Some(ctx) = a.ctx {
        option("--ctx", ctx.to_string());
    }
    if let Some(n) = a.windows {
        option("--windows", n.to_string());
    }
    if against {
        option("--against", a.model.display().to_string());
    }
    child(&list)
}

/// Formats the rows as a text table.
fn table(rows: &Json) -> String {
    let mut out = format!(
        "{:<20} {:>10} {:>9} {:>8} {:>7} {:>7} {:>10} {:>9} {:>9} {:>9}\n",
        "recipe", "perplexity", "KL", "top-1 %", "bits", "body", "weights", "prefill/s", "decode/s", "compress"
    );
    for r in rows.as_array().into_iter().flatten() {
        let number = |key: &str, digits: usize, scale: f64| match r[key].as_f64() {
            Some(v) => format!("{:.digits$}", v * scale),
            None => "-".into(),
        };
        let mark = if r["larger_than_original"] == true { "*" } else { "" };
        out += &format!(
            "{:<20} {:>10} {:>9} {:>8} {:>7} {:>7} {:>10} {:>9} {:>9} {:>9}\n",
            format!("{}{mark}", r["recipe"].as_str().unwrap_or("?")),
            number("perplexity", 3, 1.0),
            number("kl_mean", 5, 1.0),
            number("top1_agreement", 2, 100.0),
            number("bits_per_weight", 3, 1.0),
            number("body_bits_per_weight", 3, 1.0),
            megabytes(r["weight_bytes"].as_u64().unwrap_or(0)),
            number("prefill_tokens_per_s", 0, 1.0),
            number("decode_tokens_per_s", 1, 1.0),
            format!("{} s", number("compress_seconds", 2, 1.0)),
        );
    }
    if rows.as_array().into_iter().flatten().any(|r| r["larger_than_original"] == true) {
        out += "* larger than the original\n";
    }
    out
}
