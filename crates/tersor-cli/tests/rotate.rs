//! Rotated networks and quantized caches: predictions are unchanged without rounding, and the bytes do not depend on how the work is distributed.

mod common;

use std::path::Path;

use common::*;

/// Windows of the calibration text, and tokens per window.
const WINDOWS: [&str; 2] = ["16", "64"];

#[test]
fn a_rotated_network_predicts_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut models = vec![shipped()];
    for (kind, class) in [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("llama", "LlamaForCausalLM")] {
        let mut tiny = Tiny::new(kind, class);
        if kind == "llama" {
            // A head that is not tied, and norms with zeros.
            tiny.config["tie_word_embeddings"] = false.into();
            tiny.add("lm_head.weight", &[2048, 48]);
            tiny.set("model.layers.1.input_layernorm.weight", 3, 0.0);
        }
        if kind == "qwen2" {
            tiny.add("model.layers.0.self_attn.o_proj.bias", &[48]);
            tiny.add("model.layers.1.mlp.down_proj.bias", &[48]);
        }
        models.push(tiny.write(&dir.path().join(kind)));
    }
    for model in &models {
        for how in ["hadamard", "orthogonal"] {
            let toml = dir.path().join("exact.toml");
            let head = format!("network = [{{ kind = \"rotate\", by = \"{how}\" }}]");
            std::fs::write(&toml, recipe("exact", &head, &[(ALL, "{ kind = \"f32\" }")])).unwrap();
            let out = dir.path().join("out");
            let made = tersor_json(&["compress", s(model), "--recipe", s(&toml), "--out", s(&out)]);
            let planned = tersor_json(&["plan", s(model), "--recipe", s(&toml)]);
            assert_eq!(made["weight_bytes"], planned["weight_bytes"]);
            let found = eval(&out, model, &[]);
            assert!(found["kl_mean"].as_f64().unwrap() < 1e-8, "{} {how}: {found}", model.display());
            let (a, b) =
                (found["perplexity"].as_f64().unwrap(), eval(model, model, &[])["perplexity"].as_f64().unwrap());
            assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
            // The hidden states are different.
            let embedding = |m: &Path| {
                let plain = dir.path().join("plain");
                tersor_json(&["convert", s(m), "--to", "f32", "--out", s(&plain)]);
                let model = tersor::formats::Model::open(&plain, &tersor::core::Limits::default()).unwrap();
                let rows = model.rows("model.embed_tokens.weight").unwrap();
                let values = tersor::core::read_finite(&*rows, 0..1).unwrap();
                drop(rows);
                std::fs::remove_dir_all(plain).unwrap();
                values
            };
            assert_ne!(embedding(&out), embedding(model));
            tersor_json(&["verify", s(&out)]);
            std::fs::remove_dir_all(out).unwrap();
        }
    }
}

#[test]
fn tasks_and_threads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = shipped();
    let recipe = "w4a4kv4-g64-hadamard-gptq";
    let [whole, parts] = ["whole", "parts"].map(|n| dir.path().join(n));
    let made = run(&compress(&model, recipe, &whole, WINDOWS), &["--threads", "1"]);
    let planned = tersor_json(&["plan", s(&model), "--recipe", recipe]);
    assert_eq!(made["weight_bytes"], planned["weight_bytes"]);
    let list = compress(&model, recipe, &parts, WINDOWS);
    for task in 0..planned["tasks"].as_array().unwrap().len() {
        run(&list, &["--task", &task.to_string(), "--threads", "3"]);
    }
    run(&list, &["--merge"]);
    assert_eq!(result(&whole), result(&parts));
    // The embedding and the head, which were tied, are both stored.
    let inspected = tersor_json(&["inspect", s(&whole)]);
    let tensors = inspected["tensors"].as_array().unwrap();
    let has = |n: &str| tensors.iter().any(|t| t["name"].as_str().unwrap().starts_with(n));
    assert!(has("lm_head.weight") && has("model.embed_tokens.weight"));
    let found = eval(&whole, &model, &[]);
    assert!(found["kl_mean"].as_f64().unwrap() < 0.5, "{found}");
    // The seed determines the rotation.
    let other = dir.path().join("other");
    run(&compress(&model, recipe, &other, WINDOWS), &["--seed", "7"]);
    assert_ne!(result(&whole)["model.safetensors"], result(&other)["model.safetensors"]);
}

