//! GGUF files: converted networks are the same, codes are unchanged, and refusals name the tensor.

mod common;

use std::path::Path;

use common::*;
use serde_json::Value as Json;
use tersor::core::{Limits, read_finite};
use tersor::formats::Model;

fn perplexity(model: &Path) -> f64 {
    let text = root().join("examples/data/wiki-eval.txt");
    let args = ["eval", s(model), "--text", s(&text), "--ctx", "64", "--windows", "4", "--no-speed"];
    tersor_json(&args)["perplexity"].as_f64().unwrap()
}

fn convert(model: &Path, to: &str, out: &Path) -> Json {
    tersor_json(&["convert", s(model), "--to", to, "--out", s(out)])
}

/// All values of a tensor.
fn values(model: &Path, name: &str) -> Vec<f32> {
    let model = Model::open(model, &Limits::default()).unwrap();
    let rows = model.rows(name).unwrap();
    read_finite(&*rows, 0..rows.shape()[0]).unwrap()
}

#[test]
fn a_file_is_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let original = perplexity(&shipped());
    for (to, max) in [("gguf:F32", 1e-9), ("gguf:F16", 1e-9), ("gguf:bf16", 5e-3), ("gguf:Q8_0", 5e-3)] {
        let out = dir.path().join(format!("{}.gguf", &to[5..]));
        let made = convert(&shipped(), to, &out);
        assert_eq!(made["fallbacks"], Json::Array(Vec::new()));
        let found = perplexity(&out);
        assert!((found / original - 1.0).abs() < max, "{to}: {found} for {original}");
        // Converted again: keys and the order of rows are preserved.
        let again = dir.path().join("again.gguf");
        convert(&out, "gguf:F32", &again);
        assert_eq!(perplexity(&again), found, "{to}");
        std::fs::remove_file(again).unwrap();
    }
    // Other families have biases, norms of heads, and rows that are not permuted.
    for (kind, class) in [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("llama", "LlamaForCausalLM")] {
        let (model, out) = (dir.path().join(kind), dir.path().join(format!("{kind}.gguf")));
        let mut tiny = Tiny::new(kind, class);
        if kind == "llama" {
            tiny.config["tie_word_embeddings"] = false.into();
            tiny.add("lm_head.weight", &[2048, 48]);
            tiny.config["rope_scaling"] = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        }
        tiny.write(&model);
        convert(&model, "gguf:F32", &out);
        // The divisors of rotary frequencies are stored in f32.
        assert!((perplexity(&out) / perplexity(&model) - 1.0).abs() < 1e-5, "{kind}");
    }
}

