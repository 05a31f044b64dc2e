//! `tersor recipes`: lists the kinds of stages with their parameters, or prints the TOML that a name stands for.

use serde_json::json;
use tersor::core::Result;
use tersor::pipeline::Recipe;
use tersor::pipeline::recipe::{KindInfo, list};

use crate::{args, print_json};

pub fn run(a: &args::Recipes, json: bool) -> Result<()> {
    let kinds = tersor::stages();
    let Some(name) = &a.name else {
        let all = list(kinds);
        if json {
            return print_json(&json!({"kinds": all}));
        }
        all.iter().for_each(show);
        return Ok(());
    };
    let recipe = Recipe::find(name, kinds)?;
    let toml = recipe.to_toml(kinds);
    if json {
        return print_json(&json!({"recipe": recipe.to_json(), "toml": toml}));
    }
    outln!("{}", toml.trim_end());
    Ok(())
}

/// Prints a kind with its parameters.
fn show(kind: &KindInfo) {
    outln!("{} ({}): {}", kind.kind, kind.slot, kind.help);
    let words = kind.words.iter().map(|w| w.to_string());
    let names: Vec<String> = words.filter(|_| kind.list != "cache").chain(kind.segments.iter().cloned()).collect();
    if !names.is_empty() {
        outln!("    in names: {}", names.join(", "));
    }
    for p in &kind.parameters {
        let default = p.default.as_ref().map_or(String::new(), |d| format!(", default {d}"));
        outln!("    {:14} {} ({}{default})", p.name, p.help, p.values);
    }
}
