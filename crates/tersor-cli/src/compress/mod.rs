//! `tersor compress`: compresses a model into a complete model directory.

mod chain;
mod matrix;
mod parts;
mod rewrites;
mod tasks;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tersor::core::{Context, Error, Limits, ParamError, Result, Site};
use tersor::formats::safetensors::Writer;
use tersor::formats::{Model, json as files};
use tersor::llm::{Checkpoint, MANIFEST, Manifest, bits_per_weight};

use crate::output::{self, Output, Share, Work};
use crate::plan::{Action, Calibration, Entry, Plan, recipe_of};
use crate::recipe::Recipe;
use crate::{args, cancel_on_signals, megabytes, print_json, progress, windows};
use matrix::{Job, check_source, copy, fold};
pub use matrix::{block_rows, each_block};
use parts::Parts;

/// Name of the file with timings, the only output that differs from run to run.
pub const TIMING: &str = "timing.json";

pub fn run(a: &args::Compress, json: bool) -> Result<()> {
    let model = Model::open(&a.model, &Limits::default())?;
    if output::is_compressed(&a.model) {
        return Err(Error::Unsupported {
            what: "compressing an already compressed model",
            value: a.model.display().to_string(),
        });
    }
    let (recipe, seed, planned) = match (&a.recipe, &a.plan) {
        (Some(name), _) => (Recipe::find(name)?, a.seed, None),
        (None, Some(path)) => recipe_of(path).map(|(r, s, inputs)| (r, s, Some(inputs)))?,
        (None, None) => return Err(ParamError::new("recipe", "missing", "must be given unless --plan is").into()),
    };
    let calibration = Calibration::from_args(&a.calibration, a.ctx);
    let mut plan = Plan::new(&model, recipe, seed, a.generic, &calibration)?;
    // A plan may have been made without a calibration text; only the inputs that it records must agree.
    let differ: Vec<String> = (planned.into_iter().flatten())
        .filter(|(name, hash)| plan.inputs.get(name) != Some(hash))
        .map(|(name, _)| name)
        .collect();
    if !differ.is_empty() {
        let what = format!("it was made for another model or machine: {} changed; plan again", differ.join(", "));
        return Err(Error::format("plan", what));
    }
    plan.fit(&model, calibration.max_memory)?;
    let cx = Context::new().with_seed(seed).with_progress(progress::bars());
    cancel_on_signals(&cx.cancel);
    let part = match (a.task, a.merge) {
        (Some(k), _) => Part::Task(k),
        (None, true) => Part::Merge,
        (None, false) => Part::All,
    };
    let outcome = compress(&model, &plan, &a.out, part, &cx)?;
    if let Outcome::Task = outcome {
        let task = a.task.unwrap_or_default();
        if json {
            print_json(&json!({"task": task, "out": a.out, "peak_rss_bytes": crate::eval::peak_rss()}));
        } else {
            crate::outln!("{}: task {task} is done", a.out.display());
        }
        return Ok(());
    }
    let fresh = matches!(outcome, Outcome::Done);
    let (all, body) = bits_per_weight(&plan.weights());
    let seconds = recorded_seconds(&a.out);
    let bytes = plan.weight_bytes()?;
    if json {
        print_json(&json!({
            "recipe": plan.recipe.name, "out": a.out, "finished_before": !fresh, "bits_per_weight": all,
            "body_bits_per_weight": body, "weight_bytes": bytes, "compress_seconds": seconds, "fingerprint": plan.fingerprint(),
            "peak_rss_bytes": crate::eval::peak_rss(),
        }));
    } else if fresh {
        crate::outln!("{}: {all:.3} bits per weight, {} in {seconds:.1} s", a.out.display(), megabytes(bytes));
    } else {
        crate::outln!("{} was already finished: {all:.3} bits per weight, {}", a.out.display(), megabytes(bytes));
    }
    Ok(())
}

/// Returns the seconds that compression took, from the directory's timings.
fn recorded_seconds(dir: &Path) -> f64 {
    let timing = files::read(&dir.join(TIMING), &Limits::default());
    timing.ok().and_then(|t| t["compress_seconds"].as_f64()).unwrap_or(0.0)
}

