//! Output directories as the command makes and refuses them. That they are complete or resumable, with the same bytes, is tested in `tersor-pipeline`.

mod common;

use std::fs;

use common::*;

fn compress<'a>(model: &'a str, recipe: &'a str, out: &'a str) -> [&'a str; 6] {
    ["compress", model, "--recipe", recipe, "--out", out]
}

#[test]
fn a_finished_directory_says_so_and_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    let args = compress(s(&model), "w4-g32-rtn", s(&out));
    assert_eq!(tersor_json(&args)["finished_before"], false);
    assert_eq!(tersor_json(&["verify", s(&out)])["ok"], true);
    let (first, whole) = (result(&out), files(&out));
    let names: Vec<&str> = whole.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["config.json", "model.safetensors", "timing.json", "tersor.json", "tokenizer.json"]
            .map(|n| n)
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(tersor_json(&args)["finished_before"], true);
    assert_eq!(files(&out), whole, "untouched");

    // Another recipe, seed or model is refused with the name of what differs.
    let said = fails(1, &compress(s(&model), "w3-g32-rtn", s(&out)));
    assert!(said.contains("recipe changed"), "{said}");
    let seed = [&args[..], &["--seed", "5"]].concat();
    assert!(fails(1, &seed).contains("seed changed"));
    let mut other = Tiny::llama();
    other.config["rope_theta"] = 500.0.into();
    let other = other.write(&dir.path().join("other"));
    assert!(fails(1, &compress(s(&other), "w4-g32-rtn", s(&out))).contains("config changed"));
    assert_eq!(result(&out), first);

    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "dear").unwrap();
    let said = fails(1, &compress(s(&model), "w4-rtn", s(&foreign)));
    assert!(said.contains("empty directory"), "{said}");
    assert_eq!(files(&foreign).len(), 1);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    fails(1, &compress(s(&model), "w4-rtn", s(&file)));
    fails(1, &["verify", s(&foreign)]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    tersor_json(&compress(s(&model), "w4-g32-rtn", s(&empty)));
    assert_eq!(result(&empty), first);
}

#[test]
fn shards_keep_their_names_and_indices() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = Tiny::llama();
    let (one, model) = (tiny.write(&dir.path().join("one")), tiny.write(&dir.path().join("m")));
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let first = |n: &str| n.contains("layers.0");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    tiny.write_weights(&model.join(names[0]), first);
    tiny.write_weights(&model.join(names[1]), |n| !first(n));
    let map: serde_json::Map<String, serde_json::Value> =
        tiny.tensors.keys().map(|n| (n.clone(), names[usize::from(!first(n))].into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let (out, single) = (dir.path().join("out"), dir.path().join("single"));
    let done = tersor_json(&compress(s(&model), "w4-g32-rtn", s(&out)));
    tersor_json(&compress(s(&one), "w4-g32-rtn", s(&single)));
    let all = files(&out);
    assert!(names.iter().all(|n| all.contains_key(*n)) && all.contains_key("model.safetensors.index.json"));
    assert_eq!(done["weight_bytes"], all[names[0]].len() + all[names[1]].len());
    tersor_json(&["verify", s(&out)]);
    let text = root().join("examples/data/wiki-eval.txt");
    let eval = |m| tersor_json(&["eval", s(m), "--text", s(&text), "--ctx", "64", "--windows", "2", "--no-speed"]);
    let (a, b) = (eval(&out), eval(&single));
    assert_eq!((&a["perplexity"], &a["bits_per_weight"]), (&b["perplexity"], &b["bits_per_weight"]));
}

#[test]
fn what_is_compressed_converts_back_to_the_same_predictions() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let (out, plain) = (dir.path().join("out"), dir.path().join("plain"));
    tersor_json(&compress(s(&model), "w4-g32-rtn", s(&out)));
    tersor_json(&["convert", s(&out), "--to", "f32", "--out", s(&plain)]);
    let names: Vec<String> = files(&plain).into_keys().collect();
    assert_eq!(names, ["config.json", "conversion.json", "model.safetensors", "tokenizer.json"]);
    let text = root().join("examples/data/wiki-eval.txt");
    let eval = |m| tersor_json(&["eval", s(m), "--text", s(&text), "--ctx", "64", "--windows", "2", "--no-speed"]);
    // Integer and float products differ by rounding only.
    let perplexity = |m| eval(m)["perplexity"].as_f64().unwrap();
    assert!((perplexity(&out) / perplexity(&plain) - 1.0).abs() < 1e-6);
    tersor_json(&["convert", s(&out), "--to", "f32", "--out", s(&plain)]);
    assert!(fails(1, &["convert", s(&out), "--to", "f16", "--out", s(&plain)]).contains("to changed"));
}
