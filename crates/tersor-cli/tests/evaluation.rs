//! `eval` with stored predictions, prompts and files of figures, and `report` of them.

use std::fs;

mod common;
use common::*;

#[test]
fn figures_are_written_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (model, text, small) = (shipped(), data("wiki-eval.txt"), path("small"));
    tersor_json(&["compress", s(&model), "--recipe", "w4-g32-rtn", "--out", s(&small)]);
    let task = path("task.jsonl");
    fs::write(&task, "{\"prompt\": \"The river\", \"answer\": \"no such answer\"}\n").unwrap();
    let (original, compressed, reference) = (path("original.json"), path("small.json"), path("reference"));
    let few = ["--text", s(&text), "--ctx", "64", "--windows", "2", "--no-speed", "--reference", s(&reference)];
    let first = tersor_json(&[&["eval", s(&model), "--noise-floor", "--out", s(&original)][..], &few].concat());
    assert!(first["kl_noise_floor"].as_f64().unwrap() > 0.0 && first.get("kl_mean").is_none());
    let args = ["eval", s(&small), "--against", s(&model), "--task", s(&task), "--out", s(&compressed)];
    let found = tersor_json(&[&args[..], &few].concat());
    assert_eq!((&found["task_accuracy"], &found["task_total"]), (&0.0.into(), &1.into()));
    assert_eq!(found["kl_by_confidence"].as_array().unwrap().len(), 5);
    // The same without the file of predictions.
    let plain = tersor_json(&[
        "eval",
        s(&small),
        "--against",
        s(&model),
        few[0],
        few[1],
        few[2],
        few[3],
        few[4],
        few[5],
        few[6],
    ]);
    for key in ["perplexity", "kl_mean", "kl_median", "kl_p90", "top1_agreement", "site_errors", "kl_by_confidence"] {
        assert_eq!(found[key], plain[key], "{key}");
    }
    // The file has the figures with two names.
    let stored: serde_json::Value = serde_json::from_slice(&fs::read(&compressed).unwrap()).unwrap();
    assert_eq!((stored["model"].as_str(), stored["recipe"].as_str()), (Some("small"), Some("w4-g32-rtn")));
    assert_eq!(stored["kl_mean"], found["kl_mean"]);
    let page = path("page.html");
    tersor_json(&["report", s(&original), s(&compressed), "--out", s(&page)]);
    let html = fs::read_to_string(&page).unwrap();
    for part in ["w4-g32-rtn", "original", "answers, %", "Activation error", "Rounding activations to bf16"] {
        assert!(html.contains(part), "{part}");
    }
    // Files of the user are neither replaced nor taken for figures.
    let said = fails(1, &[&["eval", s(&model), "--out", s(&task)][..], &few].concat());
    assert!(said.contains("no earlier evaluation"), "{said}");
    let said = fails(1, &["report", s(&task), "--out", s(&page)]);
    assert!(said.contains("eval --out"), "{said}");
    fails(1, &[&["eval", s(&model), "--out", s(&original)][..], &few[..6], &["--reference", s(&original)]].concat());

    // Prompts alone; a wrong line is named.
    let alone = tersor_json(&["eval", s(&model), "--task", s(&task), "--out", s(&path("task.json"))]);
    assert_eq!(alone["task_total"], 1);
    let said = tersor(&["eval", s(&model), "--task", s(&task)]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("0.0 % of 1"));
    fs::write(&task, "{\"prompt\": \"The river\"}\n").unwrap();
    let said = fails(1, &["eval", s(&model), "--task", s(&task)]);
    assert!(said.contains("task.jsonl:1") && said.contains("answer"), "{said}");
    fails(2, &["eval", s(&model), "--task", s(&task), "--reference", s(&path("r"))]);
}

#[test]
fn a_comparison_runs_the_original_once_and_leaves_no_predictions() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text, out) = (shipped(), data("wiki-eval.txt"), dir.path().join("out"));
    let args = ["--text", s(&text), "--ctx", "64", "--windows", "3", "--out", s(&out)];
    let found = tersor_json(&[&["compare", s(&model), "--recipes", "w8-rtn,w3-g32-rtn"][..], &args].concat());
    let rows = found["rows"].as_array().unwrap();
    assert!(rows[0]["kl_noise_floor"].as_f64().unwrap() > 0.0 && rows[1].get("kl_noise_floor").is_none());
    assert_eq!(rows[2]["kl_below_noise"], false);
    for row in &rows[1..] {
        let model = out.join(row["recipe"].as_str().unwrap());
        let plain =
            tersor_json(&[&["eval", s(&model), "--against", s(&shipped()), "--no-speed"][..], &args[..6]].concat());
        for key in ["perplexity", "kl_mean", "kl_median", "kl_p90", "top1_agreement", "site_errors", "kl_by_confidence"]
        {
            assert_eq!(row[key], plain[key], "{key}");
        }
    }
    let names = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["report.html", "rows.json", "w3-g32-rtn", "w8-rtn"]);
    let said = tersor(&[&["compare", s(&model), "--recipes", "w8-rtn"][..], &args].concat());
    assert!(String::from_utf8_lossy(&said.stdout).contains("rounding activations to bf16 alone"));
}

#[test]
fn a_model_that_is_no_decoder_is_told_what_to_use() {
    let model = root().join("models/minilm");
    if !model.join("config.json").is_file() {
        eprintln!("skipped: models/minilm is missing");
        return;
    }
    let text = data("wiki-eval.txt");
    for verb in ["--text", "--task"] {
        let said = fails(1, &["eval", s(&model), verb, s(&text)]);
        assert!(said.contains("--sentences FILE --against ORIGINAL"), "{said}");
    }
}
