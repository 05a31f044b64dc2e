//! `tersor inspect`: lists the architecture and tensors of a model.

use serde_json::json;
use tersor::core::{Limits, Result};
use tersor::formats::{Model, json as files};
use tersor::llm::MANIFEST;

use crate::{args, megabytes, print_json};

pub fn run(a: &args::Inspect, json: bool) -> Result<()> {
    let limits = Limits::default();
    let model = Model::open(&a.model, &limits)?;
    let tensors = model.tensors();
    let config = model.config();
    let text = |v: &serde_json::Value| v.as_str().map(String::from);
    let architecture = config
        .and_then(|c| text(&c["architectures"][0]).or_else(|| text(&c["model_type"])))
        .or_else(|| model.gguf().and_then(|g| g.meta().text("general.architecture").map(String::from)));
    let manifest = a.model.join(MANIFEST);
    let recipe =
        if manifest.is_file() { Some(files::read(&manifest, &limits)?["recipe"]["name"].clone()) } else { None };
    // The stored codes of a compressed model are not parameters; the shapes of its operators give their number.
    let parameters: u64 = if recipe.is_some() {
        let checkpoint = tersor::llm::Checkpoint::open(&a.model, &tersor::registry())?;
        let matrices: u64 = checkpoint.weights().iter().map(|w| (w.shape[0] * w.shape[1]) as u64).sum();
        matrices + tensors.iter().filter(|t| t.shape.len() == 1).map(|t| t.shape[0] as u64).sum::<u64>()
    } else {
        tensors.iter().map(|t| t.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    };
    if json {
        let list: Vec<_> = tensors
            .iter()
            .map(|t| json!({"name": t.name, "shape": t.shape, "dtype": t.dtype, "bytes": t.bytes}))
            .collect();
        let mut out = json!({"architecture": architecture, "parameters": parameters, "tensors": list, "weight_bytes": model.weight_bytes()});
        if let Some(recipe) = recipe {
            out["recipe"] = recipe;
        }
        print_json(&out);
        return Ok(());
    }
    crate::outln!("architecture  {}", architecture.as_deref().unwrap_or("unknown"));
    crate::outln!("parameters    {parameters}");
    crate::outln!("weights       {} in {} file(s)", megabytes(model.weight_bytes()), model.files().len());
    if let Some(recipe) = recipe {
        crate::outln!("recipe        {}", recipe.as_str().unwrap_or("?"));
    }
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in &tensors {
        let shape = t.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(" x ");
        crate::outln!("{:width$}  {:5}  {:>14}  {:>10}", t.name, t.dtype, shape, megabytes(t.bytes));
    }
    Ok(())
}
