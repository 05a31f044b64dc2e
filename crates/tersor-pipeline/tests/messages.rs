//! What calls tell: warnings, errors of files of other kinds, recorded windows, order, progress.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value as Json;
use tersor_core::{Context, Error, Limits, MemTensors, Progress, Result, TensorSink, TensorSource};
use tersor_formats::{Model, safetensors};
use tersor_pipeline::export::Format;
use tersor_pipeline::plan::{Data, Options, Plan};
use tersor_pipeline::{Pipeline, Planned, Recipe, Text, export, verify};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn model() -> PathBuf {
    examples().join("models/tiny-wiki")
}

/// A listener that keeps warnings and stages with their totals and steps.
#[derive(Default)]
struct Log {
    warnings: Mutex<Vec<String>>,
    stages: Mutex<Vec<(String, u64, u64)>>,
}

impl Progress for Log {
    fn begin(&self, stage: &str, total: u64) {
        self.stages.lock().unwrap().push((stage.into(), total, 0));
    }
    fn advance(&self, steps: u64, _: &str) {
        // Files that get their names are told outside of stages, with no step.
        if let Some(stage) = self.stages.lock().unwrap().last_mut() {
            stage.2 += steps;
        }
    }
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.into());
    }
}

impl Log {
    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap())
    }
}

fn listened() -> (Arc<Log>, Context) {
    let log = Arc::new(Log::default());
    (log.clone(), Context::new().with_progress(log))
}

fn pipeline(recipe: &str) -> Pipeline<'static> {
    Pipeline::open(model(), recipe, tersor::kinds()).unwrap()
}

/// A text of this many words.
fn words(n: usize) -> Text {
    let text = std::fs::read_to_string(examples().join("data/wiki-calib.txt")).unwrap();
    Text::new("short", text.split_inclusive(' ').take(n).collect::<String>())
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn rules_of_a_file_that_match_no_matrix_are_warned_of() {
    let kinds = tersor::kinds();
    let model = Model::open(&model(), &Limits::default()).unwrap();
    let warnings = |recipe: Recipe| {
        let (log, cx) = listened();
        Plan::new(&model, recipe, &Options::default(), kinds, &cx).unwrap();
        log.warnings()
    };
    let file = |rules: &str| {
        let text = format!("name = \"mine\"\nrules = [\n{rules}\n]\n");
        Recipe::from_toml(&text, "mine.toml", &kinds.stages).unwrap()
    };
    const RTN: &str = "stages = [{ kind = \"rtn\" }]";
    // The norm is no matrix; of several patterns one suffices; a rule behind another may match as well.
    let said = warnings(file(&format!(
        "{{ match = [\"*.pooler.*\", \"@head\", \"@down\"], {RTN} }},\n{{ match = [\"*norm.weight\", \"*.q_prj.*\"], {RTN} }},\n{{ match = \"*\", {RTN} }},\n{{ match = \"@up\", {RTN} }}"
    )));
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["`mine`", "line 4", "rule 2", "`*norm.weight`, `*.q_prj.*`"] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    let said = warnings(file(&format!("{{ match = \"model.layer.*\", {RTN} }}")));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("nothing is compressed") && said[0].contains(" kB") | said[0].contains(" MB"), "{said:?}");
    assert!(warnings(file("")).len() == 1);
    // A name stands for rules that many models have no matrix for, and so does what a plan file has.
    let named = Recipe::find("w4a4kv4-resq-rtn", &kinds.stages).unwrap();
    assert_eq!(warnings(named.clone()), [""; 0]);
    assert_eq!(warnings(Recipe::find("w4-g32-rtn", &kinds.stages).unwrap()), [""; 0]);
    let saved = Recipe::from_json(
        &file(&format!("{{ match = \"x\", {RTN} }},\n{{ match = \"*\", {RTN} }}")).to_json(),
        "plan",
        &kinds.stages,
    );
    assert_eq!(warnings(saved.unwrap()), [""; 0]);
}

