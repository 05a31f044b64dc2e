//! `tersor plan`: prints a plan as text or JSON, and writes plan files.

use serde_json::{Value as Json, json};
use tersor::core::{Error, Limits, ParamError, Result};
use tersor::formats::{Model, json as files, write_atomic};
use tersor::llm::bits_per_weight;

use super::budget::{self, Chosen, Limit};
use super::{Action, Calibration, Entry, Plan};
use crate::eval::peak_rss;
use crate::recipe::Recipe;
use crate::{args, megabytes, print_json};

impl Entry {
    fn method_name(&self) -> String {
        match &self.action {
            Action::Copy => "copy".into(),
            Action::Fold => "fold".into(),
            Action::Compress(m) => m.name(),
            Action::New => "rotation of keys".into(),
        }
    }
}

impl Plan {
    fn to_json(&self, model: &Model) -> Result<Json> {
        let weights = self.weights();
        let (all, body) = bits_per_weight(&weights);
        let tensors: Vec<Json> = self
            .entries
            .iter()
            .map(|e| {
                let n = e.shape.iter().map(|&d| d as f64).product::<f64>();
                let bits = if n == 0.0 { 0.0 } else { e.bytes() as f64 * 8.0 / n };
                json!({"name": e.name, "rule": e.rule, "method": e.method_name(), "bits_per_weight": bits, "bytes": e.bytes()})
            })
            .collect();
        Ok(json!({
            "recipe": self.recipe.name, "bits_per_weight": all, "body_bits_per_weight": body,
            "smoothed": self.smoothings.iter().map(|(site, how)| json!({"site": site, "by": how.name()})).collect::<Vec<_>>(),
            "weight_bytes": self.weight_bytes()?, "peak_memory_bytes": self.memory(model), "hidden_states_on_disk": self.spill, "tensors": tensors,
            "tasks": self.tasks_json(),
        }))
    }
}

pub fn run(a: &args::Plan, json: bool) -> Result<()> {
    if let Some(to) = &a.to {
        let conversion = args::Convert { model: a.model.clone(), to: to.clone(), dry_run: true, out: a.model.clone() };
        return crate::convert::run(&conversion, json);
    }
    let model = Model::open(&a.model, &Limits::default())?;
    let calibration = Calibration::from_args(&a.calibration, a.ctx);
    let limit = match (a.budget, a.bits) {
        (Some(bytes), _) => Some(Limit::Bytes(bytes)),
        (None, bits) => bits.map(Limit::Bits),
    };
    let (recipe, chosen) = match (&a.recipe, limit) {
        (_, Some(limit)) => {
            let Chosen { recipe, loss, memory } =
                budget::choose(&model, limit, a.seed, a.generic, &calibration, a.measured.as_deref())?;
            (recipe, Some((loss, memory)))
        }
        (Some(name), None) => (Recipe::find(name)?, None),
        (None, None) => {
            return Err(ParamError::new("recipe", "missing", "must be given, or --budget, --bits or --to").into());
        }
    };
    let mut plan = Plan::new(&model, recipe, a.seed, a.generic, &calibration)?;
    plan.fit(&model, calibration.max_memory)?;
    if let Some(out) = a.out.as_ref().filter(|o| o.extension().is_some_and(|e| e == "toml")) {
        let text = toml::to_string(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
        write_atomic(out, text.as_bytes())?;
    } else if let Some(out) = &a.out {
        let recipe = serde_json::to_value(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
        let file = json!({"recipe": recipe, "seed": plan.seed, "inputs": plan.inputs});
        write_atomic(out, &files::to_bytes(&file))?;
    }
    let (all, body) = bits_per_weight(&plan.weights());
    if json {
        let mut all = plan.to_json(&model)?;
        if let Some((loss, memory)) = chosen {
            all["predicted_loss"] = loss.into();
            if let Some(memory) = memory {
                all["measuring_peak_memory_bytes"] = json!(memory);
                all["peak_rss_bytes"] = json!(peak_rss());
            }
        }
        print_json(&all);
        return Ok(());
    }
    let width = plan.entries.iter().map(|e| e.name.len()).max().unwrap_or(0);
    for e in plan.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))) {
        let n = e.shape.iter().map(|&d| d as f64).product::<f64>().max(1.0);
        let rule = e.rule.map_or("-".to_string(), |r| r.to_string());
        crate::outln!(
            "{:width$}  rule {rule:>2}  {:6} {:6.3} bits  {:>10}",
            e.name,
            e.method_name(),
            e.bytes() as f64 * 8.0 / n,
            megabytes(e.bytes())
        );
    }
    crate::outln!(
        "{all:.3} bits per weight ({body:.3} without embedding and head), weights {}",
        megabytes(plan.weight_bytes()?)
    );
    let memory = plan.memory(&model);
    crate::outln!("peak memory at most {}:", megabytes(memory.values().sum()));
    for (term, bytes) in memory {
        crate::outln!("  {term:13} {}", megabytes(bytes));
    }
    if let Some(memory) = chosen.and_then(|c| c.1) {
        crate::outln!("peak memory of the measurement at most {}", megabytes(memory.values().sum()));
    }
    Ok(())
}
