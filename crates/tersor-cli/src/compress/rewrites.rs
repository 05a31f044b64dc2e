//! Rewrites of sites: they are found once, stored with the work in progress, and applied to tensors as they are read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tersor::core::{
    Changes, Error, Fold, FoldedRows, InputChange, Limits, Method, NonFinite, Repaired, Result, Rewrite, RowSource,
    SeenSite, Site, StatNeeds, StatSet, TensorSink, TensorSource, Weights,
};
use tersor::formats::safetensors::{File, Writer};
use tersor::llm::{Calibration, Checkpoint, Hooks, ObservedSite, SiteChanges, Upstream};

use super::matrix::{Job, check_source, source_hash};
use super::parts::{record_file, recorded};
use crate::plan::{Action, Entry};

/// Writes the changes of a layer's sites, or of the network, to a file.
fn write(path: &Path, changes: &Changes) -> Result<()> {
    let tensors = changes.to_tensors()?;
    let layout = tensors.names().into_iter().map(|n| Ok((n.clone(), tensors.info(&n)?)));
    let mut writer = Writer::create(path, layout.collect::<Result<BTreeMap<_, _>>>()?)?;
    for name in tensors.names() {
        writer.write_shared(&name, &tensors.info(&name)?, tensors.get(&name).unwrap_or_default())?;
    }
    writer.finish()
}

fn layer_path(job: &Job<'_>, layer: usize) -> PathBuf {
    job.parts.scratch().join(format!("factors-{layer:06}"))
}

/// Returns the changes of a layer's sites; none if they have not been found yet.
pub fn of_layer(job: &Job<'_>, layer: usize) -> Result<Option<Arc<Changes>>> {
    let mut known = job.smoothed.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, changes)) = known.as_ref().filter(|(l, _)| *l == layer) {
        return Ok(Some(changes.clone()));
    }
    let path = layer_path(job, layer);
    if !path.is_file() {
        return Ok(None);
    }
    let changes = Arc::new(Changes::from_tensors(&File::open(&path, &Limits::default())?)?);
    *known = Some((layer, changes.clone()));
    Ok(Some(changes))
}

/// Returns the folds of a tensor, including those whose inverse is applied to its inputs when the network runs.
pub fn folds_of(changes: &Changes, name: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight == name).chain(changes.online(name)).cloned().collect()
}

/// Returns the folds of tensors whose names begin with `prefix`, without those whose inverse is applied when the network runs: a layer is read with
/// these for calibration.
pub fn merged(changes: &Changes, prefix: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight.starts_with(prefix)).cloned().collect()
}

/// Returns the transform that the running network applies to the inputs of a matrix, if there is one.
pub fn input_change(job: &Job<'_>, weight: &str) -> Result<Option<InputChange>> {
    let change = |changes: &Changes| changes.online(weight).map(|f| f.transform.input_change()).transpose();
    match (&job.rotated, job.smoothed_layer(weight)) {
        (Some(changes), _) => change(changes),
        (None, Some(layer)) => of_layer(job, layer)?.map_or(Ok(None), |changes| change(&changes)),
        (None, None) => Ok(None),
    }
}

/// The weights of the model as compression reads them, with the folds found so far.
struct Changed<'a> {
    job: &'a Job<'a>,
    folds: &'a [Fold],
}

/// Rows of [`Changed`] weights.
struct ChangedRows<'a> {
    rows: Box<dyn RowSource + 'a>,
    policy: NonFinite,
    name: String,
    folds: &'a [Fold],
}

impl Weights for Changed<'_> {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let policy = self.job.plan.recipe.rule(name)?.map_or(Ok(NonFinite::Refuse), |r| r.1.non_finite())?;
        let rows = self.job.model.rows(name)?;
        Ok(Box::new(ChangedRows { rows, policy, name: name.into(), folds: self.folds }))
    }
}

impl RowSource for ChangedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.rows.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let repaired = Repaired::new(&*self.rows, self.policy);
        FoldedRows::new(&repaired, &self.name, self.folds)?.read_rows(rows, out)
    }
}

/// Observations of sites that are in memory.
struct Observed<'a, 's>(&'a [SeenSite<'s>]);

impl tersor::core::Seen for Observed<'_, '_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(self.0)
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

/// Finds the changes of a layer's sites in order, each with the folds of the sites before it applied; stores them, and returns the folds.
pub fn smooth(job: &Job<'_>, layer: usize, observed: &[ObservedSite<'_>]) -> Result<Vec<Fold>> {
    let mut all = Changes::default();
    for s in observed {
        let Some(rewrite) = job.plan.smoothings.get(&s.site.name) else { continue };
        let plain = plain(job, s.site);
        let site = [s.as_site(&plain)];
        let folds = all.folds.clone();
        let weights = Changed { job, folds: &folds };
        all.extend(rewrite.rewrite(std::slice::from_ref(s.site), &weights, &Observed(&site), job.cx)?)?;
    }
    write(&layer_path(job, layer), &all)?;
    Ok(all.folds)
}

