//! `tersor compare` and `tersor demo`: compress with several recipes and evaluate each, in separate processes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value as Json;
use tersor::core::{Context, Error, Progress, Result};
use tersor::pipeline::evaluate::Evaluation;
use tersor::pipeline::{Measured, Recipe, Row, Subject, compare, megabytes};

use crate::progress::{Bars, bars};
use crate::{args, print_json};

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

/// Largest size in bytes of the original's logits on disk while a comparison runs.
const MAX_LOGITS: u64 = 8 << 30;

pub fn demo(a: &args::Demo, json: bool, threads: usize) -> Result<()> {
    let root = shipped_root()?;
    let at = |p: &str| root.join(p);
    let recipes = DEMO.map(|r| if r.ends_with(".toml") { at(r).display().to_string() } else { r.to_string() });
    let a = args::Compare {
        model: at("examples/models/tiny-wiki"),
        recipes: recipes.to_vec(),
        calibration: args::Calibration {
            calib: Some(at("examples/data/wiki-calib.txt")),
            calib_windows: Some(128),
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
    let find = |name: &String| Recipe::find(name, &tersor::kinds().stages);
    let recipes: Vec<Recipe> = a.recipes.iter().map(find).collect::<Result<_>>()?;
    let dir = match &a.out {
        Some(dir) => dir.clone(),
        None => {
            let dir = tempfile::Builder::new().prefix("tersor-").tempdir();
            dir.map_err(|e| Error::io(std::env::temp_dir(), e))?.keep()
        }
    };
    let bars = bars();
    let cx = Context::new().with_progress(bars.clone());
    crate::cancel_on_signals(&cx.cancel);
    // The original runs once: its predictions are in a file until the comparison ends.
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let scratch = tempfile::Builder::new().prefix(".tersor-").tempdir_in(&dir).map_err(|e| Error::io(&dir, e))?;
    let reference = scratch.path().join("reference.safetensors");
    // Each in a process of its own, so that peak memory is that of one recipe.
    let measure = |subject: Subject<'_>| {
        let name = if let Subject::Recipe(i, _) = subject { &recipes[i].name } else { "original" };
        let row = Child { row: name, bars: &bars, threads };
        let Subject::Recipe(i, out) = subject else {
            let figures = row.evaluate(a, &a.model, false, &reference)?;
            return Ok(Measured { compress_seconds: 0.0, compress_peak_rss_bytes: None, figures });
        };
        let done = row.compress(a, &a.recipes[i], out)?;
        Ok(Measured {
            compress_seconds: done["compress_seconds"].as_f64().unwrap_or(0.0),
            compress_peak_rss_bytes: done["peak_rss_bytes"].as_u64(),
            figures: row.evaluate(a, out, true, &reference)?,
        })
    };
    let found = compare(&a.model, &recipes, &dir, &cx, measure);
    // A signal stops the child process too, whose error is then that of the interruption.
    cx.cancel.check()?;
    let found = found?;
    if json {
        return print_json(&found);
    }
    outln!("{}", table(&found.rows).trim_end());
    outln!("report: {}", found.report.display());
    Ok(())
}

/// Child processes for a row of the comparison.
struct Child<'a> {
    /// Name of the recipe, or `original`.
    row: &'a str,
    bars: &'a Bars,
    threads: usize,
}

