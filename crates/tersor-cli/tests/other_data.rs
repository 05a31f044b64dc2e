//! Calibration with other data than windows of a text: sentences for an encoder, and an importance matrix of llama.cpp.

mod common;

use std::fs;

use common::*;

const SEQUENTIAL: &str = "w3-g32-gptq";

#[test]
fn an_importance_matrix_weighs_the_search_and_does_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let recipe = dir.path().join("r.toml");
    let weighted = "{ kind = \"rtn\", bits = 3, group = 16, mse = true, importance = true }";
    let text = common::recipe("weighted", "", &[("\"*embed*\"", RTN8), (ALL, weighted)]);
    fs::write(&recipe, &text).unwrap();
    // An importance matrix as llama.cpp writes it, with llama.cpp's names.
    let mut file = 14i32.to_le_bytes().to_vec();
    for layer in 0..2 {
        for (name, n) in [
            ("attn_q", 48),
            ("attn_k", 48),
            ("attn_v", 48),
            ("attn_output", 48),
            ("ffn_gate", 48),
            ("ffn_up", 48),
            ("ffn_down", 80),
        ] {
            let name = format!("blk.{layer}.{name}.weight");
            file.extend((name.len() as i32).to_le_bytes());
            file.extend(name.as_bytes());
            file.extend([4i32, n].iter().flat_map(|v| v.to_le_bytes()));
            file.extend((0..n).flat_map(|i| (if i % 7 == 0 { 400.0f32 } else { 0.01 }).to_le_bytes()));
        }
    }
    let imatrix = dir.path().join("imatrix.dat");
    fs::write(&imatrix, &file).unwrap();
    let out = |name: &str| dir.path().join(name);
    let weighted = out("weighted");
    let list = ["compress", s(&model), "--recipe", s(&recipe), "--stats", s(&imatrix), "--out", s(&weighted)];
    tersor_json(&list);
    let again = out("again");
    tersor_json(&[
        "compress",
        s(&model),
        "--recipe",
        s(&recipe),
        "--stats",
        s(&imatrix),
        "--out",
        s(&again),
        "--threads",
        "1",
    ]);
    assert!(result(&weighted) == result(&again));
    let plain = out("plain");
    let alike = dir.path().join("p.toml");
    fs::write(&alike, text.replace(", importance = true", "")).unwrap();
    tersor_json(&["compress", s(&model), "--recipe", s(&alike), "--out", s(&plain)]);
    assert!(result(&weighted)["model.safetensors"] != result(&plain)["model.safetensors"]);

    // The same recipe accepts a text as well; GPTQ needs more than an importance matrix has.
    let calib = root().join("examples/data/wiki-calib.txt");
    let by_text = out("by-text");
    tersor_json(&[
        "compress",
        s(&model),
        "--recipe",
        s(&recipe),
        "--calib",
        s(&calib),
        "--calib-windows",
        "4",
        "--out",
        s(&by_text),
    ]);
    let x = out("x");
    let said = fails(1, &["compress", s(&model), "--recipe", SEQUENTIAL, "--stats", s(&imatrix), "--out", s(&x)]);
    assert!(said.contains("sums of squares alone") && said.contains("calibrate"), "{said}");
    fs::write(&imatrix, &file[..file.len() - 1]).unwrap();
    assert!(
        fails(1, &["compress", s(&model), "--recipe", s(&recipe), "--stats", s(&imatrix), "--out", s(&x)])
            .contains("in the middle")
    );
    fs::write(&imatrix, [&1i32.to_le_bytes()[..], &file[4..23 + 4 + 8 + 48 * 4]].concat()).unwrap();
    assert!(
        fails(1, &["compress", s(&model), "--recipe", s(&recipe), "--stats", s(&imatrix), "--out", s(&x)])
            .contains("it has no data for")
    );
    assert!(!x.exists());
}

#[test]
fn an_encoder_is_calibrated_on_sentences_and_measured_by_cosine() {
    let dir = tempfile::tempdir().unwrap();
    let model = root().join("crates/tersor-models/tests/golden-encoders/bert");
    let copy = dir.path().join("bert");
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), copy.join(name)).unwrap();
    }
    // A vocabulary of forty words, and the two special tokens around a text.
    let words: serde_json::Map<String, serde_json::Value> = (0..40)
        .map(|i| (if i < 3 { ["[UNK]", "[CLS]", "[SEP]"][i].into() } else { format!("w{i}") }, i.into()))
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
        "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    });
    fs::write(copy.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let lines = |salt: usize| {
        (0..60)
            .map(|i| {
                (0..3 + i % 9)
                    .map(|j| format!("w{}", 3 + (i * 5 + j * j * 7 + salt) % 37))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect::<Vec<_>>()
            .join("\n\n")
    };
    let (calib, eval) = (dir.path().join("calib"), dir.path().join("eval"));
    fs::write(&calib, lines(0)).unwrap();
    fs::write(&eval, lines(11)).unwrap();
    let cosine = |recipe: &str, more: &[&str]| {
        let out = dir.path().join(format!("{recipe}{}", more.len()));
        tersor_json(
            &[&["compress", s(&copy), "--recipe", recipe, "--out", s(&out), "--calib", s(&calib)], more].concat(),
        );
        tersor_json(&["verify", s(&out)]);
        let found = tersor_json(&["eval", s(&out), "--sentences", s(&eval), "--against", s(&copy)]);
        assert_eq!(found["sentences"], 60);
        let (min, mean) = (found["cosine_min"].as_f64().unwrap(), found["cosine_mean"].as_f64().unwrap());
        assert!(min <= mean && mean <= 1.0 + 1e-9);
        mean
    };
    let (eight, three, gptq) = (cosine("w8-rtn", &[]), cosine("w3-g16-rtn", &[]), cosine("w3-g16-gptq", &[]));
    assert!(eight > 0.999 && gptq > three && three > 0.5, "{eight} {three} {gptq}");
    // The result is the same with hidden states on disk.
    assert_eq!(cosine("w3-g16-gptq", &["--threads", "1"]), gptq);
    assert_eq!(tersor_json(&["eval", s(&copy), "--sentences", s(&eval), "--against", s(&copy)])["cosine_mean"], 1.0);
    // `--text` is for decoders, `--sentences` for encoders.
    let text = root().join("examples/data/wiki-eval.txt");
    assert!(fails(1, &["eval", s(&copy), "--text", s(&text)]).contains("--sentences"));
    assert!(
        fails(
            1,
            &[
                "eval",
                s(&root().join("examples/models/tiny-wiki")),
                "--sentences",
                s(&eval),
                "--against",
                s(&root().join("examples/models/tiny-wiki"))
            ]
        )
        .contains("--text")
    );
    assert!(fails(1, &["generate", s(&copy), "--prompt", "w5"]).contains("encoder"));
    fails(2, &["eval", s(&copy), "--sentences", s(&eval)]);
    fails(2, &["eval", s(&copy)]);
    fs::write(&eval, "\n  \n").unwrap();
    assert!(fails(1, &["eval", s(&copy), "--sentences", s(&eval), "--against", s(&copy)]).contains("no sentence"));
}
