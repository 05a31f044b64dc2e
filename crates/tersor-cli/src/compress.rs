//! `tersor compress`: compresses a model into a complete model directory.

use serde_json::{json, to_value};
use tersor::core::{Error, Limits, ParamError, Result};
use tersor::formats::Model;
use tersor::pipeline::compress::{Outcome, Part, check_original, compress};
use tersor::pipeline::evaluate::peak_rss;
use tersor::pipeline::plan::{Plan, PlanFile};
use tersor::pipeline::{Recipe, megabytes};

use crate::{args, cancel_on_signals, context, print_json};

pub fn run(a: &args::Compress, json: bool) -> Result<()> {
    let kinds = tersor::kinds();
    let model = Model::open(&a.model, &Limits::default())?;
    check_original(&a.model)?;
    let (recipe, seed, planned) = match (&a.recipe, &a.plan) {
        (Some(name), _) => (Recipe::find(name, &kinds.stages)?, a.seed, None),
        (None, Some(path)) => PlanFile::read(path, kinds).map(|f| (f.recipe.clone(), f.seed, Some(f)))?,
        (None, None) => return Err(ParamError::new("recipe", "missing", "must be given unless --plan is").into()),
    };
    let cx = context(seed, a.calibration.max_memory);
    let mut plan = Plan::new(&model, recipe, &a.calibration.options(a.ctx, a.generic), kinds, &cx)?;
    if let Some(file) = planned {
        file.check(&plan)?;
    }
    plan.fit(&model, &cx)?;
    cancel_on_signals(&cx.cancel);
    let part = match (a.task, a.merge) {
        (Some(k), _) => Part::Task(k),
        (None, true) => Part::Merge,
        (None, false) => Part::All,
    };
    let done = match compress(&model, &plan, &a.out, part, kinds, &cx)? {
        Outcome::Finished(done) => done,
        Outcome::Task(task) if json => {
            return print_json(&json!({"task": task, "out": a.out, "peak_rss_bytes": peak_rss()}));
        }
        Outcome::Task(task) => {
            outln!("{}: task {task} is done", a.out.display());
            return Ok(());
        }
    };
    if json {
        let mut all = to_value(&done).map_err(|e| Error::format("result", e.to_string()))?;
        all["peak_rss_bytes"] = json!(peak_rss());
        return print_json(&all);
    }
    let (out, all, bytes) = (a.out.display(), done.bits_per_weight, megabytes(done.weight_bytes));
    if done.finished_before {
        outln!("{out} was already finished: {all:.3} bits per weight, {bytes}");
    } else {
        outln!("{out}: {all:.3} bits per weight, {bytes} in {:.1} s", done.compress_seconds);
    }
    Ok(())
}
