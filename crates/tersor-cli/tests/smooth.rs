//! Smoothing from the recipe to the output directory: predictions are unchanged without rounding, and the bytes do not depend on how the work is
//! distributed.

mod common;

use std::path::Path;

use common::*;

/// Windows of the calibration text, and tokens per window.
const WINDOWS: [&str; 2] = ["8", "64"];

/// A recipe that smooths without rounding.
fn exact(dir: &Path, how: &str) -> String {
    let path = dir.join(format!("{how}.toml"));
    let stages = format!("{{ kind = \"{how}\" }}, {{ kind = \"f32\" }}");
    let text = recipe(&format!("exact-{how}"), "", &[("\"model.layers.*\"", &stages)]);
    std::fs::write(&path, text).unwrap();
    s(&path).to_string()
}

#[test]
fn folding_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // With grouped heads the output projection is not smoothed. With as many key/value heads as query heads, its factors are folded into the values and
    // their biases.
    let mut whole = Tiny::new("qwen2", "Qwen2ForCausalLM");
    whole.config["num_key_value_heads"] = 4.into();
    for layer in 0..2 {
        for part in ["k", "v"] {
            whole.add(&format!("model.layers.{layer}.self_attn.{part}_proj.weight"), &[48, 48]);
            whole.add(&format!("model.layers.{layer}.self_attn.{part}_proj.bias"), &[48]);
        }
    }
    whole.dtype = tersor::core::DType::BF16;
    let whole = whole.write(&dir.path().join("m"));
    for model in [&shipped(), &whole] {
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        for how in ["smoothquant", "percentile", "awq", "adaptive"] {
            let out = dir.path().join(format!("{name}-{how}"));
            run(&compress(model, &exact(dir.path(), how), &out, WINDOWS), &[]);
            let found = eval(&out, model, &[]);
            // Without a quantization error AWQ and QQQ find no factors.
            assert!(found["kl_mean"].as_f64().unwrap() < 1e-6, "{name} {how}: {found}");
            let (a, b) =
                (found["perplexity"].as_f64().unwrap(), eval(model, model, &[])["perplexity"].as_f64().unwrap());
            assert!((a / b - 1.0).abs() < 1e-4, "{name} {how}: {a} {b}");
            tersor_json(&["verify", s(&out)]);
            if how == "smoothquant" {
                let norm = |dir: &Path| {
                    let model = tersor::formats::Model::open(dir, &tersor::core::Limits::default()).unwrap();
                    let rows = model.rows("model.layers.0.input_layernorm.weight").unwrap();
                    tersor::core::read_finite(&*rows, 0..1).unwrap()
                };
                assert_ne!(norm(&out), norm(model), "something was moved");
            }
        }
    }
}

#[test]
fn the_papers_methods_run_and_help() {
    let dir = tempfile::tempdir().unwrap();
    let far = |recipe: &str| {
        let out = dir.path().join("out");
        let mut list = compress(&shipped(), recipe, &out, WINDOWS);
        list.truncate(list.len() - 4);
        let made = run(&list, &["--calib-windows", "24", "--ctx", "128"]);
        let planned = tersor_json(&["plan", s(&shipped()), "--recipe", recipe]);
        assert_eq!(made["weight_bytes"], planned["weight_bytes"], "{recipe}");
        tersor_json(&["verify", s(&out)]);
        let found = kl(&eval(&out, &shipped(), &[]));
        std::fs::remove_dir_all(out).unwrap();
        found
    };
    // Each method compared with rounding on the same grid.
    let narrow = dir.path().join("narrow.toml");
    let stages = "{ kind = \"rtn\", grid = \"sym_narrow\" }, { kind = \"act\" }";
    std::fs::write(&narrow, recipe("narrow", "", &[(ENDS, RTN8), (ALL, stages)])).unwrap();
    for (better, plain) in
        [("w4a8-g64-dgq", "w4a8-rtn"), ("w4a8-g64-qqq", "w4a8-g64-rtn-sym"), ("w4a8-qqq", s(&narrow))]
    {
        let (plain, found) = (far(plain), far(better));
        assert!(found < plain, "{better}: {found} for {plain}");
    }
    // Combinations that are in no paper.
    let toml = dir.path().join("mixed.toml");
    let stages = "{ kind = \"percentile\" }, { kind = \"dgq\" }, { kind = \"l2qer\", rank = 8 }, { kind = \"act\" }";
    std::fs::write(&toml, recipe("mixed", "", &[("\"model.layers.*\"", stages)])).unwrap();
    for recipe in [s(&toml), "w3-g64-awq-gptq", "w4a8-g64-smooth-gptq", "w3-g64-awq"] {
        let out = dir.path().join("composed");
        run(&compress(&shipped(), recipe, &out, WINDOWS), &[]);
        assert!(kl(&eval(&out, &shipped(), &[])) < 0.2, "{recipe}");
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn tasks_and_threads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["w4a8-g64-dgq", "w3-g64-awq-gptq"] {
        let (whole, parts) = (dir.path().join(format!("{recipe}-whole")), dir.path().join(format!("{recipe}-parts")));
        run(&compress(&shipped(), recipe, &whole, WINDOWS), &["--threads", "1"]);
        let list = compress(&shipped(), recipe, &parts, WINDOWS);
        let planned = tersor_json(&["plan", s(&shipped()), "--recipe", recipe]);
        for task in 0..planned["tasks"].as_array().unwrap().len() {
            run(&list, &["--task", &task.to_string(), "--threads", "3"]);
        }
        run(&list, &["--merge"]);
        assert_eq!(result(&whole), result(&parts), "{recipe}");
        assert_eq!(run(&list, &[])["finished_before"], true);
    }
}

#[test]
fn what_cannot_be_smoothed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (out, toml) = (dir.path().join("out"), dir.path().join("r.toml"));
    let refuse = |head: &str, rules: &[(&str, &str)]| {
        std::fs::write(&toml, recipe("r", head, rules)).unwrap();
        fails(2, &with(&compress(&shipped(), s(&toml), &out, WINDOWS), &[]))
    };
    let awq = "{ kind = \"awq\" }, { kind = \"rtn\" }";
    let said = refuse("", &[("\"@q\"", awq), (ALL, "{ kind = \"rtn\" }")]);
    assert!(said.contains("model.layers.0.self_attn.qkv"), "{said}");
    assert!(refuse("", &[("\"lm_head*\"", awq)]).contains("none here"));
    let smooth = "{ kind = \"smoothquant\" }, { kind = \"rtn\" }";
    assert!(refuse("statistics = \"original\"", &[(ALL, smooth)]).contains("sequential"));
    let twice = "{ kind = \"smoothquant\" }, { kind = \"awq\" }, { kind = \"rtn\" }";
    assert!(refuse("", &[(ALL, twice)]).contains("only one stage"));
    let said = fails(2, &["compress", s(&shipped()), "--recipe", "w4a8-dgq", "--out", s(&out)]);
    assert!(said.contains("--calib"), "{said}");
    // Weights that are not finite give an error with their name, and no output.
    let mut tiny = Tiny::llama();
    tiny.set("model.layers.1.mlp.up_proj.weight", 5, f32::NAN);
    let model = tiny.write(&dir.path().join("m"));
    let said = fails(1, &with(&compress(&model, "w4a8-g16-dgq", &out, WINDOWS), &[]));
    assert!(said.contains("up_proj"), "{said}");
}

