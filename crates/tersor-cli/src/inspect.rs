//! `tersor inspect`: lists the architecture and tensors of a model.

use tersor::core::Result;
use tersor::pipeline::{inspect, megabytes};

use crate::{args, print_json};

pub fn run(a: &args::Inspect, json: bool) -> Result<()> {
    let found = inspect(&a.model, tersor::kinds())?;
    if json {
        return print_json(&found);
    }
    outln!("architecture  {}", found.architecture.as_deref().unwrap_or("unknown"));
    outln!("parameters    {}", found.parameters);
    outln!("weights       {} in {} file(s)", megabytes(found.weight_bytes), found.files);
    if let Some(recipe) = &found.recipe {
        outln!("recipe        {}", recipe.as_str().unwrap_or("?"));
    }
    let width = found.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in &found.tensors {
        let shape = t.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(" x ");
        outln!("{:width$}  {:5}  {:>14}  {:>10}", t.name, t.dtype, shape, megabytes(t.bytes));
    }
    Ok(())
}