/// Which part of the work a call of `compress` does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Task(usize),
    Merge,
}

/// The outcome of a call of `compress`.
enum Outcome {
    /// The directory is now complete.
    Done,
    /// The directory was complete before.
    DoneBefore,
    /// The task of the call is done.
    Task,
}

/// Compresses a model into the directory `out`, or does a part of the work.
fn compress(model: &Model, plan: &Plan, out: &Path, part: Part, cx: &Context) -> Result<Outcome> {
    if plan.needs_data() && plan.calibration.is_none() && plan.statistics.is_none() {
        let rule =
            format!("recipe `{}` needs a calibration text (--calib FILE) or statistics (--stats)", plan.recipe.name);
        return Err(ParamError::new("calib", "missing", rule).into());
    }
    let tasks = plan.tasks();
    let share = match part {
        Part::Task(k) if k >= tasks.len() => {
            let rule = format!("must be below {}, the number of tasks of the plan", tasks.len());
            return Err(ParamError::new("task", k, rule).into());
        }
        Part::Task(k) => Share::Task(k),
        _ => Share::Alone,
    };
    let start = Instant::now();
    let inputs = json!(plan.inputs);
    let beside = match &plan.statistics {
        Some(statistics) => json!({"files of statistics": statistics.hashes()?}),
        None => json!({}),
    };
    let work = match output::open(out, &inputs, &beside, MANIFEST, share)? {
        Output::Finished => {
            check_finished(model, plan, out)?;
            return Ok(Outcome::DoneBefore);
        }
        Output::Open(work) => work,
    };
    let mut job =
        Job { model, plan, cx, parts: Parts::new(&work.scratch()), smoothed: Default::default(), rotated: None };
    job.rotated = rewrites::of_network(&job)?;
    if let Part::Task(k) = part {
        tasks::run(&job, tasks[k])?;
        return Ok(Outcome::Task);
    }
    if part == Part::All
        && let Err(e) = all_tasks(&mut job)
    {
        // If there is no result yet, the directory is removed.
        if !job.parts.any()? {
            work.abandon();
        } else if let Error::Cancelled = e {
            cx.progress.warn("stopped; the same command again continues from here");
        }
        return Err(e);
    }
    merge(&job, work, (part == Part::All).then_some(start))?;
    Ok(Outcome::Done)
}

/// Does all tasks in this process.
fn all_tasks(job: &mut Job<'_>) -> Result<()> {
    let (plan, cx) = (job.plan, job.cx);
    let calibration = if plan.needs_data() && plan.statistics.is_none() {
        let checkpoint = Checkpoint::open(job.model.path(), &tersor::registry())?;
        let windows = windows::cut(plan, &checkpoint, &*cx.progress)?;
        Some((checkpoint, windows))
    } else {
        None
    };
    if let Some(rotation) = plan.rotation.as_ref().filter(|_| plan.rotation_needs_data())
        && let Some((checkpoint, windows)) = &calibration
    {
        if job.rotated.is_some() {
            rewrites::check_network(job)?;
        } else {
            rewrites::find_network(job, &**rotation, checkpoint, windows)?;
            job.rotated = rewrites::of_network(job)?;
        }
    }
    let job = &*job;
    let numbers = (0..plan.entries.len()).filter(|i| matches!(plan.entries[*i].action, Action::Compress(_)));
    let numbers: Vec<usize> = numbers.collect();
    for &i in &numbers {
        // The sources of finished matrices must not have changed.
        if let Some(record) = job.parts.finished(i)? {
            cx.cancel.check()?;
            check_source(job.model, &plan.entries[i], record.manifest["source_blake3"].as_str())?;
        }
    }
    cx.progress.begin("compress", numbers.len() as u64);
    let network = plan.network.as_ref().filter(|_| plan.needs_site_data());
    let sites = network.map(|n| n.sites()).unwrap_or_default();
    let fed = |i: &usize| {
        let reads = |s: &Site| s.consumers.iter().any(|c| c.weight == plan.entries[*i].name);
        sites.iter().any(|s| reads(s) && (s.layer.is_some() || plan.entries[*i].needs().any_data()))
    };
    for &i in numbers.iter().filter(|i| !fed(i)) {
        job.without_data(i)?;
    }
    if let Some(statistics) = &plan.statistics {
        for site in sites.iter().filter(|s| s.consumers.iter().filter_map(|c| plan.entry(&c.weight)).any(|i| fed(&i))) {
            cx.cancel.check()?;
            let unfinished = tasks::unfinished(job, site)?;
            chain::site(job, site, &statistics.site(site, tasks::needs(plan, &unfinished), plan.seed)?)?;
        }
    }
    if let Some((checkpoint, windows)) = calibration.filter(|_| plan.needs_site_data()) {
        chain::run(job, &checkpoint, &windows)?;
    }
    cx.progress.end();
    Ok(())
}