#[test]
fn the_windows_that_are_used_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (log, cx) = listened();
    let plan = |windows: usize, cx: &Context| -> Planned<'static> {
        pipeline("w4-g32-gptq").data(words(400)).windows(windows).ctx(64).plan(cx).unwrap()
    };
    let few = plan(300, &cx);
    let n = few.plan.windows[0];
    assert!((2..60).contains(&n), "{n}");
    let said = log.warnings();
    assert!(said.len() == 1 && said[0].contains(&format!("{n} windows of 64")) && said[0].contains("300"), "{said:?}");
    assert!(said[0].contains("--calib-windows"), "{said:?}");
    assert_eq!(few.plan.inputs["calibration windows"], format!("{n} of 64"));
    // The same windows are the same work, whatever was requested.
    let exact = plan(n, &cx);
    assert_eq!((few.plan.fingerprint(), log.warnings().len()), (exact.plan.fingerprint(), 0));
    let out = dir.path().join("out");
    few.compress(&out, &cx).unwrap();
    assert_eq!(json(&out.join("tersor.json"))["inputs"]["calibration windows"], format!("{n} of 64"));
    assert!(exact.compress(&out, &cx).unwrap().finished_before);
    // A text is cut once for the plans that share it.
    let text = words(400);
    let again = || pipeline("w4-g32-gptq").data(text.clone()).windows(300).ctx(64).plan(&cx).unwrap();
    log.warnings();
    again();
    again();
    assert_eq!(log.warnings().len(), 1);

    let statistics = dir.path().join("statistics");
    let gathered = few.gather([1, 1], &statistics, &cx).unwrap();
    assert_eq!(gathered.windows, n);
    let file = safetensors::File::open(&statistics, &Limits::default()).unwrap();
    let mut about = vec![0u8; file.info("about").unwrap().shape[0]];
    file.read_at("about", 0, &mut about).unwrap();
    let about: Json = serde_json::from_slice(&about).unwrap();
    assert_eq!((&about["windows"], &about["ctx"], about["asked"].is_null()), (&n.into(), &64.into(), true));
    let from_file = pipeline("w4-g32-gptq").statistics(vec![statistics]).plan(&cx).unwrap().plan;
    assert_eq!((from_file.windows, &from_file.inputs["calibration windows"]), ([n, 64], &format!("{n} of 64")));
}

#[test]
fn files_of_other_kinds_are_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let weights = model().join("model.safetensors");
    let gguf = write("model.gguf", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let zip = write("stats.pt", b"PK\x03\x04\0\0archive");
    let refused = |data: Data| -> Error {
        let options = Options { data, ..Options::default() };
        let recipe = Recipe::find("w4-g32-gptq", &tersor::kinds().stages).unwrap();
        let model = Model::open(&model(), &Limits::default()).unwrap();
        Plan::new(&model, recipe, &options, tersor::kinds(), &Context::new()).err().unwrap()
    };
    let expect = |error: Error, file: &Path, parts: &[&str]| {
        let said = error.to_string();
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(said.contains(&*name) && parts.iter().all(|p| said.contains(p)), "{said}");
    };
    for (file, what) in [
        (&weights, "it is a safetensors file"),
        (&gguf, "it is a GGUF file"),
        (&zip, "it is a zip archive"),
        (&write("empty.txt", b""), "it is an empty file"),
        (&write("picture", b"\x89PNG\r\n\x1a\n"), "it is a PNG image"),
        (&dir.path().to_path_buf(), "it is a directory"),
    ] {
        expect(refused(Data::Text(Text::file(file))), file, &[what, "a text in UTF-8 is expected"]);
    }
    let statistics = |files: &[&Path]| refused(Data::Statistics(files.iter().map(|f| f.to_path_buf()).collect()));
    let text = examples().join("data/wiki-eval.txt");
    for (file, what) in
        [(&text, "it is a text"), (&zip, "it is a zip archive"), (&dir.path().to_path_buf(), "it is a directory")]
    {
        expect(statistics(&[file]), file, &[what, "`tersor calibrate`", "importance matrix"]);
    }
    expect(statistics(&[&gguf]), &gguf, &["in_sum2", "`tersor calibrate`"]);
    expect(statistics(&[&gguf, &weights]), &gguf, &["only file"]);
    expect(statistics(&[&weights]), &weights, &["it is no file of statistics"]);
    for (file, what) in [(&gguf.with_extension("toml"), "a GGUF file"), (&zip.with_extension("toml"), "a zip archive")]
    {
        std::fs::write(file, if what == "a GGUF file" { &b"GGUF\x03\0\0\0\xff"[..] } else { b"PK\x03\x04\xff" })
            .unwrap();
        expect(
            Recipe::find(&file.display().to_string(), &tersor::kinds().stages).err().unwrap(),
            file,
            &[what, "recipe"],
        );
    }
}

#[test]
fn tensors_are_listed_in_the_order_of_the_network() {
    let cx = Context::new();
    let found = pipeline("w4-g32-rtn").plan(&cx).unwrap().summary().unwrap();
    let names: Vec<&str> = found.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[0], "model.embed_tokens.weight");
    let layer = |name: &&str| name.split('.').nth(2).and_then(|n| n.parse::<usize>().ok());
    let layers: Vec<usize> = names.iter().filter_map(layer).collect();
    assert!(layers.is_sorted() && layers.len() > 10, "{layers:?}");
    let last = names.iter().position(|n| *n == "model.norm.weight").unwrap();
    assert!(last >= names.len() - 2, "{names:?}");

    // Layers by their number, in a model of unknown architecture.
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = MemTensors::new();
    let expected = [
        "token_embedding.weight",
        "blocks.1.attn.weight",
        "blocks.2.attn.weight",
        "blocks.10.attn.weight",
        "blocks.10.mlp2.weight",
        "blocks.10.mlp10.weight",
        "head.weight",
        "norm.weight",
    ];
    for name in expected {
        tersor_core::tensors::write_floats(&mut tensors, name, &[4, 16], &[0.5; 64]).unwrap();
    }
    safetensors::write(&dir.path().join("model.safetensors"), &tensors).unwrap();
    let planned = Pipeline::open(dir.path(), "w4-rtn", tersor::kinds()).unwrap().generic().plan(&cx).unwrap();
    let names: Vec<String> = planned.summary().unwrap().tensors.into_iter().map(|t| t.name).collect();
    assert_eq!(names, expected);
}

