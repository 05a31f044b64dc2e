//! Output directories: they are complete or resumable, with the same bytes after any interruption.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use tersor::core::Context;

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
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    tersor_json(&compress(s(&model), "w4-g32-rtn", s(&empty)));
    assert_eq!(result(&empty), first);
}

#[test]
fn the_number_of_threads_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    for recipe in ["w4-g32-rtn", "w3-rtn-sym-mse", "bf16"] {
        let made = ["1", "2", "64"].map(|threads| {
            let out = dir.path().join(format!("{recipe}-{threads}"));
            tersor_json(&[&compress(s(&model), recipe, s(&out))[..], &["--threads", threads]].concat());
            result(&out)
        });
        assert!(made[0] == made[1] && made[0] == made[2], "{recipe}");
    }
}

#[test]
fn killed_at_any_moment_and_started_again_the_bytes_are_the_same() {
    use rand_core::RngCore;
    let dir = tempfile::tempdir().unwrap();
    let shipped = root().join("examples/models/tiny-wiki");
    let whole = dir.path().join("whole");
    let args = |out: &std::path::Path| compress(s(&shipped), "w3-g32-rtn-mse", s(out)).map(String::from);
    let start = std::time::Instant::now();
    assert!(Command::new(env!("CARGO_BIN_EXE_tersor")).args(args(&whole)).output().unwrap().status.success());
    let took = start.elapsed();
    let want = result(&whole);
    let mut rng = Context::new().stream("moments of death");
    let mut killed = 0;
    for i in 0..10 {
        let out = dir.path().join(format!("out{i}"));
        let run = || {
            let mut run = Command::new(env!("CARGO_BIN_EXE_tersor"));
            run.args(args(&out)).stdout(Stdio::null()).stderr(Stdio::null());
            run
        };
        let mut child = run().spawn().unwrap();
        std::thread::sleep(Duration::from_nanos(rng.next_u64() % took.as_nanos() as u64));
        let _ = child.kill();
        killed += usize::from(!child.wait().unwrap().success());
        if !out.join("tersor.json").exists() && out.exists() {
            // The directory is not a model.
            fails(1, &["verify", s(&out)]);
        }
        assert!(run().status().unwrap().success());
        assert!(result(&out) == want, "killed run {i}");
    }
    assert!(killed > 2, "the moments were badly chosen: {killed} of 10");
}

#[test]
fn two_processes_never_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    let work = out.join(".tersor");
    fs::create_dir_all(&work).unwrap();
    let lock = fs::File::options().create(true).append(true).open(work.join("lock")).unwrap();
    lock.lock().unwrap();
    let said = fails(1, &compress(s(&model), "w4-rtn", s(&out)));
    assert!(said.contains("another process"), "{said}");
    drop(lock);
    tersor_json(&compress(s(&model), "w4-rtn", s(&out)));
    assert!(!work.exists());
}

#[test]
fn verify_sees_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    tersor_json(&compress(s(&model), "w4-g32-rtn", s(&out)));
    assert_eq!(tersor_json(&["verify", s(&out)])["ok"], true);
    let file = out.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    for at in [9, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(fails(1, &["verify", s(&out)]).contains("model.safetensors"));
    }
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(fails(1, &["verify", s(&out)]).contains("bytes"));
    fs::write(&file, &good).unwrap();
    let manifest = out.join("tersor.json");
    let said = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, said.replace("\"format\": 1", "\"format\": 99")).unwrap();
    assert!(fails(1, &["verify", s(&out)]).contains("99"));
    fs::write(&manifest, said.replacen("\"grouped\"", "\"hologram\"", 1)).unwrap();
    assert!(fails(1, &["verify", s(&out)]).contains("hologram"));
    fs::write(&manifest, said.replacen("model.safetensors", "../model.safetensors", 1)).unwrap();
    assert!(fails(1, &["verify", s(&out)]).contains("not the name of a file"));
    fs::write(&manifest, said).unwrap();
    tersor_json(&["verify", s(&out)]);
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
