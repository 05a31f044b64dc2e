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

/// Returns the hash of the tensor of each entry, by its name. Errors if a tensor cannot be read.
pub(crate) fn hashes<'j>(job: &Job<'j>, entries: impl Iterator<Item = &'j Entry>) -> Result<BTreeMap<String, String>> {
    entries.map(|e| Ok((e.name.clone(), source_hash(job.model, e)?))).collect()
}

/// Returns the changes of the sites (inputs of linear layers) of a layer; None if they have not been found yet. Errors if the stored file, or a
/// tensor that it was made from, has changed since it was recorded.
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

/// Returns the change that the running network applies to the inputs of the matrix `weight`; None if there is none. Errors if the changes of its
/// layer cannot be read.
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

/// Computes the changes of the observed sites of a layer, stores them, and returns the folds (changes of stored weights). Errors if a change cannot
/// be computed or stored.
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

/// Returns the changes of the whole network; None without a rotation, or if they need data and have not been found yet. Changes that need no data are
/// computed here. Errors if they cannot be computed, or the stored file has changed since it was recorded.
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

/// Checks that the tensors of the model are those from which the changes of the network were computed. Errors, naming the tensor, if one has changed.
pub(crate) fn check_network(job: &Job<'_>) -> Result<()> {
    check_sources(job, &recorded(&network_path(job))?.unwrap_or_default())
}

/// Checks that the tensors of the model have the hashes that `record` has under `sources`, by their names. Errors, naming the tensor, if one has
/// another hash, and if the work is cancelled.
pub(crate) fn check_sources(job: &Job<'_>, record: &Json) -> Result<()> {
    for entry in sources(job) {
        job.cx.cancel.check()?;
        check_source(job.model, entry, record["sources"][&entry.name].as_str())?;
    }
    Ok(())
}

/// Returns the entries of the plan whose tensors are in the model.
pub(crate) fn sources<'j>(job: &Job<'j>) -> impl Iterator<Item = &'j Entry> {
    job.plan.entries.iter().filter(|e| !matches!(e.action, Action::New))
}

/// Computes the changes of the network on the calibration windows, and stores them. Errors if they cannot be computed or stored.
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

/// Writes a tensor that the rotation of the network adds into `sink`. Errors if the changes of the network have not been found yet.
pub(crate) fn new_tensor(job: &Job<'_>, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let place = "the changes of the network; their task comes first";
    let changes = job.rotated.as_ref().ok_or_else(|| Error::missing(&entry.name, place))?;
    let (name, info) = &entry.tensors[0];
    let bytes = changes.tensors.get(name).ok_or_else(|| Error::missing(name, place))?;
    sink.write_shared(name, info, bytes)
}
