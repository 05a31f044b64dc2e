//! Networks rotated into the principal directions of their activations: predictions are unchanged without rounding, and the errors are in the order that the paper claims.

mod common;

use common::*;
use serde_json::Value as Json;
use tersor::core::{Exec, Input, Limits, MatViewMut, OpSpec, Rotation, TensorSource, Write, metrics};

/// Windows of the calibration text, and tokens per window.
const WINDOWS: [&str; 2] = ["16", "64"];

/// The stage of a rotation by Hadamard matrices, or by principal directions with (`resq`) or without (`pca`) a random rotation inside each part.
fn rotation(how: &str) -> &'static str {
    match how {
        "hadamard" => "{ kind = \"rotate\" }",
        "resq" => "{ kind = \"rotate\", by = \"pca\", mix = true }",
        _ => "{ kind = \"rotate\", by = \"pca\" }",
    }
}

#[test]
fn principal_directions_change_nothing_until_something_is_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut models = vec![shipped()];
    for (kind, class) in [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("llama", "LlamaForCausalLM")] {
        let mut tiny = Tiny::new(kind, class);
        if kind == "llama" {
            tiny.config["tie_word_embeddings"] = false.into();
            tiny.add("lm_head.weight", &[2048, 48]);
            tiny.set("model.layers.1.input_layernorm.weight", 3, 0.0);
        }
        if kind == "qwen2" {
            tiny.add("model.layers.0.self_attn.o_proj.bias", &[48]);
            tiny.add("model.layers.0.self_attn.v_proj.bias", &[24]);
        }
        models.push(tiny.write(&dir.path().join(kind)));
    }
    for model in &models {
        for how in ["resq", "pca"] {
            let toml = dir.path().join("exact.toml");
            // Parts of the columns with f32 values, so that the attention output is permuted into the order of its subspaces.
            let head = format!("network = [{}]", rotation(how));
            std::fs::write(&toml, recipe("exact", &head, &[(ALL, "{ kind = \"f32\" }")])).unwrap();
            let out = dir.path().join("out");
            let list = compress(model, s(&toml), &out, WINDOWS);
            let made = tersor_json(&with(&list, &[]));
            let planned = tersor_json(&["plan", s(model), "--recipe", s(&toml)]);
            assert_eq!(made["weight_bytes"], planned["weight_bytes"]);
            let found = eval(&out, model, &[]);
            assert!(kl(&found) < 1e-8, "{} {how}: {found}", model.display());
            tersor_json(&["verify", s(&out)]);
            // Other programs load it like any network.
            let plain = dir.path().join("plain");
            tersor_json(&["convert", s(&out), "--to", "f32", "--out", s(&plain)]);
            assert!(kl(&eval(&plain, model, &[])) < 1e-8);
            let kept = tersor::formats::Model::open(&plain, &Limits::default()).unwrap().tensors();
            assert!(!kept.iter().any(|t| t.name.contains("rotation")));
            std::fs::remove_dir_all(plain).unwrap();
            // Eight bits, also in the directions of the keys.
            assert!(kl(&eval(&out, model, &["--kv", "int8-pca"])) < 1e-3);
            std::fs::remove_dir_all(out).unwrap();
        }
    }
}

#[test]
fn each_piece_is_worth_something_and_costs_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let model = shipped();
    let made = |recipe: &str| {
        let out = dir.path().join("out");
        run(&compress(&model, recipe, &out, WINDOWS), &[]);
        let found = eval(&out, &model, &[]);
        let plain = eval(&out, &model, &["--kv", "f32"]);
        std::fs::remove_dir_all(&out).unwrap();
        (found, plain)
    };
    let (resq, plain) = made("w4a4kv4-resq");
    let (rounded, _) = made("w4a4kv4-resq-rtn");
    let (rotated, _) = made("w4a4kv4-hadamard");
    let (nothing, _) = made("w4a4kv4-rtn");
    assert!(kl(&resq) < kl(&rounded) && kl(&rounded) < kl(&rotated) && kl(&rotated) < kl(&nothing));
    assert!(kl(&plain) < kl(&resq));
    // Four layers, two key/value heads of 32 dimensions: 28 of 4 bits, 4 of 8, each part with a scale and a minimum.
    assert_eq!(resq["kv_bytes_per_token"], 4 * 2 * 2 * (14 + 4 + 4 + 4));
    // A model without stored rotations cannot use them in its cache.
    let text = root().join("examples/data/wiki-eval.txt");
    let said = fails(1, &["eval", s(&model), "--text", s(&text), "--kv", "int4-pca", "--windows", "1"]);
    assert!(said.contains("rotation of the keys") && said.contains("principal directions"), "{said}");
}

