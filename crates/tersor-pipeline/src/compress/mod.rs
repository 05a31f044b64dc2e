//! Compression: turns a model into a complete model directory, as a [`Plan`] says.
//!
//! Work can be stopped at any moment, and the same call continues it; several processes can share it as the tasks of the plan
//! ([`Task`](crate::plan::Task)). The bytes of the weights and of the manifest are the same in all cases. Work in progress is in the folder `.tersor`
//! of the output directory.

mod chain;
mod matrix;
mod parts;
mod rewrites;
mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use tersor_core::{Context, Error, Limits, ParamError, Result, Site};
use tersor_formats::safetensors::Writer;
use tersor_formats::{Model, json as files};
use tersor_models::{Checkpoint, MANIFEST, Manifest, bits_per_weight};

use crate::kinds::Kinds;
use crate::output::{self, Output, Share, Work};
use crate::plan::{Action, Entry, Plan};
pub(crate) use matrix::report_json;
use matrix::{Job, check_source, copy, fold, warn_of_no_effect};
use parts::Parts;

/// The name of the JSON file of an output directory that has the seconds of compression, as a whole and for each matrix. It is the only file of the
/// output that differs from run to run.
pub const TIMING: &str = "timing.json";

/// Which part of the work a call of [`compress`] does: all of it, or, if several processes share the work, one task or the merge of all results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All tasks of the plan, and the merge of their results into the output.
    All,
    /// The task of this number, its index in [`Plan::tasks`]. Other processes may do other tasks at the same time, once the tasks that these depend
    /// on are done ([`TaskSummary::after`](crate::plan::TaskSummary::after)).
    Task(usize),
    /// The merge of the results of all tasks, which must be done, into the output directory. No other process may work in it.
    Merge,
}

/// What a call of [`compress`] did.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// The output directory is complete, now or since before the call. Also the outcome of [`Part::Task`] in a directory that is complete already.
    Finished(Finished),
    /// The task of this number is done, now or since before the call.
    Task(usize),
}

/// The figures of a complete output directory of [`compress`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finished {
    /// The output directory, as it was given.
    pub out: PathBuf,
    /// The name of the recipe of the plan, such as `w4-g128-gptq`, or the name that a recipe file states.
    pub recipe: String,
    /// Whether the directory was complete before the call, which then did nothing but check it.
    pub finished_before: bool,
    /// The stored bits per element over all two-dimensional tensors, embedding tables and output head included. Scales and other parameters of the
    /// stored form count.
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables and output head; 0 if there are none.
    pub body_bits_per_weight: f64,
    /// The total length of all weight files in bytes, headers included.
    pub weight_bytes: u64,
    /// The seconds of the call that did all of the work, or that continued it last. If tasks were merged, the sum of the seconds of all matrices. 0
    /// if the file [`TIMING`] cannot be read.
    pub compress_seconds: f64,
    /// One hash over everything that the bytes of the result depend on: BLAKE3, 64 hexadecimal digits ([`Plan::fingerprint`]).
    pub fingerprint: String,
}

/// Checks that the model at `path` is no output of [`compress`], which cannot be compressed again. A path at which there is nothing is no such
/// output.
///
/// # Errors
///
/// An [`Error::Unsupported`] with the path if the directory has a file `tersor.json`.
pub fn check_original(path: &Path) -> Result<()> {
    if output::is_compressed(path) {
        let value = path.display().to_string();
        return Err(Error::Unsupported { what: "compressing an already compressed model", value });
    }
    Ok(())
}

/// Compresses `model` into the directory `out` as `plan` says, or does the part `part` of this work. The directory is made if it does not exist. It
/// gets the weight files, the manifest `tersor.json` with the recipe, the errors of all matrices and hashes of all files, [`TIMING`], the
/// configuration and the tokenizer. `plan` must be a plan of this model, and `kinds` must have the operators of its methods. Progress, warnings,
/// threads and cancellation are those of `cx`; the seed is that of the plan.
///
/// If the call fails or is stopped, the results so far are kept, and the same call continues from there; without any result, [`Part::All`] deletes
/// the work in progress, and `out` if it is empty then. If `out` is complete already, the model is only checked against the hashes in its manifest.
///
/// # Errors
///
/// An [`Error::Unsupported`] if the model is an output of `compress` itself. An [`Error::Param`] if the plan needs calibration data and has none, or
/// if the plan has no task of the number. An [`Error::Format`] with the directory if `out` has other files, work from other inputs (the message names
/// the inputs that differ), or is in use by another process. An [`Error::Format`] or [`Error::Missing`] if a task that must be done before is not
/// done.
///
/// An [`Error::Tensor`] with the name of the tensor if a value is not finite, if a method fails on the matrix, or if the tensor has changed since its
/// result in `out` was made. An [`Error::Io`] if a file cannot be read or written. [`Error::Cancelled`] if the work is cancelled.
pub fn compress(model: &Model, plan: &Plan, out: &Path, part: Part, kinds: &Kinds, cx: &Context) -> Result<Outcome> {
    check_original(model.path())?;
    let cx = cx.clone().with_seed(plan.seed);
    let finished_before = match work(model, plan, out, part, kinds, &cx)? {
        State::Done => false,
        State::DoneBefore => true,
        State::Task(k) => return Ok(Outcome::Task(k)),
    };
    let (bits_per_weight, body_bits_per_weight) = bits_per_weight(&plan.weights());
    Ok(Outcome::Finished(Finished {
        out: out.to_path_buf(),
        recipe: plan.recipe.name.clone(),
        finished_before,
        bits_per_weight,
        body_bits_per_weight,
        weight_bytes: plan.weight_bytes()?,
        compress_seconds: recorded_seconds(out),
        fingerprint: plan.fingerprint(),
    }))
}

