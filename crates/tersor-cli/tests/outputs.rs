//! Nothing that the command did not make is replaced or deleted, and work in progress is checked by content.

use std::fs;
use std::path::Path;

mod common;
use common::*;

/// Runs a command that must be refused with `code`, and asserts that the file `kept` is not changed.
fn keeps(code: i32, kept: &Path, args: &[&str]) -> String {
    let before = fs::read(kept).unwrap();
    let said = fails(code, args);
    assert!(fs::read(kept).unwrap() == before, "{args:?} changed {}", kept.display());
    said
}

/// Two calibration windows of 64 tokens.
const FEW: [&str; 4] = ["--calib-windows", "2", "--ctx", "64"];

#[test]
fn files_of_the_user_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (model, text) = (shipped(), path("cal.txt"));
    fs::copy(data("wiki-calib.txt"), &text).unwrap();
    let gguf = path("victim.gguf");
    tersor_json(&["convert", s(&model), "--to", "gguf:F16", "--out", s(&gguf)]);
    let recipe = path("mine.toml");
    fs::write(&recipe, recipe_text()).unwrap();
    // A model as the output of a plan, of statistics, and of a report.
    let plan = ["plan", s(&gguf), "--recipe", "w4-g32-rtn", "--out"];
    assert!(keeps(1, &gguf, &[&plan[..], &[s(&gguf)]].concat()).contains("input of the work"));
    let compressed = path("small");
    tersor_json(&["compress", s(&model), "--recipe", "w4-g32-rtn", "--out", s(&compressed)]);
    let report = ["report", s(&compressed), "--out"];
    for file in [&gguf, &text, &recipe, &compressed.join("tersor.json")] {
        assert!(keeps(1, file, &[&report[..], &[s(file)]].concat()).contains("no earlier report"));
    }
    let calibrate =
        ["calibrate", s(&model), "--recipe", "w4-g32-gptq", "--calib-windows", "2", "--ctx", "64", "--calib", s(&text)];
    assert!(keeps(1, &text, &[&calibrate[..], &["--out", s(&text)]].concat()).contains("input of the work"));
    for file in [&gguf, &recipe, &compressed.join("model.safetensors")] {
        assert!(
            keeps(1, file, &[&calibrate[..], &["--out", s(file)]].concat()).contains("no earlier file of statistics")
        );
    }
    // A recipe and a text as the output of a plan or of measurements.
    let plan = ["plan", s(&model), "--recipe", "w4-g32-rtn", "--out"];
    assert!(keeps(1, &recipe, &[&plan[..], &[s(&recipe)]].concat()).contains("no earlier recipe"));
    assert!(keeps(1, &text, &[&plan[..], &[s(&text)]].concat()).contains("no earlier plan"));
    let budget = [&["plan", s(&model), "--budget", "1MB", "--calib", s(&text)][..], &FEW].concat();
    let said = keeps(1, &recipe, &[&budget[..], &["--measured", s(&recipe)]].concat());
    assert!(said.contains("no earlier measurement"), "{said}");
    let both = path("both.json");
    let said = fails(1, &[&budget[..], &["--measured", s(&both), "--out", s(&both)]].concat());
    assert!(said.contains("two outputs") && !both.exists(), "{said}");
    assert!(keeps(1, &gguf, &["convert", s(&model), "--to", "gguf:F16", "--out", s(&gguf)]).contains("exists"));
    // A directory is no file.
    fails(1, &[&report[..], &[s(dir.path())]].concat());
}

fn recipe_text() -> String {
    recipe("mine", "", &[(ALL, RTN8)])
}

#[test]
fn earlier_outputs_of_the_same_kind_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (model, text) = (shipped(), data("wiki-calib.txt"));
    let compressed = path("small");
    tersor_json(&["compress", s(&model), "--recipe", "w4-g32-rtn", "--out", s(&compressed)]);
    let (json, toml, page, statistics) = (path("plan.json"), path("plan.toml"), path("page.html"), path("statistics"));
    for recipe in ["w4-g32-rtn", "w8-gptq"] {
        for out in [&json, &toml] {
            tersor_json(&["plan", s(&model), "--recipe", recipe, "--out", s(out)]);
        }
        tersor_json(&["report", s(&compressed), "--out", s(&page)]);
        if recipe == "w8-gptq" {
            let args = ["--calib-windows", "2", "--ctx", "64", "--calib", s(&text), "--out", s(&statistics)];
            for _ in 0..2 {
                tersor_json(&[&["calibrate", s(&model), "--recipe", recipe][..], &args].concat());
            }
        }
    }
    // The recipe file is a recipe.
    let made = tersor_json(&["recipes", s(&toml)]);
    assert_eq!(made["recipe"]["name"], "w8-gptq");
}

#[test]
fn a_comparison_leaves_the_models_of_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (models, other) = (dir.path().join("models"), Tiny::llama().write(&dir.path().join("other")));
    let mine = models.join("w4-g32-rtn");
    tersor_json(&["compress", s(&shipped()), "--recipe", "w4-g32-rtn", "--out", s(&mine)]);
    fs::write(mine.join("note.txt"), "mine").unwrap();
    let before = files(&mine);
    let text = data("wiki-eval.txt");
    let args = ["--recipes", "w4-g32-rtn", "--text", s(&text), "--ctx", "64", "--windows", "1", "--out", s(&models)];
    let said = fails(1, &[&["compare", s(&other)][..], &args].concat());
    assert!(said.contains("other inputs"), "{said}");
    assert!(files(&mine) == before);
    // Of the same model it is taken as it is.
    let found = tersor_json(&[&["compare", s(&shipped())][..], &args].concat());
    assert_eq!(found["rows"][1]["recipe"], "w4-g32-rtn");
    assert!(files(&mine) == before);
    // Files of the same names that are no comparison's stay.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("rows.json"), "[1]").unwrap();
    let args = ["--recipes", "bf16", "--text", s(&text), "--windows", "1", "--out", s(&elsewhere)];
    let said = keeps(1, &elsewhere.join("rows.json"), &[&["compare", s(&shipped())][..], &args].concat());
    assert!(said.contains("no earlier comparison"), "{said}");
}

