//! Methods compose: a Hadamard rotation of the whole network, GPTQ, a low-rank correction weighted by the inputs, and a 4-bit cache of rotated keys. The
//! model is compressed, saved, opened again and run: `cargo run --release -p tersor --example compose`.

use std::path::Path;

use tersor::core::{Context, Exec, Result};
use tersor::formats::Model;
use tersor::models::{Checkpoint, Decoder, Sampling, Tokenizer, generate};
use tersor::pipeline::{Caches, Pipeline, Recipe, Text, evaluate};

/// Each recipe adds something to the one before.
const RECIPES: [(&str, &str, &str); 4] = [
    ("rounded", "", r#"{ kind = "rtn", bits = 3, group = 64 }"#),
    ("gptq", "", r#"{ kind = "gptq", bits = 3, group = 64 }"#),
    ("gptq-l2qer", "", r#"{ kind = "gptq", bits = 3, group = 64 }, { kind = "l2qer", rank = 8 }"#),
    (
        "rotated-cache",
        r#"network = [{ kind = "rotate", by = "hadamard" }]
cache = [{ match = "*", kind = "int", bits = 4, keys = "hadamard" }]"#,
        r#"{ kind = "gptq", bits = 3, group = 64 }, { kind = "l2qer", rank = 8 }"#,
    ),
];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (model, kinds, cx) = (root.join("examples/models/tiny-wiki"), tersor::kinds(), Context::new());
    let [calibration, text] =
        ["wiki-calib.txt", "wiki-eval.txt"].map(|t| Text::file(root.join("examples/data").join(t)));
    let dir = std::env::temp_dir().join(format!("tersor-compose-{}", std::process::id()));
    let options = evaluate::Options { windows: Some(8), ..Default::default() };
    let exact = evaluate::decoder(&model, &text, None, &options, kinds, &cx)?;
    println!("{:<14} {:>11} {:>8} {:>8} {:>12}  continues `The`", "recipe", "perplexity", "KL", "bits", "cache/token");
    println!(
        "{:<14} {:>11.3} {:>8} {:>8.2} {:>12}",
        "original", exact.perplexity, "", exact.bits_per_weight, exact.kv_bytes_per_token
    );
    for (name, whole, stages) in RECIPES {
        let toml = format!(
            "version = 1\nname = \"{name}\"\n{whole}\nrules = [\n{{ match = [\"@embedding\", \"@head\"], \
             stages = [{{ kind = \"rtn\", bits = 8 }}] }},\n{{ match = \"@linear\", stages = [{stages}] }},\n]\n"
        );
        let recipe = Recipe::from_toml(&toml, name, &kinds.stages)?;
        let opened = Model::open(&model, &Default::default())?;
        let pipeline = Pipeline::new(opened, recipe, kinds).data(calibration.clone()).windows(32);
        let out = dir.join(name);
        pipeline.plan(&cx)?.compress(&out, &cx)?;
        let found = evaluate::decoder(&out, &text, Some(&model), &options, kinds, &cx)?;
        println!(
            "{name:<14} {:>11.3} {:>8.4} {:>8.2} {:>12}  {}",
            found.perplexity,
            found.kl_mean.unwrap_or_default(),
            found.bits_per_weight,
            found.kv_bytes_per_token,
            continued(&out)?
        );
    }
    std::fs::remove_dir_all(&dir).map_err(|e| tersor::core::Error::io(&dir, e))
}

/// Opens a compressed model, with the caches that its recipe names, and continues a text.
fn continued(dir: &Path) -> Result<String> {
    let checkpoint = Checkpoint::open(dir, &tersor::registry())?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let decoder = Caches::of(None, &checkpoint, tersor::kinds())?.attach(Decoder::load(&checkpoint)?);
    let prompt = tokenizer.encode("The")?;
    let tokens = generate(&decoder, &prompt, 8, Sampling::Greedy, &Exec::new(), |_| true)?;
    Ok(tokenizer.decode(&tokens)?.replace('\n', " "))
}