#[test]
fn conversions_and_verification_show_progress() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let (log, cx) = listened();
    let at = |name: &str| dir.path().join(name);
    pipeline("w4-g32-rtn-lqer-r4").plan(&cx)?.compress(&at("lqer"), &cx)?;
    pipeline("w4-g32-rtn").plan(&cx)?.compress(&at("out"), &cx)?;
    log.stages.lock().unwrap().clear();
    let steps = |stage: &str| {
        let all = std::mem::take(&mut *log.stages.lock().unwrap());
        assert!(
            !all.is_empty() && all.iter().all(|(name, total, done)| name.starts_with(stage) && done == total),
            "{all:?}"
        );
        all.iter().map(|s| s.2).sum::<u64>()
    };
    for (source, to) in [("out", "f16"), ("out", "gguf:Q8_0"), ("out", "gptq-v2"), ("lqer", "peft")] {
        let format = Format::from_name(to)?;
        export(&at(source), format, &at(&format!("to-{}", to.replace(':', "-"))), tersor::kinds(), &cx)?;
        assert!(steps("convert") > 10, "{to}");
    }
    pipeline("w4-g32-gptq").data(words(400)).windows(2).ctx(64).plan(&cx)?.gather([1, 1], &at("stats"), &cx)?;
    assert!(steps("calibrate") > 1);
    verify(&at("out"), tersor::kinds(), &cx)?;
    assert!(steps("verify") > 10);
    Ok(())
}

/// Copies a file of statistics, with a Gram matrix of uncorrelated inputs of equal second moments in place of each.
fn uncorrelated(from: &Path, to: &Path) {
    let file = safetensors::File::open(from, &Limits::default()).unwrap();
    let mut tensors = MemTensors::new();
    for name in file.names() {
        let info = file.info(&name).unwrap();
        let mut bytes = vec![0u8; info.bytes().unwrap()];
        file.read_at(&name, 0, &mut bytes).unwrap();
        if name.ends_with(".gram") {
            let k = info.shape[0];
            bytes = (0..k * k).flat_map(|i| if i / k == i % k { 64f64 } else { 0.0 }.to_le_bytes()).collect();
        }
        tensors.write_shared(&name, &info, &bytes).unwrap();
    }
    safetensors::write(to, &tensors).unwrap();
}

#[test]
fn calibration_without_effect_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let (log, cx) = listened();
    let at = |name: &str| dir.path().join(name);
    let planned = pipeline("w4-g32-gptq").data(words(3000)).windows(4).ctx(64).plan(&cx).unwrap();
    planned.gather([1, 1], &at("gathered"), &cx).unwrap();
    uncorrelated(&at("gathered"), &at("uncorrelated"));
    log.warnings();
    let run = |recipe: &str, statistics: &str| {
        let out = at(&format!("{}-{statistics}", recipe.replace('/', "-")));
        pipeline(recipe).statistics(vec![at(statistics)]).plan(&cx).unwrap().compress(&out, &cx).unwrap();
        let said = log.warnings().into_iter().filter(|w| w.contains("no effect")).collect::<Vec<_>>();
        (said, json(&out.join("tersor.json"))["tensors"]["model.layers.0.mlp.up_proj.weight"]["report"].clone())
    };
    for recipe in ["w4-g32-gptq", "w4a8-g32-gptq"] {
        let (said, report) = run(recipe, "uncorrelated");
        assert_eq!(said.len(), 1, "{recipe}: {said:?}");
        assert!(said[0].contains("check the calibration data") && said[0].contains("(gptq"), "{said:?}");
        assert_eq!(report["calibration_had_no_effect"], true);
        let (said, report) = run(recipe, "gathered");
        assert!(said.is_empty() && report["calibration_had_no_effect"].is_null(), "{recipe}: {said:?}");
    }
    // GPTQ on a text changes every matrix; fixed scales of inputs leave the weights as they are, and are no sign of missing data.
    let fixed = dir.path().join("fixed.toml");
    let rules = "rules = [{ match = \"@linear\", stages = [{ kind = \"rtn\", bits = 8 }, { kind = \"act\", scale = \"static\" }] }]";
    std::fs::write(&fixed, format!("name = \"fixed\"\n{rules}\n")).unwrap();
    for recipe in ["w4-g32-gptq", &fixed.display().to_string()] {
        let out = dir.path().join("text").join(recipe.replace('/', "-"));
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let plan = pipeline(recipe).data(words(3000)).windows(4).ctx(64).plan(&cx).unwrap();
        plan.compress(&out, &cx).unwrap();
        let said = log.warnings();
        assert!(said.iter().all(|w| !w.contains("no effect")), "{said:?}");
    }
}
