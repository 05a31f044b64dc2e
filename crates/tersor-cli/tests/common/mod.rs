//! Runs the command on small models.
#![allow(dead_code, unused_imports)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
#[allow(unused_imports)]
pub use tiny::Tiny;

#[path = "../../../tersor-pipeline/tests/common/tiny.rs"]
mod tiny;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs `tersor` with these arguments.
pub fn tersor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tersor")).args(args).output().unwrap()
}

/// Runs `tersor` with `--json`, asserts success, and returns the object that it prints.
pub fn tersor_json(args: &[&str]) -> Json {
    let mut args = args.to_vec();
    args.push("--json");
    let out = tersor(&args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The model included in the repository.
pub fn shipped() -> PathBuf {
    root().join("examples/models/tiny-wiki")
}

/// A text of the repository.
pub fn data(name: &str) -> PathBuf {
    root().join("examples/data").join(name)
}

/// Arguments of `compress`, calibrated on `windows` windows of `ctx` tokens.
pub fn compress(model: &Path, recipe: &str, out: &Path, [windows, ctx]: [&str; 2]) -> Vec<String> {
    let text = data("wiki-calib.txt");
    let list = ["compress", s(model), "--recipe", recipe, "--out", s(out), "--calib", s(&text)];
    list.iter().chain(&["--calib-windows", windows, "--ctx", ctx]).map(|a| a.to_string()).collect()
}

/// Arguments followed by more arguments.
pub fn with<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// [`tersor_json`] of arguments followed by more arguments.
pub fn run(args: &[String], more: &[&str]) -> Json {
    tersor_json(&with(args, more))
}

/// The output of `eval` for a model compared with another, on 8 windows of 64 tokens.
pub fn eval(model: &Path, against: &Path, more: &[&str]) -> Json {
    let text = data("wiki-eval.txt");
    let args =
        ["eval", s(model), "--text", s(&text), "--ctx", "64", "--windows", "8", "--no-speed", "--against", s(against)];
    tersor_json(&[&args[..], more].concat())
}

/// The mean divergence in the output of `eval`.
pub fn kl(found: &Json) -> f64 {
    found["kl_mean"].as_f64().unwrap()
}

/// Runs `tersor`, asserts this exit code and no output on stdout, and returns the output on stderr.
pub fn fails(code: i32, args: &[&str]) -> String {
    let out = tersor(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert!(out.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&out.stdout));
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Every file under a directory, by relative name.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            out.extend(files(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            out.insert(name, std::fs::read(&path).unwrap());
        }
    }
    out
}

/// All files of a compressed directory except the timings.
pub fn result(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = files(dir);
    assert!(all.remove("timing.json").is_some());
    all
}

/// A path as an argument.
pub fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a recipe file: `head` has lists beside the rules; each rule is a TOML pattern, or list of them, and its stages.
pub fn recipe(name: &str, head: &str, rules: &[(&str, &str)]) -> String {
    let rules = rules.iter().map(|(pattern, stages)| format!("    {{ match = {pattern}, stages = [{stages}] }},\n"));
    format!("version = 1\nname = \"{name}\"\n{head}\nrules = [\n{}]\n", rules.collect::<String>())
}

/// The pattern of every matrix.
pub const ALL: &str = "\"*\"";
/// The patterns of embedding and head.
pub const ENDS: &str = "[\"@embedding\", \"@head\"]";
/// The stage of 8 bits a row.
pub const RTN8: &str = "{ kind = \"rtn\", bits = 8 }";