/// Returns the seconds that compression took, from the directory's timings.
fn recorded_seconds(dir: &Path) -> f64 {
    let timing = files::read(&dir.join(TIMING), &Limits::default());
    timing.ok().and_then(|t| t["compress_seconds"].as_f64()).unwrap_or(0.0)
}

/// The state of the directory after a part of the work.
enum State {
    /// It is now complete.
    Done,
    /// It was complete before.
    DoneBefore,
    /// This task is done.
    Task(usize),
}

/// Does a part of the work.
fn work(model: &Model, plan: &Plan, out: &Path, part: Part, kinds: &Kinds, cx: &Context) -> Result<State> {
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
            return Ok(State::DoneBefore);
        }
        Output::Open(work) => work,
    };
    let parts = Parts::new(&work.scratch());
    let non_finite = plan.entries.iter().map(|e| (e.name.clone(), plan.non_finite(e))).collect();
    let mut job = Job { model, plan, cx, kinds, parts, smoothed: Default::default(), rotated: None, non_finite };
    job.rotated = rewrites::of_network(&job)?;
    if let Part::Task(k) = part {
        tasks::run(&job, tasks[k])?;
        return Ok(State::Task(k));
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
    Ok(State::Done)
}

/// Does all tasks in this process.
fn all_tasks(job: &mut Job<'_>) -> Result<()> {
    let (plan, cx) = (job.plan, job.cx);
    let calibration = if plan.needs_data() && plan.statistics.is_none() {
        let checkpoint = Checkpoint::open(job.model.path(), &job.kinds.operators)?;
        Some((checkpoint, plan.cut()?))
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
        chain::run(job, &checkpoint, windows)?;
    }
    cx.progress.end();
    Ok(())
}

/// Writes finished matrices and copied tensors into the output files. `start` is the time at which the work began, if one process did all of it.
fn merge(job: &Job<'_>, work: Work, start: Option<Instant>) -> Result<()> {
    let (model, plan, cx) = (job.model, job.plan, job.cx);
    cx.progress.begin("write", plan.entries.len() as u64);
    let (mut tensors, mut copied, mut times) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut shards, mut hashes) = (Vec::new(), BTreeMap::new());
    for (file, layout) in plan.files() {
        let names: Vec<String> = layout.keys().cloned().collect();
        let mut writer = Writer::create(&work.pending(&file), layout)?;
        for (i, entry) in plan.entries.iter().enumerate().filter(|(_, e)| e.file == file) {
            cx.cancel.check()?;
            match entry.action {
                Action::Fold => {
                    copied.insert(entry.name.clone(), fold(job, entry, &mut writer)?);
                }
                Action::New => rewrites::new_tensor(job, entry, &mut writer)?,
                Action::Copy => {
                    copied.insert(entry.name.clone(), copy(model, entry, Some(&mut writer))?);
                }
                Action::Compress(_) => {
                    let missing = || Error::Missing {
                        name: entry.name.clone(),
                        place: "the finished matrices; its task has not been done".into(),
                    };
                    let record = job.parts.finished(i)?.ok_or_else(missing)?;
                    job.parts.copy(i, entry, &record, &mut writer)?;
                    times.insert(entry.name.clone(), record.seconds);
                    tensors.insert(entry.name.clone(), record.manifest);
                }
            }
            cx.progress.advance(1, &entry.name);
        }
        writer.finish()?;
        let (bytes, hash) = output::hash_file(&work.pending(&file))?;
        hashes.insert(file.clone(), json!({"bytes": bytes, "blake3": hash}));
        shards.push((file, names));
    }
    warn_of_no_effect(plan, &tensors, job.cx);
    let recipe = plan.recipe.to_json();
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
    work.finish(&weights, &beside, (MANIFEST, files::to_bytes(&manifest)), &*cx.progress)?;
    cx.progress.end();
    Ok(())
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