/// Writes finished matrices and copied tensors into the output files. `start` is the time at which the work began, if one process did all of it.
fn merge(job: &Job<'_>, work: Work, start: Option<Instant>) -> Result<()> {
    let (model, plan) = (job.model, job.plan);
    let (mut tensors, mut copied, mut times) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut shards, mut hashes) = (Vec::new(), BTreeMap::new());
    for (file, layout) in plan.files() {
        let names: Vec<String> = layout.keys().cloned().collect();
        let mut writer = Writer::create(&work.pending(&file), layout)?;
        for (i, entry) in plan.entries.iter().enumerate().filter(|(_, e)| e.file == file) {
            job.cx.cancel.check()?;
            if let Action::Fold = entry.action {
                copied.insert(entry.name.clone(), fold(job, entry, &mut writer)?);
                continue;
            }
            if let Action::New = entry.action {
                rewrites::new_tensor(job, entry, &mut writer)?;
                continue;
            }
            if let Action::Copy = entry.action {
                copied.insert(entry.name.clone(), copy(model, entry, Some(&mut writer))?);
                continue;
            }
            let missing = || Error::Missing {
                name: entry.name.clone(),
                place: "the finished matrices; its task has not been done".into(),
            };
            let record = job.parts.finished(i)?.ok_or_else(missing)?;
            job.parts.copy(i, entry, &record, &mut writer)?;
            times.insert(entry.name.clone(), record.seconds);
            tensors.insert(entry.name.clone(), record.manifest);
        }
        writer.finish()?;
        let (bytes, hash) = output::hash_file(&work.pending(&file))?;
        hashes.insert(file.clone(), json!({"bytes": bytes, "blake3": hash}));
        shards.push((file, names));
    }
    let recipe = serde_json::to_value(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
    let (all, body) = bits_per_weight(&plan.weights());
    let manifest = json!({
        "format": Manifest::FORMAT, "version": env!("CARGO_PKG_VERSION"), "recipe": recipe, "seed": plan.seed,
        "fingerprint": plan.fingerprint(), "inputs": plan.inputs, "bits_per_weight": all, "body_bits_per_weight": body,
        "files": hashes, "tensors": tensors, "copied": copied,
    });
    let total = plan.entries.iter().map(Entry::bytes).sum();
    let mut config = model.config().cloned();
    if let (Some(config), Some(changes)) = (config.as_mut(), &job.rotated) {
        for (name, value) in &changes.config {
            config[name] = files::from_value(value);
        }
    }
    let mut beside = output::companions(model, config, &shards, total)?;
    let seconds = start.map_or_else(|| times.values().sum(), |s| s.elapsed().as_secs_f64());
    let timing = json!({"compress_seconds": seconds, "tensors": times});
    beside.push((TIMING.into(), files::to_bytes(&timing)));
    let weights: Vec<String> = shards.into_iter().map(|(f, _)| f).collect();
    work.finish(&weights, &beside, (MANIFEST, files::to_bytes(&manifest)))
}

/// Errors if the model's tensors have changed since a finished directory was made from them.
fn check_finished(model: &Model, plan: &Plan, out: &Path) -> Result<()> {
    let manifest = files::read(&out.join(MANIFEST), &Limits::default())?;
    for entry in &plan.entries {
        let recorded = match entry.action {
            Action::New => continue,
            Action::Copy | Action::Fold => &manifest["copied"][&entry.name],
            Action::Compress(_) => &manifest["tensors"][&entry.name]["source_blake3"],
        };
        check_source(model, entry, recorded.as_str())?;
    }
    Ok(())
}