fn network_path(job: &Job<'_>) -> PathBuf {
    job.parts.scratch().join("rotations")
}

/// Returns the changes of the network; none if they need data and have not been found yet. Changes that need no data are computed here. Errors if the
/// stored file has changed since it was recorded.
pub fn of_network(job: &Job<'_>) -> Result<Option<Changes>> {
    let Some(rewrite) = &job.plan.rotation else { return Ok(None) };
    if !job.plan.rotation_needs_data() {
        let weights = Changed { job, folds: &[] };
        return rewrite.rewrite(&job.plan.sites(), &weights, &tersor::core::Unseen, job.cx).map(Some);
    }
    if recorded(&network_path(job))?.is_none() {
        return Ok(None);
    }
    Changes::from_tensors(&File::open(&network_path(job), &Limits::default())?).map(Some)
}

/// Errors if the tensors of the model have changed since the changes of the network were found.
pub fn check_network(job: &Job<'_>) -> Result<()> {
    let json = recorded(&network_path(job))?.unwrap_or_default();
    for entry in sources(job) {
        job.cx.cancel.check()?;
        check_source(job.model, entry, json["sources"][&entry.name].as_str())?;
    }
    Ok(())
}

/// Returns the entries whose tensors are in the model.
fn sources<'j>(job: &Job<'j>) -> impl Iterator<Item = &'j Entry> {
    job.plan.entries.iter().filter(|e| !matches!(e.action, Action::New))
}

/// Observations of the original network, made layer by layer on the calibration windows.
struct OriginalPass<'a> {
    job: &'a Job<'a>,
    rewrite: &'a dyn Rewrite,
    checkpoint: &'a Checkpoint,
    windows: &'a [Vec<u32>],
    folds: Vec<Fold>,
}

impl tersor::core::Seen for OriginalPass<'_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        let (job, plan, cx) = (self.job, self.job.plan, self.job.cx);
        let slices: Vec<&[u32]> = self.windows.iter().map(Vec::as_slice).collect();
        let scratch = plan.spill.then(|| job.parts.scratch());
        let mut calibration = Calibration::new(self.checkpoint, &slices, 0..slices.len(), plan.windows[1], scratch)?;
        calibration.embed(&mut |name, row, out| job.model.rows(name)?.read_rows(row..row + 1, out))?;
        let layers = self.checkpoint.architecture().layers();
        cx.progress.begin("principal directions", layers as u64);
        for layer in 0..layers {
            let needs = |site: &Site| self.rewrite.needs(site);
            let rewrite = &mut |observed: &[ObservedSite<'_>]| {
                let sites: Vec<SeenSite<'_>> = observed.iter().map(|s| s.as_site(&[])).collect();
                f(&sites).map(|()| Vec::new())
            };
            let prefix = format!("model.layers.{layer}.");
            let mut hooks = Hooks {
                upstream: Upstream::Original,
                cancel: &cx.cancel,
                seed: plan.seed,
                needs: &|_| StatNeeds::default(),
                change: &|_| Ok(None),
                compress: &mut |_: &Site, _: &StatSet| Ok(Vec::new()),
                rewriting: Some(SiteChanges { needs: &needs, rewrite }),
                folds: self.folds.iter().filter(|f| f.weight.starts_with(&prefix)).cloned().collect(),
            };
            calibration.layer(layer, &mut hooks)?;
            cx.progress.advance(1, &format!("layer {layer}"));
        }
        cx.progress.end();
        Ok(())
    }
}

/// Finds the changes of the network on the calibration windows, and stores them.
pub fn find_network(job: &Job<'_>, rewrite: &dyn Rewrite, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<()> {
    let (sites, weights) = (job.plan.sites(), Changed { job, folds: &[] });
    let folds = rewrite.observed_with(&sites, &weights)?;
    let pass = OriginalPass { job, rewrite, checkpoint, windows, folds };
    let changes = rewrite.rewrite(&sites, &weights, &pass, job.cx)?;
    write(&network_path(job), &changes)?;
    let hashes = sources(job).map(|e| Ok((e.name.clone(), source_hash(job.model, e)?)));
    let hashes = hashes.collect::<Result<BTreeMap<_, _>>>()?;
    record_file(&network_path(job), json!({"sources": hashes}))
}

/// Writes a tensor that the rotation of the network adds.
pub fn new_tensor(job: &Job<'_>, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let place = "the changes of the network; their task comes first";
    let changes = job.rotated.as_ref().ok_or_else(|| Error::missing(&entry.name, place))?;
    let (name, info) = &entry.tensors[0];
    let bytes = changes.tensors.get(name).ok_or_else(|| Error::missing(name, place))?;
    sink.write_shared(name, info, bytes)
}
