//! `tersor compress`: compresses a model into a complete model directory.

use serde_json::{json, to_value};
use tersor::core::{Error, Limits, ParamError, Result};
use tersor::formats::Model;
use tersor::pipeline::budget::{self, Limit};
use tersor::pipeline::compress::{Outcome, Part, check_original, compress};
use tersor::pipeline::evaluate::peak_rss;
use tersor::pipeline::plan::{Plan, PlanFile};
use tersor::pipeline::{Recipe, megabytes};

use crate::{args, cancel_on_signals, context, print_json};

pub fn run(a: &args::Compress, json: bool) -> Result<()> {
    let kinds = tersor::kinds();
    let model = Model::open(&a.model, &Limits::default())?;
    check_original(&a.model)?;
    let file = a.plan.as_ref().map(|path| PlanFile::read(path, kinds)).transpose()?;
    let cx = context(file.as_ref().map_or(a.seed, |f| f.seed), a.calibration.max_memory);
    cancel_on_signals(&cx.cancel);
    let limit = a.budget.map(Limit::Bytes).or(a.bits.map(Limit::Bits));
    let mut options = match limit {
        Some(_) => a.calibration.options_or_built_in(a.ctx, a.generic, &*cx.progress),
        None => a.calibration.options(a.ctx, a.generic),
    };
    let recipe = match (&a.recipe, &file, limit) {
        (Some(name), ..) => Recipe::find(name, &kinds.stages)?,
        (_, Some(file), _) => {
            // A plan holds its windows; others are given beside it on purpose.
            options.windows = a.calibration.calib_windows.unwrap_or(file.windows[0]);
            options.ctx = a.ctx.or(Some(file.windows[1]));
            file.recipe.clone()
        }
        (.., Some(limit)) => budget::choose_for(&model, limit, &options, &a.out, None, kinds, &cx)?,
        (None, None, None) => return Err(ParamError::new("recipe", "missing", "must be given").into()),
    };
    let mut plan = Plan::new(&model, recipe, &options, kinds, &cx)?;
    if let Some(file) = file {
        file.check(&plan, &cx)?;
    }
    plan.fit(&model, &cx)?;
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
