//! GPTQ checkpoints, unpacked by their published layout.

mod common;

use common::*;
use tersor::core::{Limits, read_finite};
use tersor::formats::Model;
use tersor::formats::json;

fn words(model: &Model, name: &str) -> Vec<u32> {
    let stored = model.stored().unwrap();
    let mut bytes = vec![0u8; stored.info(name).unwrap().bytes().unwrap()];
    stored.read_at(name, 0, &mut bytes).unwrap();
    bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Code `i` of a sequence in words that are `stride` apart.
fn code(words: &[u32], i: usize, bits: usize, stride: usize, column: usize) -> u32 {
    (0..bits)
        .map(|b| i * bits + b)
        .enumerate()
        .map(|(b, at)| (words[at / 32 * stride + column] >> (at % 32) & 1) << b)
        .sum()
}

#[test]
fn codes_zeros_and_scales_mean_what_was_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = root().join("examples/models/tiny-wiki");
    let module = "model.layers.2.mlp.down_proj";
    let weight = format!("{module}.weight");
    for (recipe, bits, group, to) in [
        ("w4-g64-rtn", 4usize, 64usize, "gptq-v2"),
        ("w3-g32-rtn-sym", 3, 32, "gptq"),
        ("w2-g32-rtn-sym", 2, 32, "gptq"),
        ("w8-rtn-sym", 8, 384, "gptq-v2"),
    ] {
        let [out, plain, made] = ["out", "plain", "made"].map(|n| dir.path().join(format!("{recipe}-{n}")));
        tersor_json(&["compress", s(&shipped), "--recipe", recipe, "--out", s(&out)]);
        tersor_json(&["convert", s(&out), "--to", "f32", "--out", s(&plain)]);
        tersor_json(&["convert", s(&out), "--to", to, "--out", s(&made)]);
        let open = |p| Model::open(p, &Limits::default()).unwrap();
        let (plain, files) = (open(&plain), open(&made));
        let rows = plain.rows(&weight).unwrap();
        let [n, cols] = rows.shape();
        let ours = read_finite(&*rows, 0..n).unwrap();
        let part = |p: &str| words(&files, &format!("{module}.{p}"));
        let (weights, zeros, index) = (part("qweight"), part("qzeros"), part("g_idx"));
        let scales = format!("{module}.scales");
        let scales = files.rows(&scales).unwrap();
        let scales = read_finite(&*scales, 0..cols / group).unwrap();
        let (per, less) = (n * bits / 32, u32::from(to == "gptq"));
        for r in 0..n {
            for k in 0..cols {
                let g = index[k] as usize;
                assert_eq!(g, k / group);
                let zero = code(&zeros[g * per..], r, bits, 1, 0) + less;
                let value = scales[g * n + r] * (code(&weights, k, bits, n, r) as f32 - zero as f32);
                assert_eq!(value, ours[r * cols + k], "{recipe}, row {r}, column {k}");
            }
        }
        let config = json::read(&made.join("config.json"), &Limits::default()).unwrap();
        let q = &config["quantization_config"];
        assert_eq!((&q["bits"], &q["sym"]), (&(bits as u64).into(), &recipe.ends_with("sym").into()));
        assert_eq!(q["checkpoint_format"], if less == 1 { "gptq" } else { "gptq_v2" });
    }
    // Matrices with other settings than the majority are listed by name.
    let (mixed, made) = (dir.path().join("mixed"), dir.path().join("mixed-made"));
    let recipe = dir.path().join("mixed.toml");
    let rules = [
        ("\"*.1.mlp.up_proj*\"", "{ kind = \"rtn\", bits = 8, group = 32 }"),
        ("\"model.layers.*\"", "{ kind = \"rtn\", bits = 4, group = 32 }"),
    ];
    std::fs::write(&recipe, common::recipe("mixed", "", &rules)).unwrap();
    tersor_json(&["compress", s(&shipped), "--recipe", s(&recipe), "--out", s(&mixed)]);
    tersor_json(&["convert", s(&mixed), "--to", "gptq-v2", "--out", s(&made)]);
    let config = json::read(&made.join("quantize_config.json"), &Limits::default()).unwrap();
    assert_eq!(config["bits"], 4);
    assert_eq!(config["dynamic"]["+:^model\\.layers\\.1\\.mlp\\.up_proj$"]["bits"], 8);
}

#[test]
fn what_the_format_cannot_say_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = root().join("examples/models/tiny-wiki");
    for (recipe, why) in [("w5-g32-rtn", "5 bits"), ("w4-g40-rtn", "groups of 40"), ("w4-nf4", "kind `blockwise`")] {
        let out = dir.path().join(recipe);
        tersor_json(&["compress", s(&shipped), "--recipe", recipe, "--out", s(&out)]);
        let said = fails(1, &["convert", s(&out), "--to", "gptq", "--out", s(&dir.path().join("x"))]);
        assert!(said.contains("model.layers.0.") && said.contains(why), "{said}");
    }
    // Rows of 48 are not a multiple of 32.
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    tersor_json(&["compress", s(&model), "--recipe", "w4-g16-rtn", "--out", s(&out)]);
    let said = fails(1, &["convert", s(&out), "--to", "gptq-v2", "--out", s(&dir.path().join("y"))]);
    assert!(said.contains("multiples of 32"), "{said}");
    // A group without negative values has its zero at code 0, which version 1 cannot store.
    let plain = dir.path().join("plain");
    tersor_json(&["convert", s(&shipped), "--to", "f32", "--out", s(&plain)]);
    let file = plain.join("model.safetensors");
    let name = "model.layers.1.mlp.gate_proj.weight";
    let mut bytes = std::fs::read(&file).unwrap();
    let header =
        tersor::formats::safetensors::Header::read(&tersor::formats::FileAt::open(&file).unwrap(), &Limits::default())
            .unwrap();
    let entry = &header.tensors[name];
    let values = &mut bytes[entry.offset as usize..][..entry.bytes as usize];
    values.chunks_mut(4).for_each(|v| v[3] &= 0x7f);
    std::fs::write(&file, bytes).unwrap();
    let out = dir.path().join("positive");
    tersor_json(&["compress", s(&plain), "--recipe", "w4-g32-rtn", "--out", s(&out)]);
    let said = fails(1, &["convert", s(&out), "--to", "gptq", "--out", s(&dir.path().join("z"))]);
    assert!(said.contains(name) && said.contains("choose gptq-v2"), "{said}");
    tersor_json(&["convert", s(&out), "--to", "gptq-v2", "--out", s(&dir.path().join("v2"))]);
}
