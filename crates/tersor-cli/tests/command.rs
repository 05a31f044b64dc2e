//! The command line: exit codes, messages, refused and accepted arguments.

mod common;

use common::*;
use serde_json::json;
use tersor::core::DType;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/wiki-eval.txt");
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");

#[test]
fn bad_usage_exits_with_2_and_lists_near_names() {
    for args in [
        &["frobnicate"][..],
        &["plan", SHIPPED],
        &["plan", SHIPPED, "--recipe", "bf16", "--unknown"],
        &["--threads", "0", "inspect", SHIPPED],
        &["compress", SHIPPED, "--out", "/tmp/x"],
        &["compress", SHIPPED, "--recipe", "bf16", "--plan", "x", "--out", "/tmp/x"],
        &["convert", SHIPPED, "--to", "f17", "--out", "/tmp/x"],
        &["eval", SHIPPED, "--text", TEXT, "--ctx", "1"],
        &["eval", SHIPPED, "--text", TEXT, "--ctx", "100000"],
        &["eval", SHIPPED, "--text", TEXT, "--windows", "0"],
        &["generate", SHIPPED, "--prompt", "a", "--temperature", "-1"],
        &["generate", SHIPPED, "--prompt", "a", "--temperature", "NaN"],
    ] {
        fails(2, args);
    }
    let said = fails(2, &["plan", SHIPPED, "--recipe", "w4-g128-rnt", "--json"]);
    assert!(said.contains("w4-g128-rtn"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("r.toml");
    std::fs::write(&recipe, common::recipe("r", "", &[(ALL, "{ kind = \"rtn\", bits = 9 }")])).unwrap();
    let said = fails(2, &["plan", SHIPPED, "--recipe", s(&recipe)]);
    assert!(said.contains("bits") && said.contains('9'), "{said}");
}

#[test]
fn missing_files_and_bad_texts_exit_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    fails(1, &["inspect", s(&path("none"))]);
    fails(1, &["inspect", s(dir.path())]);
    fails(1, &["verify", SHIPPED]);
    fails(1, &["report", s(dir.path()), "--out", s(&path("r.html"))]);
    assert!(!path("r.html").exists());
    std::fs::write(path("latin"), b"caf\xe9").unwrap();
    let said = fails(1, &["eval", SHIPPED, "--text", s(&path("latin")), "--json"]);
    assert!(said.contains("UTF-8") && said.contains("latin"), "{said}");
    std::fs::write(path("short"), b"Too short.").unwrap();
    let said = fails(1, &["eval", SHIPPED, "--text", s(&path("short"))]);
    assert!(said.contains("256"), "{said}");
    fails(1, &["generate", SHIPPED, "--prompt", ""]);
    // Fewer windows than requested give a warning.
    let text: String = std::fs::read_to_string(TEXT).unwrap().chars().take(4000).collect();
    std::fs::write(path("some"), text).unwrap();
    let out = tersor(&["eval", SHIPPED, "--text", s(&path("some")), "--windows", "50", "--no-speed", "--json"]);
    assert!(out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("fewer than 50"));
}

#[test]
fn architectures_must_be_known_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::llama();
    tiny.add("conv.weight", &[4, 3, 5]);
    tiny.config["model_type"] = "gpt_bigcode".into();
    let model = tiny.write(&dir.path().join("unknown"));
    let out = dir.path().join("out");
    let said = fails(1, &["plan", s(&model), "--recipe", "w4-rtn"]);
    assert!(said.contains("gpt_bigcode") && said.contains("llama"), "{said}");
    fails(1, &["compress", s(&model), "--recipe", "w4-rtn", "--out", s(&out)]);
    fails(1, &["eval", s(&model), "--text", TEXT]);
    fails(1, &["generate", s(&model), "--prompt", "a"]);
    assert!(!out.exists());
    // `inspect` and `convert` need no known architecture, and `--generic` takes matrices by name.
    tersor_json(&["inspect", s(&model)]);
    let half = dir.path().join("half");
    assert_eq!(tersor_json(&["convert", s(&model), "--to", "f16", "--out", s(&half)])["tensors"], tiny.tensors.len());
    assert!(said.contains("--generic"), "{said}");
    tersor_json(&["compress", s(&model), "--recipe", "w4-rtn", "--out", s(&out), "--generic"]);
    // What was compressed without a known architecture is verified, and its matrices are compared with the original's.
    let verified = tersor_json(&["verify", s(&out)]);
    let found = tersor_json(&["eval", s(&out), "--against", s(&model)]);
    assert_eq!(found["matrices"].as_object().unwrap().len() as u64, verified["matrices"].as_u64().unwrap());
    let error = found["relative_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 0.2, "{error}");
    assert_eq!(tersor_json(&["eval", s(&model), "--against", s(&model)])["relative_error"], 0.0);
    fails(1, &["eval", s(&out), "--against", s(&model), "--text", TEXT]);
    assert!(fails(2, &["eval", s(&out)]).contains("--text"));

    tiny.config["model_type"] = "llama".into();
    tiny.config["architectures"] = json!(["Qwen2ForCausalLM"]);
    let model = tiny.write(&dir.path().join("torn"));
    assert!(fails(1, &["plan", s(&model), "--recipe", "w4-rtn"]).contains("do not agree"));
}

#[test]
fn values_that_are_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (name, index, value, place)) in [
        ("model.layers.1.mlp.up_proj.weight", 48 * 3 + 5, f32::NAN, "row 3, column 5"),
        ("model.layers.0.self_attn.k_proj.weight", 48 * 23 + 47, f32::INFINITY, "row 23, column 47"),
        ("model.norm.weight", 7, f32::NEG_INFINITY, "column 7"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tiny = Tiny::llama();
        tiny.set(name, index, value);
        let model = tiny.write(&dir.path().join(format!("m{i}")));
        let out = dir.path().join(format!("out{i}"));
        let compress = ["compress", s(&model), "--recipe", "w4-rtn", "--out", s(&out)];
        let convert = ["convert", s(&model), "--to", "bf16", "--out", s(&out)];
        for args in [&compress[..], &["eval", s(&model), "--text", TEXT], &convert] {
            let said = fails(1, args);
            assert!(said.contains(name) && said.contains(place), "{said}");
            assert!(!out.join("tersor.json").exists() && !out.join("model.safetensors").exists());
            let _ = std::fs::remove_dir_all(&out);
        }
    }
    // If the recipe allows it, they are replaced, counted and reported.
    let mut tiny = Tiny::llama();
    tiny.set("model.layers.1.mlp.up_proj.weight", 3, f32::NAN);
    tiny.set("model.layers.1.mlp.up_proj.weight", 7, f32::INFINITY);
    let model = tiny.write(&dir.path().join("repaired"));
    let recipe = dir.path().join("r.toml");
    let toml = format!("name = \"r\"\nrules = [{{ match = \"*\", stages = [{RTN8}], non_finite = \"clamp\" }}]\n");
    std::fs::write(&recipe, toml).unwrap();
    let out = dir.path().join("repaired-out");
    let done = tersor(&["compress", s(&model), "--recipe", s(&recipe), "--out", s(&out)]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("2 values were not finite"));
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("tersor.json")).unwrap()).unwrap();
    assert_eq!(manifest["tensors"]["model.layers.1.mlp.up_proj.weight"]["report"]["replaced"], 2);
    tersor_json(&["verify", s(&out)]);

    // A value that overflows in the target type.
    let mut tiny = Tiny::llama();
    tiny.set("model.layers.0.mlp.up_proj.weight", 1, 1e30);
    let model = tiny.write(&dir.path().join("large"));
    let out = dir.path().join("large-out");
    assert!(fails(1, &["convert", s(&model), "--to", "f16", "--out", s(&out)]).contains("up_proj"));
    std::fs::remove_dir_all(&out).unwrap();
    let said = fails(1, &["compress", s(&model), "--recipe", "w4-rtn", "--out", s(&out)]);
    assert!(said.contains("scale") && said.contains("up_proj") && said.contains("f32"), "{said}");
}