#[test]
fn figures_of_channels_are_those_behind_the_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (shipped(), dir.path().join("out"));
    let toml = dir.path().join("r.toml");
    let far = |more: &str| {
        let _ = std::fs::remove_dir_all(&out);
        let stages = format!("{{ kind = \"rtn\", bits = 3 }}{more}");
        let rules = [(ENDS, "{ kind = \"f16\" }"), (ALL, &stages)];
        std::fs::write(&toml, recipe("r", "network = [{ kind = \"rotate\" }]", &rules)).unwrap();
        run(&compress(&model, s(&toml), &out, WINDOWS), &[]);
        kl(&eval(&out, &model, &[]))
    };
    // A correction by the magnitude of the inputs, and static ranges, need statistics of the rotated inputs of the down projections.
    let (plain, corrected) = (far(""), far(", { kind = \"l2qer\", rank = 16 }"));
    assert!(corrected < 0.8 * plain, "{corrected} {plain}");
    let fixed = far(", { kind = \"act\", scale = \"static\" }");
    assert!(fixed < 1.5 * plain, "{fixed} {plain}");
}

#[test]
fn caches_are_as_the_recipe_says_unless_asked_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (shipped(), dir.path().join("out"));
    run(&compress(&model, "w8a8kv4-rtn", &out, WINDOWS), &[]);
    let (recorded, plain) = (eval(&out, &model, &[]), eval(&out, &model, &["--kv", "f32"]));
    // Four layers, two key/value heads of 32 dimensions: floats, or 4-bit codes with a scale and a minimum.
    assert_eq!(
        (&plain["kv_bytes_per_token"], &recorded["kv_bytes_per_token"]),
        (&2048.into(), &(4 * 2 * 2 * (16 + 4)).into())
    );
    assert!(kl(&plain) < kl(&recorded) && kl(&recorded) < 0.2, "{plain} {recorded}");
    assert!(kl(&eval(&model, &model, &["--kv", "int8"])) < kl(&eval(&model, &model, &["--kv", "int3-hadamard"])));
    let text = tersor_json(&["generate", s(&out), "--prompt", "The river", "--tokens", "8", "--kv", "int4-high4"]);
    assert_eq!(text["tokens"].as_array().unwrap().len(), 8);
    let wiki = root().join("examples/data/wiki-eval.txt");
    for bad in ["int1", "q4", "int4-high33"] {
        fails(2, &["eval", s(&model), "--text", s(&wiki), "--kv", bad, "--windows", "1"]);
    }
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (toml, out) = (dir.path().join("r.toml"), dir.path().join("out"));
    let mut tiny = Tiny::llama();
    tiny.set("model.layers.0.post_attention_layernorm.weight", 2, f32::INFINITY);
    let model = tiny.write(&dir.path().join("m"));
    let refuse = |code: i32, by: &str, rules: &[(&str, &str)]| {
        std::fs::write(&toml, recipe("r", &format!("network = [{{ kind = \"rotate\", by = \"{by}\" }}]"), rules))
            .unwrap();
        fails(code, &with(&compress(&model, s(&toml), &out, WINDOWS), &[]))
    };
    let rtn = (ALL, "{ kind = \"rtn\" }");
    assert!(refuse(2, "spin", &[rtn]).contains("hadamard, orthogonal, pca"));
    let smooth = (ALL, "{ kind = \"awq\" }, { kind = \"rtn\" }");
    assert!(refuse(2, "hadamard", &[smooth]).contains("it excludes stages"));
    let said = refuse(1, "hadamard", &[rtn]);
    assert!(said.contains("post_attention_layernorm"), "{said}");
    assert!(!out.exists() || files(&out).keys().all(|n| !n.ends_with(".safetensors")));
    let head = ("\"@head\"", "{ kind = \"gptq\" }");
    assert!(refuse(1, "hadamard", &[head, rtn]).contains("lm_head.weight"));
}