#[test]
fn other_methods_take_the_subspaces() {
    let dir = tempfile::tempdir().unwrap();
    let (model, toml, out) = (shipped(), dir.path().join("r.toml"), dir.path().join("out"));
    let run = |rotation: &str, stages: &str| {
        let _ = std::fs::remove_dir_all(&out);
        let rules = [("\"@embedding\"", "{ kind = \"f16\" }"), ("\"*.layers.*\"", stages)];
        std::fs::write(&toml, recipe("r", &format!("network = [{rotation}]"), &rules)).unwrap();
        run(&compress(&model, s(&toml), &out, WINDOWS), &[]);
        tersor_json(&["verify", s(&out)]);
        kl(&eval(&out, &model, &[]))
    };
    let act = |bits: u32| format!("{{ kind = \"act\", bits = {bits}, scale = \"asym\" }}");
    let split = |kind: &str| {
        let part = |share: f64, bits: u32| {
            format!("{{ share = {share}, stages = [{{ kind = \"{kind}\", bits = {bits} }}, {}] }}", act(bits))
        };
        format!("{{ kind = \"split\", parts = [{}, {}, {}] }}", part(0.125, 2), part(0.75, 4), part(0.125, 6))
    };
    let rotation = |by: &str| format!("{{ kind = \"rotate\", by = {by}, parts = [0.125, 0.75, 0.125] }}");
    // The paper's variant with equal bits, the same with a correction, another rotation, and none.
    let resq = rotation("\"pca\", mix = true");
    let equal = run(&resq, &split("gptq"));
    let even = run("{ kind = \"rotate\" }", &format!("{{ kind = \"gptq\" }}, {}", act(4)));
    let corrected = run(&resq, &format!("{}, {{ kind = \"lqer\", rank = 8 }}", split("gptq")));
    assert!(corrected < equal, "{corrected} {equal}");
    let anywhere = run(&rotation("\"orthogonal\""), &split("rtn"));
    let nowhere = run("", &split("gptq"));
    assert!(equal < anywhere && equal < nowhere && equal < 2.0 * even, "{equal} {even} {anywhere} {nowhere}");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (toml, out) = (dir.path().join("r.toml"), dir.path().join("out"));
    let model = shipped();
    let refuse = |code: i32, head: &str, rule: (&str, &str), more: &[&str]| {
        std::fs::write(&toml, recipe("r", head, &[rule])).unwrap();
        let list = compress(&model, s(&toml), &out, WINDOWS);
        fails(code, &with(&list, more))
    };
    let (rtn, gptq) = ((ALL, "{ kind = \"rtn\" }"), ("\"*.layers.*\"", "{ kind = \"gptq\" }"));
    // Statistics of the original network cannot be used for the rotated one.
    for how in ["resq", "hadamard"] {
        let said = refuse(2, &format!("network = [{}]\nstatistics = \"original\"", rotation(how)), gptq, &[]);
        assert!(said.contains("network") && said.contains("sequential"), "{said}");
    }
    let cache = "cache = [{ kind = \"int\", high = -1 }]";
    assert!(refuse(2, cache, rtn, &[]).contains("cache 1, stage 1 (`int`), `high`"));
    // Without a text there are no directions.
    std::fs::write(&toml, recipe("r", &format!("network = [{}]", rotation("resq")), &[rtn])).unwrap();
    let said = fails(2, &["compress", s(&model), "--recipe", s(&toml), "--out", s(&out)]);
    assert!(said.contains("--calib"), "{said}");
    assert!(!out.exists() || files(&out).keys().all(|n| !n.ends_with(".safetensors")));
    // A value that is not finite gives an error with the name of the tensor.
    let mut tiny = Tiny::llama();
    tiny.set("model.layers.1.self_attn.k_proj.weight", 2, f32::NAN);
    let bad = tiny.write(&dir.path().join("m"));
    let said = fails(1, &with(&compress(&bad, "w4a4kv4-resq", &out, WINDOWS), &[]));
    assert!(said.contains("k_proj"), "{said}");
    // Stored key rotations that are not orthogonal are refused when the model runs.
    let list = compress(&model, "w4a4kv4-resq-rtn", &out, WINDOWS);
    tersor_json(&with(&list, &[]));
    let file = out.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header: Json = {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        serde_json::from_slice(&bytes[8..8 + n]).unwrap()
    };
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let at = header["model.layers.0.self_attn.k_rotation"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + at..start + at + 4].copy_from_slice(&9f32.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let text = root().join("examples/data/wiki-eval.txt");
    let said = fails(1, &["eval", s(&out), "--text", s(&text), "--windows", "1"]);
    assert!(said.contains("k_rotation"), "{said}");
}

/// Computes the output of an operator from its specification and tensors alone, with every rounding done in floats.
fn in_floats(spec: &OpSpec, name: &str, file: &dyn TensorSource, x: &[f32]) -> Vec<f64> {
    let [rows, cols] = spec.shape;
    let bytes = |tensor: &str| {
        let name = format!("{name}.{tensor}");
        let mut bytes = vec![0u8; file.info(&name).unwrap().bytes().unwrap()];
        file.read_at(&name, 0, &mut bytes).unwrap();
        bytes
    };
    let words = |tensor: &str| bytes(tensor).as_chunks::<4>().0.to_vec();
    let inner = format!("{name}.op");
    match spec.kind.as_str() {
        "rotated" => {
            let signs: Vec<f32> = bytes("signs").iter().map(|s| f32::from(*s as i8)).collect();
            let factor: Vec<f32> = words("factor").into_iter().map(f32::from_le_bytes).collect();
            let rotation = Rotation::new(&factor, spec.get_size("power").unwrap(), &signs).unwrap();
            let mut x = x.to_vec();
            rotation.forward(tersor::core::Isa::detect(), &mut x);
            in_floats(&spec.parts["op"], &inner, file, &x)
        }
        "permuted" => {
            let order: Vec<u32> = words("order").into_iter().map(u32::from_le_bytes).collect();
            let x: Vec<f32> = x.chunks(cols).flat_map(|row| order.iter().map(|i| row[*i as usize])).collect();
            in_floats(&spec.parts["op"], &inner, file, &x)
        }
        "split" => {
            let (mut at, mut sum) = (0, vec![0f64; x.len() / cols * rows]);
            for i in 0..spec.parts.len() {
                let part = &spec.parts[&format!("part{i}")];
                let own: Vec<f32> = x.chunks(cols).flat_map(|r| r[at..at + part.shape[1]].to_vec()).collect();
                at += part.shape[1];
                let more = in_floats(part, &format!("{name}.part{i}"), file, &own);
                sum.iter_mut().zip(more).for_each(|(a, b)| *a += b);
            }
            assert_eq!(at, cols);
            sum
        }
        "quantized_inputs" => {
            assert_eq!(spec.get_text("activations").unwrap(), "asymmetric");
            let max = ((1u32 << spec.get_int("activation_bits").unwrap()) - 1) as f32;
            let run = cols / spec.get_size("activation_runs").unwrap_or(1);
            let mut x = x.to_vec();
            for part in x.chunks_mut(run) {
                let (lo, hi) = part.iter().fold((0f32, 0f32), |(a, b), v| (a.min(*v), b.max(*v)));
                let scale = (hi - lo) / max;
                let zero = (-lo / scale).round_ties_even();
                part.iter_mut()
                    .for_each(|v| *v = ((*v / scale).round_ties_even() + zero).clamp(0.0, max) * scale - zero * scale);
            }
            in_floats(&spec.parts["op"], &inner, file, &x)
        }
        _ => {
            let op = tersor::registry().load(spec, name, file).unwrap();
            let mut w = vec![0f32; rows * cols];
            op.decompress_rows(0..rows, &mut w, &Exec::new()).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
        }
    }
}

#[test]
fn integers_and_rounded_floats_agree_on_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    for (recipe, runs) in [("w4a4kv4-resq", true), ("w4a4kv4-hadamard-gptq", false)] {
        let out = dir.path().join(recipe);
        run(&compress(&shipped(), recipe, &out, WINDOWS), &[]);
        let model = tersor::formats::Model::open(&out, &Limits::default()).unwrap();
        let manifest = tersor::formats::json::read(&out.join("tersor.json"), &Limits::default()).unwrap();
        let manifest = tersor::models::Manifest::from_json(manifest).unwrap();
        let file = model.stored().unwrap();
        let mut seen = 0;
        for (name, spec) in manifest.specs.iter().filter(|(n, _)| n.starts_with("model.layers.")) {
            let op = tersor::registry().load(spec, name, file).unwrap();
            let ([rows, cols], tokens) = (op.shape(), 5);
            let x: Vec<f32> =
                (0..tokens * cols).map(|i| ((i * i % 977) as f32 / 488.0 - 1.0) * (1.0 + (i % 13) as f32)).collect();
            let mut found = vec![0f32; tokens * rows];
            let input = Input::new(&x, [tokens, cols]).unwrap();
            op.apply(&input, MatViewMut::new(&mut found, [tokens, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
            let want: Vec<f32> = in_floats(spec, name, file, &x).into_iter().map(|v| v as f32).collect();
            let error = (metrics::squared_error(&want, &found) / metrics::energy(&want)).sqrt();
            assert!(error < 1e-4, "{recipe}, {name}: {error}");
            let json = tersor::formats::json::from_spec(spec).to_string();
            assert_eq!(json.contains("split"), runs && !name.contains("down_proj"), "{name}");
            // The attention output has a scale for each head.
            assert_eq!(json.contains("activation_runs"), name.contains("o_proj"), "{name} {json}");
            seen += 1;
        }
        assert_eq!(seen, 28, "{recipe}");
    }
}