impl Child<'_> {
    /// Runs this program as a child process and returns the JSON object that it prints. Its warnings and lines of progress are shown as they come.
    fn run(&self, args: &[String]) -> Result<Json> {
        let program = std::env::current_exe().map_err(|e| Error::io("tersor", e))?;
        let io = |e| Error::io(&program, e);
        let mut command = Command::new(&program);
        command.args(args).arg("--threads").arg(self.threads.to_string());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
        let stderr = child.stderr.take();
        let (out, said) = std::thread::scope(|scope| {
            let relay = scope.spawn(|| stderr.map(|pipe| self.relay(BufReader::new(pipe))).unwrap_or_default());
            (child.wait_with_output(), relay.join().unwrap_or_default())
        });
        let out = out.map_err(io)?;
        if !out.status.success() {
            let what = if said.is_empty() { out.status.to_string() } else { said };
            return Err(Error::format(format!("tersor {}", args[0]), what));
        }
        serde_json::from_slice(&out.stdout).map_err(|e| Error::format(format!("tersor {}", args[0]), e.to_string()))
    }

    /// Shows the warnings and lines of progress that a child process prints. Returns its error message.
    fn relay(&self, stderr: impl BufRead) -> String {
        let mut error: Option<String> = None;
        for line in stderr.split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line);
            if let Some(error) = &mut error {
                *error += &format!("\n{line}");
            } else if let Some(rest) = line.strip_prefix("error: ") {
                error = Some(rest.to_string());
            } else if let Some(warning) = line.strip_prefix("warning: ") {
                self.bars.warn(warning);
            } else {
                self.bars.line(&format!("{}: {line}", self.row));
            }
        }
        error.unwrap_or_default().trim_end().to_string()
    }

    fn compress(&self, a: &args::Compare, recipe: &str, out: &Path) -> Result<Json> {
        let mut list = vec!["compress".to_string(), a.model.display().to_string(), "--json".to_string()];
        let mut option = |name: &str, value: String| list.extend([name.to_string(), value]);
        option("--recipe", recipe.to_string());
        option("--out", out.display().to_string());
        let data = &a.calibration;
        if let Some(calib) = &data.calib {
            option("--calib", calib.display().to_string());
            if let Some(ctx) = a.ctx {
                option("--ctx", ctx.to_string());
            }
        }
        if let Some(n) = data.calib_windows {
            option("--calib-windows", n.to_string());
        }
        for file in &data.stats {
            option("--stats", file.display().to_string());
        }
        if let Some(bytes) = data.max_memory {
            option("--max-memory", bytes.to_string());
        }
        self.run(&list)
    }

    /// Evaluates the original, whose predictions are written to the file `reference`, or with `against` a model that is compared with it. Logits are
    /// written with the predictions if they leave half of the space on the disk free.
    fn evaluate(&self, a: &args::Compare, model: &Path, against: bool, reference: &Path) -> Result<Evaluation> {
        let mut list = vec!["eval".to_string(), model.display().to_string(), "--json".to_string()];
        let mut option = |name: &str, value: String| list.extend([name.to_string(), value]);
        option("--text", a.text.display().to_string());
        option("--reference", reference.display().to_string());
        if let Some(ctx) = a.ctx {
            option("--ctx", ctx.to_string());
        }
        if let Some(n) = a.windows {
            option("--windows", n.to_string());
        }
        if against {
            option("--against", a.model.display().to_string());
        } else {
            let free = available_space(reference.parent().unwrap_or(reference));
            option("--reference-logits", MAX_LOGITS.min(free / 2).to_string());
            list.push("--noise-floor".into());
        }
        serde_json::from_value(self.run(&list)?).map_err(|e| Error::format("tersor eval", e.to_string()))
    }
}

/// Returns the free bytes on the disk of a directory; 0 if they are not known.
#[cfg(unix)]
fn available_space(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Returns 0, as the free bytes on the disk of a directory are not known.
#[cfg(not(unix))]
fn available_space(_: &Path) -> u64 {
    0
}

/// Formats the rows as a text table.
fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<20} {:>10} {:>9} {:>8} {:>7} {:>7} {:>10} {:>9} {:>9} {:>9}\n",
        "recipe", "perplexity", "KL", "top-1 %", "bits", "body", "weights", "prefill/s", "decode/s", "compress"
    );
    for r in rows {
        let number = |value: Option<f64>, digits: usize| match value.filter(|v| v.is_finite()) {
            Some(v) => format!("{v:.digits$}"),
            None => "-".into(),
        };
        let (f, mark) = (&r.figures, if r.larger_than_original { "*" } else { "" });
        out += &format!(
            "{:<20} {:>10} {:>9} {:>8} {:>7} {:>7} {:>10} {:>9} {:>9} {:>9}\n",
            format!("{}{mark}", r.recipe),
            number(Some(f.perplexity), 3),
            number(f.kl_mean, 5) + if r.kl_below_noise { "~" } else { "" },
            number(f.top1_agreement.map(|v| v * 100.0), 2),
            number(Some(f.bits_per_weight), 3),
            number(Some(f.body_bits_per_weight), 3),
            megabytes(f.weight_bytes),
            number(f.prefill_tokens_per_s, 0),
            number(f.decode_tokens_per_s, 1),
            format!("{} s", number(Some(r.compress_seconds), 2)),
        );
    }
    if rows.iter().any(|r| r.larger_than_original) {
        out += "* larger than the original\n";
    }
    if let Some(floor) = rows.first().and_then(|r| r.figures.kl_noise_floor) {
        if rows.iter().any(|r| r.kl_below_noise) {
            out += "~ below the noise of bf16\n";
        }
        out += &format!("rounding activations to bf16 alone makes a KL of {floor:.6}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_child_are_shown_and_its_error_is_returned() {
        let child = Child { row: "w4", bars: &bars(), threads: 1 };
        let said = "warning: w\ncompress: 1 of 2 done\nerror: no such file\nsecond line\n";
        assert_eq!(child.relay(said.as_bytes()), "no such file\nsecond line");
        assert_eq!(child.relay(&b""[..]), "");
    }
}
