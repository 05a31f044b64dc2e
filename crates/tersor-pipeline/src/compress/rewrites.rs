//! The rewrites of a compression: they are found once, stored with the work in progress, and applied to tensors as they are read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tersor_core::{Changes, Error, Fold, InputChange, Method, Result, Rewrite, Site, TensorSink};
use tersor_models::{Checkpoint, ObservedSite};

use super::matrix::{Job, check_source, source_hash};
use crate::output::{record_file, recorded};
use crate::plan::{Action, Entry};
use crate::rewrite;

fn layer_path(job: &Job<'_>, layer: usize) -> PathBuf {
    job.parts.scratch().join(format!("factors-{layer:06}"))
}

/// Returns the entries of a layer whose tensors are in the model.
fn of_layer_entries<'j>(job: &Job<'j>, layer: usize) -> impl Iterator<Item = &'j Entry> {
    let network = job.plan.network.as_ref();
    sources(job).filter(move |e| network.and_then(|n| n.layer_of(&e.name)) == Some(layer))
}

/// Returns the hash of the tensor of each entry, by name.
pub(crate) fn hashes<'j>(job: &Job<'j>, entries: impl Iterator<Item = &'j Entry>) -> Result<BTreeMap<String, String>> {
    entries.map(|e| Ok((e.name.clone(), source_hash(job.model, e)?))).collect()
}

/// Returns the changes of a layer's sites; none if they have not been found yet. Errors if the stored file, or a tensor that it was made from, has
/// changed since it was recorded.
pub(crate) fn of_layer(job: &Job<'_>, layer: usize) -> Result<Option<Arc<Changes>>> {
    let mut known = job.smoothed.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, changes)) = known.as_ref().filter(|(l, _)| *l == layer) {
        return Ok(Some(changes.clone()));
    }
    let path = layer_path(job, layer);
    let Some(record) = recorded(&path)? else { return Ok(None) };
    for entry in of_layer_entries(job, layer) {
        check_source(job.model, entry, record["sources"][&entry.name].as_str())?;
    }
    let changes = Arc::new(rewrite::load(&path)?);
    *known = Some((layer, changes.clone()));
    Ok(Some(changes))
}

/// Returns the transform that the running network applies to the inputs of a matrix, if there is one.
pub(crate) fn input_change(job: &Job<'_>, weight: &str) -> Result<Option<InputChange>> {
    let change = |changes: &Changes| changes.online(weight).map(|f| f.transform.input_change()).transpose();
    match (&job.rotated, job.smoothed_layer(weight)) {
        (Some(changes), _) => change(changes),
        (None, Some(layer)) => of_layer(job, layer)?.map_or(Ok(None), |changes| change(&changes)),
        (None, None) => Ok(None),
    }
}

/// Returns, for each consumer of a site, the data-free method with the grid that it will be quantized to, or none.
fn plain<'p>(job: &'p Job<'_>, site: &Site) -> Vec<Option<&'p dyn Method>> {
    let entry = |weight: &str| job.plan.entry(weight).map(|i| &job.plan.entries[i].action);
    let method = |weight: &str| match entry(weight) {
        Some(Action::Compress(method)) => method.plain(),
        _ => None,
    };
    site.consumers.iter().map(|c| method(&c.weight)).collect()
}

/// Finds the changes of a layer's sites, stores them, and returns the folds.
pub(crate) fn smooth(job: &Job<'_>, layer: usize, observed: &[ObservedSite<'_>]) -> Result<Vec<Fold>> {
    let changes = rewrite::of_sites(job.search(), &job.plan.smoothings, &|site| plain(job, site), observed)?;
    rewrite::save(&layer_path(job, layer), &changes)?;
    record_file(&layer_path(job, layer), json!({"sources": hashes(job, of_layer_entries(job, layer))?}))?;
    let folds = changes.folds.clone();
    *job.smoothed.lock().unwrap_or_else(|e| e.into_inner()) = Some((layer, Arc::new(changes)));
    Ok(folds)
}

fn network_path(job: &Job<'_>) -> PathBuf {
    job.parts.scratch().join("rotations")
}

/// Returns the changes of the network; none if they need data and have not been found yet. Changes that need no data are computed here. Errors if the
/// stored file has changed since it was recorded.
pub(crate) fn of_network(job: &Job<'_>) -> Result<Option<Changes>> {
    let Some(rotation) = &job.plan.rotation else { return Ok(None) };
    if !job.plan.rotation_needs_data() {
        return rewrite::without_data(job.search(), &**rotation, &job.plan.sites()).map(Some);
    }
    if recorded(&network_path(job))?.is_none() {
        return Ok(None);
    }
    rewrite::load(&network_path(job)).map(Some)
}

/// Errors if the tensors of the model have changed since the changes of the network were found.
pub(crate) fn check_network(job: &Job<'_>) -> Result<()> {
    check_sources(job, &recorded(&network_path(job))?.unwrap_or_default())
}

/// Errors if a tensor of the model is not the one whose hash a record has under `sources`.
pub(crate) fn check_sources(job: &Job<'_>, record: &Json) -> Result<()> {
    for entry in sources(job) {
        job.cx.cancel.check()?;
        check_source(job.model, entry, record["sources"][&entry.name].as_str())?;
    }
    Ok(())
}

/// Returns the entries whose tensors are in the model.
pub(crate) fn sources<'j>(job: &Job<'j>) -> impl Iterator<Item = &'j Entry> {
    job.plan.entries.iter().filter(|e| !matches!(e.action, Action::New))
}

/// Finds the changes of the network on the calibration windows, and stores them.
pub(crate) fn find_network(
    job: &Job<'_>,
    rotation: &dyn Rewrite,
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
) -> Result<()> {
    let scratch = job.plan.spill.then(|| job.parts.scratch());
    let text = rewrite::Windows { checkpoint, tokens: windows, ctx: job.plan.windows[1], scratch };
    let changes = rewrite::with_data(job.search(), rotation, &job.plan.sites(), text)?;
    rewrite::save(&network_path(job), &changes)?;
    record_file(&network_path(job), json!({"sources": hashes(job, sources(job))?}))
}

/// Writes a tensor that the rotation of the network adds.
pub(crate) fn new_tensor(job: &Job<'_>, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let place = "the changes of the network; their task comes first";
    let changes = job.rotated.as_ref().ok_or_else(|| Error::missing(&entry.name, place))?;
    let (name, info) = &entry.tensors[0];
    let bytes = changes.tensors.get(name).ok_or_else(|| Error::missing(name, place))?;
    sink.write_shared(name, info, bytes)
}
