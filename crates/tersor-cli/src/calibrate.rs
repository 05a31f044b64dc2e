//! `tersor calibrate`: gathers statistics of the original network into a file.

use serde_json::json;
use tersor::core::{Cancel, Limits, ParamError, Result};
use tersor::formats::Model;
use tersor::llm::Checkpoint;

use crate::plan::{Calibration, Plan};
use crate::recipe::Recipe;
use crate::{args, cancel_on_signals, megabytes, print_json, progress, statistics, windows};

pub fn run(a: &args::Calibrate, json: bool) -> Result<()> {
    let model = Model::open(&a.model, &Limits::default())?;
    let calibration = Calibration {
        text: Some(a.text.clone()),
        windows: a.windows,
        ctx: a.ctx,
        stats: Vec::new(),
        max_memory: a.max_memory,
    };
    let mut plan = Plan::new(&model, Recipe::find(&a.recipe)?, a.seed, false, &calibration)?;
    if !plan.needs_data() {
        let rule = "it needs no statistics, so there is nothing to gather";
        return Err(ParamError::new("recipe", format!("`{}`", a.recipe), rule).into());
    }
    plan.fit(&model, a.max_memory)?;
    let cancel = Cancel::new();
    cancel_on_signals(&cancel);
    let cut = windows::cut(&plan, &Checkpoint::open(&a.model, &tersor::registry())?, &*progress::bars())?;
    let (i, n) = a.shard.unwrap_or((1, 1));
    let shards = plan.shards();
    if n > shards {
        let rule = format!("must have at most {shards} parts, the number of shards of these windows");
        return Err(ParamError::new("shard", format!("{i}/{n}"), rule).into());
    }
    let part = (i - 1) * shards / n..i * shards / n;
    let scratch = if plan.spill {
        let dir = a.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        let made = tempfile::Builder::new().prefix(".tersor-").tempdir_in(dir);
        Some(made.map_err(|e| tersor::core::Error::io(dir, e))?)
    } else {
        None
    };
    let scratch = scratch.as_ref().map(|d| d.path());
    statistics::gather(&model, &plan, &cut, part, &a.out, scratch, &cancel)?;
    let bytes = std::fs::metadata(&a.out).map_err(|e| tersor::core::Error::io(&a.out, e))?.len();
    let sites = statistics::needed(&plan).len();
    if json {
        print_json(&json!({
            "out": a.out, "bytes": bytes, "sites": sites, "windows": cut.len(), "shard": format!("{i}/{n}"),
            "peak_rss_bytes": crate::eval::peak_rss(),
        }));
    } else {
        crate::outln!("{}: statistics of {sites} sites, {}", a.out.display(), megabytes(bytes));
    }
    Ok(())
}
