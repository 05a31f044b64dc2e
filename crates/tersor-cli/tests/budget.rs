//! `plan --budget`: results are within the budget, better than uniform recipes, and the same for the same input.

mod common;

use std::path::Path;

use common::*;

fn plan<'a>(model: &'a str, more: &[&'a str], calib: &'a str) -> Vec<&'a str> {
    let own = ["plan", model, "--calib", calib, "--calib-windows", "16", "--ctx", "128"];
    [&own[..], more].concat()
}

fn compressed(model: &Path, recipe: &str, out: &Path) -> (u64, f64) {
    let bytes = run(&compress(model, recipe, out, ["16", "128"]), &[])["weight_bytes"].as_u64().unwrap();
    let text = root().join("examples/data/wiki-eval.txt");
    let eval = tersor_json(&["eval", s(out), "--text", s(&text), "--ctx", "128", "--windows", "60", "--no-speed"]);
    (bytes, eval["perplexity"].as_f64().unwrap())
}

#[test]
fn the_budget_is_kept_and_spent_better_than_evenly() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, calib, measured) = (shipped(), data("wiki-calib.txt"), dir.path().join("measured.json"));
    let (model, calib) = (s(&tiny), s(&calib));
    for (even, slack) in [("w3-g64-gptq", 1.0), ("w4-g32-gptq", 1.0), ("w6-g64-gptq", 1.002)] {
        let (bytes, perplexity) = compressed(&tiny, even, &dir.path().join(even));
        let budget = bytes.to_string();
        let toml = dir.path().join(format!("{even}.toml"));
        let more = ["--budget", &budget, "--measured", s(&measured), "--out", s(&toml)];
        let planned = tersor_json(&plan(model, &more, calib));
        assert!(planned["weight_bytes"].as_u64().unwrap() <= bytes);
        assert!(planned["weight_bytes"].as_f64().unwrap() > 0.98 * bytes as f64, "little is left over");
        // The measurement is done once, within the planned memory, apart from what the allocator retains.
        let terms = planned["measuring_peak_memory_bytes"].as_object();
        assert_eq!(terms.is_some(), even == "w3-g64-gptq");
        if let Some(terms) = terms {
            let said: u64 = terms.values().map(|v| v.as_u64().unwrap()).sum();
            assert!(planned["peak_rss_bytes"].as_u64().unwrap() <= said * 11 / 10, "{planned}");
        }
        assert!(planned["predicted_loss"].as_f64().unwrap() > 0.0);
        let (made, better) = compressed(&tiny, s(&toml), &dir.path().join(format!("{even}-budget")));
        assert_eq!(made, planned["weight_bytes"].as_u64().unwrap(), "the plan's size is the file's");
        assert!(better < perplexity * slack, "{even}: {better} for {perplexity}");
    }
    // A limit in bits per weight; a plan file gives the same result as a recipe.
    let file = dir.path().join("plan.json");
    let more = ["--bits", "4.2", "--measured", s(&measured), "--out", s(&file)];
    let planned = tersor_json(&plan(model, &more, calib));
    let bits = planned["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 4.2 && bits > 4.1, "{bits}");
    let out = dir.path().join("out");
    let args = [
        "compress",
        model,
        "--plan",
        s(&file),
        "--calib",
        calib,
        "--calib-windows",
        "16",
        "--ctx",
        "128",
        "--out",
        s(&out),
    ];
    assert_eq!(tersor_json(&args)["bits_per_weight"], planned["bits_per_weight"]);
}

#[test]
fn the_same_input_gives_the_same_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::llama();
    tiny.config["tie_word_embeddings"] = false.into();
    tiny.add("lm_head.weight", &[2048, 48]);
    let model = tiny.write(&dir.path().join("m"));
    let calib = root().join("examples/data/wiki-calib.txt");
    let recipe = |threads: &str, name: &str| {
        let toml = dir.path().join(name);
        let more = ["--bits", "4.5", "--threads", threads, "--out", s(&toml)];
        tersor_json(&plan(s(&model), &more, s(&calib)));
        std::fs::read_to_string(toml).unwrap()
    };
    let one = recipe("1", "one.toml");
    assert_eq!(one, recipe("3", "three.toml"));
    assert!(one.contains("lm_head.weight") && one.contains("model.embed_tokens.weight"));
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let calib = root().join("examples/data/wiki-calib.txt");
    let measured = dir.path().join("measured.json");
    // Without a text the one that is built in is used, and said.
    let out = tersor(&["plan", s(&model), "--bits", "5", "--calib-windows", "2"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("built-in calibration text"), "{said}");
    let stats = dir.path().join("no statistics");
    assert!(fails(2, &["plan", s(&model), "--budget", "1MB", "--stats", s(&stats)]).contains("--calib"));
    let more = |list: &[&'static str]| -> String { fails(2, &plan(s(&model), list, s(&calib))) };
    assert!(more(&["--budget", "1kB"]).contains("must be at least"));
    assert!(more(&["--bits", "1.5"]).contains("must be at least 3."));
    assert!(more(&["--bits", "nan"]).contains("positive") && more(&["--bits", "-1"]).contains("-1"));
    more(&["--bits", "4", "--budget", "1MB"]);
    more(&["--recipe", "w4-rtn", "--budget", "1MB"]);
    more(&[]);
    let keep = ["--bits", "5", "--measured", s(&measured)];
    tersor_json(&plan(s(&model), &keep, s(&calib)));
    // A budget above the size of the model is a warning; a memory limit below that of the measurement is an error.
    let out = tersor(&plan(s(&model), &["--budget", "100MB", "--measured", s(&measured)], s(&calib)));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("fit the budget as they are"), "{said}");
    let said = more(&["--bits", "5", "--max-memory", "1MB"]);
    assert!(said.contains("max-memory") && said.contains("for measuring"), "{said}");
    let other = dir.path().join("other.txt");
    std::fs::write(&other, "Another text, as long as it must be to fill a window. ".repeat(100)).unwrap();
    assert!(fails(1, &plan(s(&model), &keep, s(&other))).contains("another model, text"));
    std::fs::write(&measured, "{\"inputs\": 3}").unwrap();
    fails(1, &plan(s(&model), &keep, s(&calib)));
}