#[test]
fn codes_go_over_as_they_are_where_a_type_has_their_grid() {
    let dir = tempfile::tempdir().unwrap();
    let query = "model.layers.1.self_attn.q_proj.weight";
    for (recipe, kind, exact) in [
        ("w4-g32-rtn-sym", "Q4_0", true),
        ("w3-g64-rtn-sym", "Q4_0", true),
        ("w5-rtn-sym", "Q5_0", true),
        ("w8-g32-rtn-sym", "Q8_0", true),
        ("w7-g32-rtn", "Q8_0", true),
        ("w4-g32-rtn", "Q4_1", false),
        ("w5-g64-rtn", "Q5_1", false),
    ] {
        let (out, plain) = (dir.path().join(recipe), dir.path().join(format!("{recipe}.f32")));
        tersor_json(&["compress", s(&shipped()), "--recipe", recipe, "--out", s(&out)]);
        convert(&out, "f32", &plain);
        for to in ["exact", kind] {
            let file = dir.path().join(format!("{recipe}.{to}.gguf"));
            let made = convert(&out, &format!("gguf:{to}"), &file);
            let tensor = made["tensors"].as_array().unwrap().iter().find(|t| t["name"] == query).unwrap();
            assert_eq!((&tensor["type"], &tensor["exact"]), (&kind.into(), &true.into()), "{recipe}");
            let (ours, theirs) = (values(&plain, query), values(&file, query));
            // Only the minimum is rounded, to half precision.
            let max = ours.iter().fold(0f32, |m, v| m.max(v.abs())) * if exact { 0.0 } else { 1.0 / 2048.0 };
            let far = ours.iter().zip(&theirs).find(|(a, b)| (*a - *b).abs() > max);
            assert_eq!(far, None, "{recipe} to {to}");
            assert_eq!(made["rounded_again"][0]["tensor"], "model.embed_tokens.weight");
            assert!(made["rounded_again"][0]["relative_error"].as_f64().unwrap() < 0.01);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    let to = |model: &Path, to: &str| fails(1, &["convert", s(model), "--to", to, "--out", s(&file)]);
    let said = to(&shipped(), "gguf:Q4_K");
    assert!(said.contains("down_proj") && said.contains("rows of 384") && said.contains("Q8_0 fit"), "{said}");
    assert!(to(&shipped(), "gguf:exact").contains("name a type"));
    for (recipe, kind, why) in [
        ("w4-g32-rtn", "Q4_0", "4 bits on grid asym"),
        ("w4-g16-rtn-sym", "Q4_0", "groups of 16"),
        ("w8-g32-rtn", "exact", "8 bits on grid asym"),
        ("w4-nf4", "exact", "no `blockwise`"),
    ] {
        let out = dir.path().join(recipe);
        tersor_json(&["compress", s(&shipped()), "--recipe", recipe, "--out", s(&out)]);
        let said = to(&out, &format!("gguf:{kind}"));
        assert!(said.contains("model.layers.0.") && said.contains(why) && said.contains("--to f32"), "{said}");
    }
    assert!(!file.exists() && files(dir.path()).keys().all(|n| !n.contains("partial")));
    std::fs::write(&file, "mine").unwrap();
    assert!(to(&shipped(), "gguf:Q4_0").contains("exists"));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    for bad in ["gguf:Q9_0", "gguf:Q2_K", "gguf:", "gguf"] {
        assert!(fails(2, &["convert", s(&shipped()), "--to", bad, "--out", s(&file)]).contains("Q4_K_M"), "{bad}");
    }
    let bert = ["convert", "models/none", "--to", "gguf:F16", "--out", s(&file)];
    fails(1, &bert);
}

#[test]
fn mixtures_fall_back_by_width_and_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let model = shipped();
    let args = ["convert", s(&model), "--to", "gguf:Q4_K_M", "--out", s(&file), "--dry-run"];
    let planned = tersor_json(&args);
    assert!(!file.exists() && planned["written"] == false);
    // `plan --to` gives the same output, and excludes the other options of `plan`.
    let listed = tersor_json(&["plan", s(&model), "--to", "gguf:Q4_K_M"]);
    assert_eq!((&listed["tensors"], &listed["fallbacks"]), (&planned["tensors"], &planned["fallbacks"]));
    fails(2, &["plan", s(&model), "--to", "gptq"]);
    fails(2, &["plan", s(&model), "--to", "gguf:Q4_K_M", "--bits", "4"]);
    let made = convert(&shipped(), "gguf:Q4_K_M", &file);
    assert_eq!((&planned["tensors"], &planned["fallbacks"]), (&made["tensors"], &made["fallbacks"]));
    // No row here is a multiple of 256: 28 matrices, and the embedding, which is also the head.
    let fallbacks = made["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 29);
    let of = |name: &str| fallbacks.iter().find(|f| f["tensor"] == name).unwrap()["type"].clone();
    assert_eq!(of("model.embed_tokens.weight"), "Q8_0");
    assert_eq!(of("model.layers.0.mlp.up_proj.weight"), "Q5_0");
    // With four layers, no layer is in the first eighth; the last one is in the last eighth, and the third one is selected as every third.
    let down: Vec<Json> = (0..4).map(|l| of(&format!("model.layers.{l}.mlp.down_proj.weight"))).collect();
    assert_eq!(down, ["Q5_0", "Q5_0", "Q8_0", "Q8_0"]);
    assert!(perplexity(&file) / perplexity(&shipped()) < 1.05);
}
