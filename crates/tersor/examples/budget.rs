//! Spends a budget of bytes: the effect of each matrix on the predictions is measured once, and the best recipe for each of several sizes follows
//! from it: `cargo run --release -p tersor --example budget`.

use std::path::Path;

use tersor::core::{Context, Result};
use tersor::formats::Model;
use tersor::pipeline::budget::{Limit, Store, choose};
use tersor::pipeline::plan::{Data, Options};
use tersor::pipeline::{Pipeline, Text, evaluate};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (path, kinds, cx) = (root.join("examples/models/tiny-wiki"), tersor::kinds(), Context::new());
    let [calibration, text] =
        ["wiki-calib.txt", "wiki-eval.txt"].map(|t| Text::file(root.join("examples/data").join(t)));
    let dir = std::env::temp_dir().join(format!("tersor-budget-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| tersor::core::Error::io(&dir, e))?;
    let model = Model::open(&path, &Default::default())?;
    let options = Options { data: Data::Text(calibration.clone()), windows: 16, ..Default::default() };
    // The measurement is kept in a file; the second and the third budget read it.
    let store = Store::beside(&dir.join("measured.json"));
    let evaluation = evaluate::Options { windows: Some(8), ..Default::default() };
    let own = model.weight_bytes();
    let exact = evaluate::decoder(&path, &text, None, &evaluation, kinds, &cx)?;
    println!("{:<12} {:>10} {:>7} {:>11} {:>15}", "model", "bytes", "bits", "perplexity", "predicted loss");
    println!("{:<12} {own:>10} {:>7.2} {:>11.3}", "original", exact.bits_per_weight, exact.perplexity);
    for share in [0.5, 0.35, 0.25] {
        let limit = Limit::Bytes((own as f64 * share) as u64);
        let chosen = choose(&model, limit, &options, &store, kinds, &cx)?;
        let out = dir.join(format!("{share}"));
        let opened = Model::open(&path, &Default::default())?;
        let pipeline = Pipeline::new(opened, chosen.recipe, kinds).data(calibration.clone()).windows(16);
        let made = pipeline.plan(&cx)?.compress(&out, &cx)?;
        let found = evaluate::decoder(&out, &text, None, &evaluation, kinds, &cx)?;
        let name = format!("{:.0} %", share * 100.0);
        println!(
            "{name:<12} {:>10} {:>7.2} {:>11.3} {:>15.4}",
            made.weight_bytes, made.bits_per_weight, found.perplexity, chosen.loss
        );
    }
    std::fs::remove_dir_all(&dir).map_err(|e| tersor::core::Error::io(&dir, e))
}
