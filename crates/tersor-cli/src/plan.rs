//! `tersor plan`: prints a plan, and writes it to a file.

use std::path::Path;

use serde_json::{json, to_value};
use tersor::core::{Error, Limits, ParamError, Result};
use tersor::formats::Model;
use tersor::pipeline::budget::{self, Limit, Store};
use tersor::pipeline::evaluate::peak_rss;
use tersor::pipeline::output::{FileKind, check_distinct, check_file};
use tersor::pipeline::plan::{Action, Plan, PlanFile};
use tersor::pipeline::{Recipe, megabytes};

use crate::{args, cancel_on_signals, context, convert, print_json};

pub fn run(a: &args::Plan, json: bool) -> Result<()> {
    if let Some(to) = &a.to {
        let conversion = args::Convert { model: a.model.clone(), to: to.clone(), dry_run: true, out: a.model.clone() };
        return convert::run(&conversion, json);
    }
    check_outputs(a)?;
    let (kinds, cx) = (tersor::kinds(), context(a.seed, a.calibration.max_memory));
    let model = Model::open(&a.model, &Limits::default())?;
    let limit = a.budget.map(Limit::Bytes).or(a.bits.map(Limit::Bits));
    let options = match limit {
        Some(_) => a.calibration.options_or_built_in(a.ctx, a.generic, &*cx.progress),
        None => a.calibration.options(a.ctx, a.generic),
    };
    let (recipe, chosen) = match (&a.recipe, limit) {
        (_, Some(limit)) => {
            cancel_on_signals(&cx.cancel);
            let store = a.measured.as_deref().map(Store::beside).unwrap_or_default();
            let chosen = budget::choose(&model, limit, &options, &store, kinds, &cx)?;
            (chosen.recipe, Some((chosen.loss, chosen.memory)))
        }
        (Some(name), None) => (Recipe::find(name, &kinds.stages)?, None),
        (None, None) => {
            return Err(ParamError::new("recipe", "missing", "must be given, or --budget, --bits or --to").into());
        }
    };
    let mut plan = Plan::new(&model, recipe, &options, kinds, &cx)?;
    plan.fit(&model, &cx)?;
    if let Some(out) = &a.out {
        plan.save(out, kinds)?;
    }
    let summary = plan.summary(&model)?;
    if json {
        let mut all = to_value(&summary).map_err(|e| Error::format("plan", e.to_string()))?;
        if let Some((loss, memory)) = chosen {
            all["predicted_loss"] = loss.into();
            if let Some(memory) = memory {
                all["measuring_peak_memory_bytes"] = json!(memory);
                all["peak_rss_bytes"] = json!(peak_rss());
            }
        }
        return print_json(&all);
    }
    outln!(
        "{:.3} bits per weight ({:.3} without embedding and head), weights {}",
        summary.bits_per_weight,
        summary.body_bits_per_weight,
        megabytes(summary.weight_bytes)
    );
    let memory = &summary.peak_memory_bytes;
    outln!("peak memory at most {}:", megabytes(memory.values().sum()));
    for (term, bytes) in memory {
        outln!("  {term:13} {}", megabytes(*bytes));
    }
    if let Some(memory) = chosen.and_then(|c| c.1) {
        outln!("peak memory of the measurement at most {}", megabytes(memory.values().sum()));
    }
    let width = plan.entries.iter().map(|e| e.name.len()).max().unwrap_or(0);
    for e in plan.listed().into_iter().filter(|e| matches!(e.action, Action::Compress(_))) {
        let rule = e.rule.map_or("-".to_string(), |r| r.to_string());
        let (method, bits, bytes) = (e.method_name(), e.bits_per_weight(), megabytes(e.bytes()));
        outln!("{:width$}  rule {rule:>2}  {method:6} {bits:6.3} bits  {bytes:>10}", e.name);
    }
    Ok(())
}

/// Errors if a file that is to be written is there and is no earlier output of the same kind, or is an input. The measurements are read if they exist.
fn check_outputs(a: &args::Plan) -> Result<()> {
    let texts = a.calibration.calib.iter().chain(&a.calibration.stats).map(|p| p.as_path());
    let inputs: Vec<&Path> =
        [a.model.as_path()].into_iter().chain(texts).chain(a.recipe.as_deref().map(Path::new)).collect();
    if let Some(measured) = &a.measured {
        check_file(measured, FileKind::Measurement, &inputs)?;
    }
    let Some(out) = &a.out else { return Ok(()) };
    check_file(out, PlanFile::kind(out), &inputs)?;
    a.measured.as_ref().map_or(Ok(()), |measured| check_distinct(out, measured))
}