#[test]
fn configurations_that_contradict_the_tensors_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (key, value, tensor) in [
        ("hidden_size", serde_json::json!(40), "embed_tokens"),
        ("vocab_size", serde_json::json!(2000), "embed_tokens"),
        ("intermediate_size", serde_json::json!(64), "mlp"),
        ("num_key_value_heads", serde_json::json!(4), "k_proj"),
        ("num_hidden_layers", serde_json::json!(3), "layers.2"),
        ("rms_norm_eps", serde_json::json!("1e-5"), "rms_norm_eps"),
        ("vocab_size", serde_json::json!("many"), "vocab_size"),
    ] {
        let mut tiny = Tiny::llama();
        tiny.config[key] = value;
        let model = tiny.write(&dir.path().join("m"));
        for verb in [&["plan", s(&model)][..], &["compress", s(&model), "--out", s(&out)]] {
            let said = fails(1, &[verb, &["--recipe", "w4-g16-rtn"]].concat());
            assert!(said.contains(tensor), "{key}: {said}");
            assert!(!out.exists(), "{key}");
        }
        fs::remove_dir_all(model).unwrap();
    }
}

#[test]
fn what_a_file_holds_is_no_bad_usage() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    tersor_json(&["compress", s(&shipped()), "--recipe", "w4a8kv4-g32-rtn", "--out", s(&out)]);
    let (manifest, text) = (out.join("tersor.json"), data("wiki-eval.txt"));
    let good = fs::read_to_string(&manifest).unwrap();
    for (was, is) in [
        ("\"bits\": 4", "\"bits\": 77"),
        ("\"activation_bits\": 8", "\"activation_bits\": 0"),
        ("\"high\": 0", "\"high\": -1"),
    ] {
        let bad = good.replace(was, is);
        assert_ne!(bad, good, "{was}");
        fs::write(&manifest, bad).unwrap();
        fails(1, &["eval", s(&out), "--text", s(&text), "--windows", "1", "--ctx", "32", "--no-speed"]);
    }
}

/// Changes one byte of a tensor's data, near the end of a safetensors file.
fn change(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn conversions_know_the_contents_that_they_were_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (Tiny::llama().write(&dir.path().join("m")), dir.path().join("out"));
    let args = ["convert", s(&model), "--to", "f16", "--out", s(&out)];
    tersor_json(&args);
    tersor_json(&args);
    // The same names, shapes and lengths.
    change(&model.join("model.safetensors"));
    let said = fails(1, &args);
    assert!(said.contains("model changed"), "{said}");
}

#[test]
fn statistics_and_factors_in_progress_are_checked_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, toml) =
        (Tiny::llama().write(&dir.path().join("m")), dir.path().join("out"), dir.path().join("r.toml"));
    let gptq = "{ kind = \"gptq\", bits = 3, group = 16 }";
    fs::write(&toml, recipe("r", "statistics = \"original\"", &[(ENDS, RTN8), (ALL, gptq)])).unwrap();
    let list = compress(&model, s(&toml), &out, ["2", "64"]);
    let tasks = tersor_json(&[
        "plan",
        s(&model),
        "--recipe",
        s(&toml),
        "--calib",
        s(&data("wiki-calib.txt")),
        "--calib-windows",
        "2",
        "--ctx",
        "64",
    ]);
    let tasks = tasks["tasks"].as_array().unwrap();
    assert_eq!(tasks[0]["kind"], "statistics");
    let matrix = tasks.iter().position(|t| t["tensor"] == "model.layers.0.mlp.up_proj.weight").unwrap().to_string();
    run(&list, &["--task", "0"]);
    // A file without its record is not done.
    let (file, record) = (out.join(".tersor/statistics-000000"), out.join(".tersor/statistics-000000.json"));
    let kept = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert!(fails(1, &with(&list, &["--task", &matrix])).contains("its task comes first"));
    fs::write(&record, kept).unwrap();
    // A changed file.
    let good = fs::read(&file).unwrap();
    change(&file);
    assert!(fails(1, &with(&list, &["--task", &matrix])).contains("not what was written"));
    fs::write(&file, good).unwrap();
    // A changed model of the same headers.
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    change(&model.join("model.safetensors"));
    assert!(fails(1, &with(&list, &["--task", "0"])).contains("values have changed"));
    fs::write(model.join("model.safetensors"), weights).unwrap();
    run(&list, &["--task", "0"]);
    run(&list, &["--task", &matrix]);

    // The factors of a layer, of work that stopped after they were found.
    let out = dir.path().join("smoothed");
    let list = compress(&model, "w4a8-g16-smooth", &out, ["2", "64"]);
    for task in ["0", "1"] {
        run(&list, &["--task", task]);
    }
    let work = out.join(".tersor");
    let records: Vec<_> = fs::read_dir(&work).unwrap().map(|e| e.unwrap().path()).collect();
    // Layer 0 is as if it had stopped: its factors are there, its matrices and hidden states are not.
    for path in &records {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_matrix = name.starts_with('0') && !name.starts_with("000000.");
        if name.starts_with("stream") || is_matrix {
            fs::remove_file(path).unwrap();
        }
    }
    change(&work.join("factors-000000"));
    assert!(fails(1, &with(&list, &["--task", "1"])).contains("not what was written"));
}
