//! `tersor calibrate`: gathers statistics of the original network into a file.

use std::path::Path;

use serde_json::json;
use tersor::core::{Limits, ParamError, Result};
use tersor::formats::Model;
use tersor::pipeline::evaluate::peak_rss;
use tersor::pipeline::output::{FileKind, check_file};
use tersor::pipeline::plan::{Data, Options, Plan};
use tersor::pipeline::{Recipe, Text, megabytes};

use crate::{args, cancel_on_signals, context, print_json};

pub fn run(a: &args::Calibrate, json: bool) -> Result<()> {
    let (kinds, cx) = (tersor::kinds(), context(a.seed, a.max_memory));
    check_file(&a.out, FileKind::Statistics, &[&a.model, &a.calib, Path::new(&a.recipe)])?;
    let model = Model::open(&a.model, &Limits::default())?;
    let data = Data::Text(Text::file(&a.calib));
    let options = Options { data, windows: a.calib_windows, ctx: a.ctx, ..Options::default() };
    let mut plan = Plan::new(&model, Recipe::find(&a.recipe, &kinds.stages)?, &options, kinds, &cx)?;
    if !plan.needs_data() {
        let rule = "it needs no statistics, so there is nothing to gather";
        return Err(ParamError::new("recipe", format!("`{}`", a.recipe), rule).into());
    }
    plan.fit(&model, &cx)?;
    cancel_on_signals(&cx.cancel);
    let (i, n) = a.shard.unwrap_or((1, 1));
    let found = plan.gather(&model, [i, n], &a.out, kinds, &cx)?;
    if json {
        return print_json(&json!({
            "out": a.out, "bytes": found.bytes, "sites": found.sites, "windows": found.windows,
            "shard": format!("{i}/{n}"), "peak_rss_bytes": peak_rss(),
        }));
    }
    outln!("{}: statistics of {} sites, {}", a.out.display(), found.sites, megabytes(found.bytes));
    Ok(())
}