#[test]
fn wrong_or_missing_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::llama();
    tiny.tensors.remove("model.layers.1.self_attn.v_proj.weight");
    let model = tiny.write(&dir.path().join("missing"));
    assert!(fails(1, &["eval", s(&model), "--text", TEXT]).contains("model.layers.1.self_attn.v_proj.weight"));
    let mut tiny = Tiny::llama();
    tiny.add("model.layers.1.self_attn.v_proj.weight", &[48, 24]);
    let model = tiny.write(&dir.path().join("transposed"));
    let said = fails(1, &["eval", s(&model), "--text", TEXT]);
    assert!(said.contains("v_proj") && said.contains("[24, 48]"), "{said}");
    let mut tiny = Tiny::llama();
    tiny.config["tie_word_embeddings"] = false.into();
    let model = tiny.write(&dir.path().join("headless"));
    assert!(fails(1, &["eval", s(&model), "--text", TEXT]).contains("lm_head.weight"));
}

#[test]
fn every_architecture_compresses_streams_and_generates() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, class) in [
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
    ] {
        let mut tiny = Tiny::new(kind, class);
        if kind == "mistral" {
            tiny.config["sliding_window"] = 16.into();
        }
        if kind == "qwen2" {
            tiny.config["tie_word_embeddings"] = false.into();
            tiny.add("lm_head.weight", &[2048, 48]);
        }
        tiny.dtype = DType::BF16;
        let model = tiny.write(&dir.path().join(kind));
        let out = dir.path().join(format!("{kind}-out"));
        tersor_json(&["compress", s(&model), "--recipe", "w8-rtn", "--out", s(&out)]);
        tersor_json(&["verify", s(&out)]);
        let eval = |m: &std::path::Path, more: &[&str]| {
            let base = ["eval", s(m), "--text", TEXT, "--ctx", "64", "--windows", "3", "--no-speed"];
            tersor_json(&[&base[..], more].concat())
        };
        let (a, b) = (eval(&model, &[]), eval(&model, &["--stream"]));
        assert_eq!(a["perplexity"], b["perplexity"], "{kind}: one layer at a time gives the same bits");
        let c = eval(&out, &["--against", s(&model)]);
        assert!(c["kl_mean"].as_f64().unwrap() < 0.01 && c["top1_agreement"].as_f64().unwrap() > 0.8, "{kind}: {c}");
        let text = tersor_json(&["generate", s(&out), "--prompt", "The", "--tokens", "5"]);
        assert_eq!(text["tokens"].as_array().unwrap().len(), 5);
    }
}

