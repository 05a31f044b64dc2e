//! Calibrated compression of a decoder by its own path and through the taps of any network: seconds of both, in turns, and their ratio.
//!
//!     cargo bench -p tersor-benches --bench network -- /MODEL /TEXT [WINDOWS] [TURNS] [THREADS]

use std::path::Path;
use std::time::Instant;

use tersor::core::{Context, Result};
use tersor::formats::Model;
use tersor::models::{Checkpoint, ModelNetwork, Tokenizer};
use tersor::pipeline::{Pipeline, Recipe, Text, compress_network};

const RECIPE: &str = r#"
version = 1
name = "gptq"
rules = [{ match = "@linear", stages = [{ kind = "gptq", bits = 4, group = 64 }] }]
"#;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let (Some(model), Some(text)) = (words.first(), words.get(1)) else { return Ok(()) };
    let number = |i: usize, default: usize| words.get(i).and_then(|w| w.parse().ok()).unwrap_or(default);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number(4, 2)).build();
    let Ok(pool) = pool else { return Ok(()) };
    pool.install(|| turns(model.as_ref(), text.as_ref(), number(2, 16), number(3, 3)))
}

fn turns(model: &Path, text: &Path, windows: usize, turns: usize) -> Result<()> {
    let (kinds, cx, text) = (tersor::kinds(), Context::new(), Text::file(text));
    let recipe = Recipe::from_toml(RECIPE, "gptq", &kinds.stages)?;
    let checkpoint = Checkpoint::open(model, &kinds.operators)?;
    let network = ModelNetwork::new(checkpoint.architecture()?)?;
    let ctx = checkpoint.architecture()?.max_positions().min(512);
    let tokens = Tokenizer::of(&checkpoint)?.encode(&text.read()?)?;
    let all: Vec<&[u32]> = tokens.chunks_exact(ctx).take(windows).collect();
    let batches = ModelNetwork::batches(&all, ctx);
    let mut ratios = Vec::new();
    for _ in 0..turns {
        let out = std::env::temp_dir().join(format!("tersor-bench-{}", std::process::id()));
        let start = Instant::now();
        let model = Model::open(model, &Default::default())?;
        let pipeline = Pipeline::new(model, recipe.clone(), kinds).data(text.clone()).windows(all.len()).ctx(ctx);
        pipeline.plan(&cx)?.compress(&out, &cx)?;
        let own = start.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&out).map_err(|e| tersor::core::Error::io(&out, e))?;
        let start = Instant::now();
        compress_network(&network, &checkpoint, &batches, &recipe, kinds, &cx)?;
        let taps = start.elapsed().as_secs_f64();
        println!("own path {own:.2} s, taps {taps:.2} s");
        ratios.push(taps / own);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ratios.len() / 2]);
    Ok(())
}
