//! Runs one task of a plan, for processes that share the work.

use serde_json::json;
use tersor_core::{Error, Result, Site, StatNeeds};
use tersor_models::Checkpoint;

use super::chain::{self, Chain};
use super::matrix::{Job, check_source};
use super::rewrites;
use crate::calibrate::{self, Statistics};
use crate::output::{record_file, recorded};
use crate::plan::{Plan, Task};

/// Does a task, unless it is done. Errors if a task that it depends on is not done, or as its step of the work does.
pub(crate) fn run(job: &Job<'_>, task: Task) -> Result<()> {
    let plan = job.plan;
    if task != Task::Directions && plan.rotation.is_some() && job.rotated.is_none() {
        return Err(Error::format("task", "the task of the principal directions comes first"));
    }
    match task {
        Task::Directions => {
            if job.rotated.is_some() {
                rewrites::check_network(job)?;
            } else if let Some(rotation) = &plan.rotation {
                let checkpoint = open(job)?;
                rewrites::find_network(job, &**rotation, &checkpoint, plan.cut()?)?;
            }
            Ok(())
        }
        Task::Matrix(i) => {
            let entry = &plan.entries[i];
            if let Some(record) = job.parts.finished(i)? {
                return check_source(job.model, entry, record.manifest["source_blake3"].as_str());
            }
            if !entry.needs().any_data() {
                return job.without_data(i);
            }
            let sites = plan.network.as_ref().map(|n| n.sites()).unwrap_or_default();
            let site = sites.into_iter().find(|s| s.consumers.iter().any(|c| c.weight == entry.name));
            let site = site.ok_or_else(|| Error::Missing { name: entry.name.clone(), place: "the sites".into() })?;
            if plan.tasks().contains(&Task::Layer(0)) {
                let checkpoint = open(job)?;
                let layers = checkpoint.architecture()?.layers();
                let mut chain = Chain::start(job, &checkpoint, plan.cut()?, layers)?;
                return if chain.passed() == layers { chain.head(&site) } else { Err(before(chain.passed())) };
            }
            matrix(job, i, site)
        }
        Task::Layer(layer) => {
            let sites = plan.network.as_ref().map(|n| n.sites()).unwrap_or_default();
            let checkpoint = open(job)?;
            // If hidden states of a later layer are saved, this layer is finished.
            if let Some(saved) = job.parts.latest_stream(checkpoint.architecture()?.layers())?
                && saved.layers > layer
            {
                return Ok(());
            }
            for site in sites.iter().filter(|s| s.layer == Some(layer)) {
                for i in site.consumers.iter().filter_map(|c| plan.entry(&c.weight)) {
                    if let Some(record) = job.parts.finished(i)? {
                        check_source(job.model, &plan.entries[i], record.manifest["source_blake3"].as_str())?;
                    }
                }
            }
            let mut chain = Chain::start(job, &checkpoint, plan.cut()?, layer)?;
            if chain.passed() < layer {
                return Err(before(chain.passed()));
            }
            chain.layer()?;
            chain.save()
        }
        Task::Statistics(shard) => {
            let out = job.parts.scratch().join(shard_name(shard));
            if let Some(record) = recorded(&out)? {
                return rewrites::check_sources(job, &record);
            }
            let checkpoint = open(job)?;
            let windows = plan.cut()?;
            let scratch = plan.spill.then(|| job.parts.scratch());
            calibrate::gather(&checkpoint, &plan.wanted(), windows, shard..shard + 1, &out, scratch, job.cx)?;
            let sources = rewrites::hashes(job, rewrites::sources(job))?;
            record_file(&out, json!({"sources": sources}))
        }
    }
}

/// Compresses one matrix with statistics from files or from other tasks.
fn matrix(job: &Job<'_>, number: usize, site: Site) -> Result<()> {
    let plan = job.plan;
    let needs = plan.entries[number].needs();
    // The other consumers of the site are other tasks.
    let alone = Site {
        consumers: site.consumers.iter().filter(|c| c.weight == plan.entries[number].name).cloned().collect(),
        ..site
    };
    let stats = match &plan.statistics {
        Some(statistics) => statistics.site(&alone, needs, plan.seed)?,
        None => {
            let paths: Vec<_> = (0..plan.shards()).map(|s| job.parts.scratch().join(shard_name(s))).collect();
            for (s, path) in paths.iter().enumerate() {
                if recorded(path)?.is_none() {
                    let what = format!("statistics of shard {} are missing: its task comes first", s + 1);
                    return Err(Error::format("task", what));
                }
            }
            Statistics::open(&paths, &plan.wanted())?.site(&alone, needs, plan.seed)?
        }
    };
    chain::site(job, &alone, &stats)
}

/// Returns the indices in the plan of the entries of a site's matrices that are not finished. Errors if a record is invalid.
pub(crate) fn unfinished(job: &Job<'_>, site: &Site) -> Result<Vec<usize>> {
    let all = site.consumers.iter().filter_map(|c| job.plan.entry(&c.weight));
    all.filter_map(|i| job.parts.finished(i).map(|r| r.is_none().then_some(i)).transpose()).collect()
}

/// Returns the statistics that the entries of these indices in the plan need together.
pub(crate) fn needs(plan: &Plan, entries: &[usize]) -> StatNeeds {
    entries.iter().map(|i| plan.entries[*i].needs()).fold(StatNeeds::default(), StatNeeds::union)
}

fn open(job: &Job<'_>) -> Result<Checkpoint> {
    Checkpoint::open(job.model.path(), &job.kinds.operators)
}

fn shard_name(shard: usize) -> String {
    format!("statistics-{shard:06}")
}

/// The error that an earlier layer is not done.
fn before(passed: usize) -> Error {
    Error::format("task", format!("the task of layer {passed} comes first"))
}