#[test]
fn activations_of_every_kind_run() {
    let dir = tempfile::tempdir().unwrap();
    let (toml, out) = (dir.path().join("r.toml"), dir.path().join("out"));
    let far_with = |before: &str, more: &str| {
        let stages = format!("{before}{RTN8}, {{ kind = \"act\"{more} }}");
        std::fs::write(&toml, recipe("r", "", &[("\"model.layers.*\"", &stages)])).unwrap();
        let made = run(&compress(&shipped(), s(&toml), &out, WINDOWS), &[]);
        let planned = tersor_json(&["plan", s(&shipped()), "--recipe", s(&toml)]);
        assert_eq!(made["weight_bytes"], planned["weight_bytes"], "{more}");
        let found = kl(&eval(&out, &shipped(), &[]));
        std::fs::remove_dir_all(&out).unwrap();
        found
    };
    let far = |more: &str| far_with("", more);
    let scale = |name: &str| format!(", scale = \"{name}\"");
    let token = far("");
    assert!(far(&scale("token")) == token && token < 0.01);
    for (more, max) in [
        (scale("tensor"), 0.05),
        (scale("static"), 0.2),
        (scale("static") + ", range = \"mse\"", 0.2),
        (scale("static") + ", range = 99.99", 0.5),
        (scale("static_channel"), 0.05),
        (scale("mxint"), 0.01),
    ] {
        let found = far(&more);
        assert!(found < max, "{more}: {found}");
    }
    assert!(far_with("{ kind = \"smoothquant\" }, ", &scale("static")) < 0.2);
    // Coarser activation scales have a larger error.
    assert!(token < far(&scale("tensor")));
}

#[test]
fn integers_and_rounded_floats_agree_on_every_layer() {
    use tersor::core::{Exec, Input, Isa, Limits, MatViewMut, Write, metrics};
    use tersor::operators::ActQuant;
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["w4a8-g64-dgq", "w4a8-g64-qqq", "w4a8-qqq", "w4a8-l2qer-r8", "w4a8-g64-smooth", "w8a8-awq"] {
        let out = dir.path().join(recipe);
        run(&compress(&shipped(), recipe, &out, WINDOWS), &[]);
        let model = tersor::formats::Model::open(&out, &Limits::default()).unwrap();
        let manifest = tersor::formats::json::read(&out.join("tersor.json"), &Limits::default()).unwrap();
        let manifest = tersor::models::Manifest::from_json(manifest).unwrap();
        let mut seen = 0;
        for (name, spec) in manifest.specs.iter().filter(|(n, _)| n.starts_with("model.layers.")) {
            assert_eq!(spec.kind, "quantized_inputs", "{name}");
            let registry = tersor::registry();
            let op = registry.load(spec, name, model.stored().unwrap()).unwrap();
            let inner = registry.load(&spec.parts["op"], &format!("{name}.op"), model.stored().unwrap()).unwrap();
            let ([rows, cols], tokens) = (op.shape(), 5);
            let x: Vec<f32> =
                (0..tokens * cols).map(|i| ((i * i % 977) as f32 / 488.0 - 1.0) * (1.0 + (i % 13) as f32)).collect();
            let mut found = vec![0f32; tokens * rows];
            let input = Input::new(&x, [tokens, cols]).unwrap();
            op.apply(&input, MatViewMut::new(&mut found, [tokens, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
            let (codes, scales) = ActQuant::per_token(8).unwrap().encode(Isa::detect(), &x, cols).unwrap();
            let rounded = ActQuant::decode(&codes, &scales, &[], cols);
            let mut w = vec![0f32; rows * cols];
            inner.decompress_rows(0..rows, &mut w, &Exec::new()).unwrap();
            let dot =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
            let want: Vec<f32> = rounded.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(w, x))).collect();
            let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
            assert!(error < 1e-5, "{recipe}, {name}: {error}");
            seen += 1;
        }
        assert_eq!(seen, 28, "{recipe}");
    }
}