#[test]
fn draws_depend_on_the_seed_alone() {
    let generate = |seed: &str| {
        let args = ["generate", SHIPPED, "--prompt", "The", "--tokens", "12", "--temperature", "1", "--seed", seed];
        tersor_json(&args)["tokens"].clone()
    };
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));
}

#[test]
fn a_plan_is_a_promise() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let file = dir.path().join("plan.json");
    let plan = tersor_json(&["plan", s(&model), "--recipe", "w3-g32-rtn", "--out", s(&file)]);
    let out = dir.path().join("out");
    tersor_json(&["compress", s(&model), "--plan", s(&file), "--out", s(&out)]);
    let eval = tersor_json(&["eval", s(&out), "--text", TEXT, "--ctx", "64", "--windows", "1", "--no-speed"]);
    for key in ["bits_per_weight", "body_bits_per_weight", "weight_bytes"] {
        assert_eq!(plan[key], eval[key], "{key}");
    }
    assert_eq!(plan["weight_bytes"], std::fs::metadata(out.join("model.safetensors")).unwrap().len());
    // A plan is refused for another model.
    let mut other = Tiny::llama();
    other.config["rope_theta"] = 5000.0.into();
    let other = other.write(&dir.path().join("other"));
    let again = dir.path().join("again");
    let said = fails(1, &["compress", s(&other), "--plan", s(&file), "--out", s(&again)]);
    assert!(said.contains("another model"), "{said}");
}

#[test]
fn a_plan_begins_with_its_totals_and_lists_layers_in_order() {
    let out = tersor(&["plan", SHIPPED, "--recipe", "w4-g32-rtn"]);
    let said = String::from_utf8(out.stdout).unwrap();
    let at = |part: &str| said.find(part).unwrap_or_else(|| panic!("{part}: {said}"));
    assert!(said.lines().next().unwrap().contains("bits per weight"), "{said}");
    assert!(at("peak memory at most") < at("model.embed_tokens.weight"), "{said}");
    assert!(at("model.embed_tokens.weight") < at("layers.0.") && at("layers.0.") < at("layers.1."), "{said}");
    assert!(String::from_utf8(out.stderr).unwrap().is_empty());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, recipe("mine", "", &[("\"*.no_such.*\"", RTN8)])).unwrap();
    let out = tersor(&["plan", SHIPPED, "--recipe", s(&file)]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && said.contains("warning: ") && said.contains("nothing is compressed"), "{said}");
    assert!(said.contains("rule 1 (`*.no_such.*`)"), "{said}");
}

#[test]
fn options_of_calibration_have_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("statistics");
    let calibrate = ["calibrate", SHIPPED, "--recipe", "w4-g32-gptq", "--ctx", "64", "--out", s(&out)];
    assert!(fails(2, &[&calibrate[..], &["--text", TEXT]].concat()).contains("--text"));
    let found = tersor_json(&[&calibrate[..], &["--calib", TEXT, "--calib-windows", "2"]].concat());
    assert_eq!(found["windows"], 2);
    let said = fails(1, &["compress", SHIPPED, "--recipe", "w4-g32-gptq", "--calib", s(&out), "--out", "x"]);
    assert!(said.contains("it is a safetensors file"), "{said}");
    let said = fails(1, &["compress", SHIPPED, "--recipe", "w4-g32-gptq", "--stats", TEXT, "--out", "x"]);
    assert!(said.contains("it is a text") && said.contains("tersor calibrate"), "{said}");
}
