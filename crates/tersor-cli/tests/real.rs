//! The command on real models, if `scripts/fetch-models.sh` has fetched them.

mod common;

use common::*;

#[test]
fn minilm_keeps_its_embeddings() {
    let model = root().join("models/minilm");
    if !model.exists() {
        eprintln!("skipped: models/minilm is missing (scripts/fetch-models.sh fetches it)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = |name: &str| root().join("examples/data").join(name);
    let (calib, eval) = (data("sentences-calib.txt"), data("sentences-eval.txt"));
    for (recipe, bound) in [("w8-rtn", 0.999), ("w4-g64-gptq", 0.98)] {
        let out = dir.path().join(recipe);
        let plan = tersor_json(&["plan", s(&model), "--recipe", recipe, "--calib", s(&calib)]);
        let done = tersor_json(&["compress", s(&model), "--recipe", recipe, "--calib", s(&calib), "--out", s(&out)]);
        assert_eq!(done["weight_bytes"], plan["weight_bytes"]);
        let found = tersor_json(&["eval", s(&out), "--sentences", s(&eval), "--against", s(&model)]);
        assert_eq!(found["sentences"], 50);
        assert!(found["cosine_mean"].as_f64().unwrap() >= bound, "{recipe}: {found}");
    }
}

#[test]
fn smollm2_is_calibrated_within_the_memory_that_the_plan_says() {
    let model = root().join("models/smollm2-135m.gguf");
    if !model.exists() {
        eprintln!("skipped: models/smollm2-135m.gguf is missing (scripts/fetch-models.sh fetches it)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let calib = root().join("examples/data/wiki-calib.txt");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let list = |verb, out| {
        let mut list = vec![verb, s(&model), "--recipe", "w4-g128-gptq", "--calib", s(&calib), "--calib-windows", "8"];
        if verb == "compress" {
            list.extend(["--out", out]);
        }
        list
    };
    let plan = tersor_json(&list("plan", ""));
    let planned: u64 = plan["peak_memory_bytes"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
    let done = tersor_json(&list("compress", s(&a)));
    let peak = done["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak <= planned * 11 / 10, "{peak} of {planned}");
    let capped = tersor_json(&[&list("compress", s(&b))[..], &["--max-memory", "220MB"]].concat());
    assert!(capped["peak_rss_bytes"].as_u64().unwrap() <= 220_000_000, "{capped}");
    assert!(result(&a) == result(&b));
}

#[test]
fn what_looks_at_whole_layers_stays_within_the_plan_too() {
    let model = root().join("models/smollm2-135m.gguf");
    if !model.exists() {
        eprintln!("skipped: models/smollm2-135m.gguf is missing (scripts/fetch-models.sh fetches it)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let calib = root().join("examples/data/wiki-calib.txt");
    for recipe in ["w4a8-g128-smooth", "w4a4kv4-resq"] {
        let out = dir.path().join(recipe);
        let list = [s(&model), "--recipe", recipe, "--calib", s(&calib), "--calib-windows", "8"];
        let plan = tersor_json(&[&["plan"][..], &list].concat());
        let planned: u64 = plan["peak_memory_bytes"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
        let done = tersor_json(&[&["compress"][..], &list, &["--out", s(&out)]].concat());
        let peak = done["peak_rss_bytes"].as_u64().unwrap();
        assert!(peak <= planned * 11 / 10, "{recipe}: {peak} of {planned}");
        assert_eq!(done["weight_bytes"], plan["weight_bytes"]);
    }
}
