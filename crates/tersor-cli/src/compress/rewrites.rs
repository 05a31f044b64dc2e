//! Rewrites of sites, found once, kept with the work in progress, and applied to tensors as they are read.

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
use tersor::llm::{Behind, Calibration, Checkpoint, Hooks, Seen, SiteChanges};

use super::matrix::{Job, check_source, source_hash};
use super::parts::{record_file, recorded};
use crate::plan::{Action, Entry};

/// Changes of a layer's sites, or of the network, on disk.
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

/// The changes of a layer's sites; none where they have not been found yet.
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

/// The folds of a tensor, those that are undone in front of it included.
pub fn folds_of(changes: &Changes, name: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight == name).chain(changes.online(name)).cloned().collect()
}

/// The folds of tensors whose names begin so, without those that are undone when the network runs: how a layer is read for calibration.
pub fn merged(changes: &Changes, prefix: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight.starts_with(prefix)).cloned().collect()
}

/// What happens to the inputs of a matrix when the network runs. Error when the factors of its layer have not been found yet.
pub fn in_front(job: &Job<'_>, weight: &str) -> Result<Option<InputChange>> {
    let change = |changes: &Changes| changes.online(weight).map(|f| f.transform.input_change()).transpose();
    match (&job.rotated, job.smoothed_layer(weight)) {
        (Some(changes), _) => change(changes),
        (None, Some(layer)) => of_layer(job, layer)?.map_or(Ok(None), |changes| change(&changes)),
        (None, None) => Ok(None),
    }
}

/// The weights of the model as compression reads them, with folds that were found before.
struct Changed<'a> {
    job: &'a Job<'a>,
    folds: &'a [Fold],
}

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

/// Sites that were seen already.
struct Here<'a, 's>(&'a [SeenSite<'s>]);

impl tersor::core::Seen for Here<'_, '_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(self.0)
    }
}

/// The methods without data that stand for what the consumers of a site will become.
fn plain<'p>(job: &'p Job<'_>, site: &Site) -> Vec<Option<&'p dyn Method>> {
    let entry = |weight: &str| job.plan.entry(weight).map(|i| &job.plan.entries[i].action);
    let method = |weight: &str| match entry(weight) {
        Some(Action::Compress(method)) => method.plain(),
        _ => None,
    };
    site.consumers.iter().map(|c| method(&c.weight)).collect()
}

/// Finds the changes of a layer's sites, site by site, each on weights that the ones before have changed; keeps them, and gives the folds.
pub fn smooth(job: &Job<'_>, layer: usize, seen: &[Seen<'_>]) -> Result<Vec<Fold>> {
    let mut all = Changes::default();
    for s in seen {
        let Some(rewrite) = job.plan.smoothings.get(&s.site.name) else { continue };
        let plain = plain(job, s.site);
        let site = [s.as_site(&plain)];
        let folds = all.folds.clone();
        let weights = Changed { job, folds: &folds };
        all.extend(rewrite.rewrite(std::slice::from_ref(s.site), &weights, &Here(&site), job.cx)?);
    }
    write(&layer_path(job, layer), &all)?;
    Ok(all.folds)
}

fn network_path(job: &Job<'_>) -> PathBuf {
    job.parts.scratch().join("rotations")
}

/// The changes of the network, where they are known: those that need no data are found here. Error when the file is not what was recorded.
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

/// Error unless the tensors of the model are still those that the changes of the network were found on.
pub fn check_network(job: &Job<'_>) -> Result<()> {
    let json = recorded(&network_path(job))?.unwrap_or_default();
    for entry in sources(job) {
        job.cx.cancel.check()?;
        check_source(job.model, entry, json["sources"][&entry.name].as_str())?;
    }
    Ok(())
}

fn sources<'j>(job: &Job<'j>) -> impl Iterator<Item = &'j Entry> {
    job.plan.entries.iter().filter(|e| !matches!(e.action, Action::New))
}

/// The original network, seen layer by layer on the calibration text.
struct Walk<'a> {
    job: &'a Job<'a>,
    rewrite: &'a dyn Rewrite,
    checkpoint: &'a Checkpoint,
    windows: &'a [Vec<u32>],
    folds: Vec<Fold>,
}

impl tersor::core::Seen for Walk<'_> {
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
            let rewrite = &mut |seen: &[Seen<'_>]| {
                let sites: Vec<SeenSite<'_>> = seen.iter().map(|s| s.as_site(&[])).collect();
                f(&sites).map(|()| Vec::new())
            };
            let prefix = format!("model.layers.{layer}.");
            let mut hooks = Hooks {
                behind: Behind::Original,
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

/// Finds the changes of the network on the calibration text, and keeps them.
pub fn find_network(job: &Job<'_>, rewrite: &dyn Rewrite, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<()> {
    let (sites, weights) = (job.plan.sites(), Changed { job, folds: &[] });
    let folds = rewrite.observed_with(&sites, &weights)?;
    let changes = rewrite.rewrite(&sites, &weights, &Walk { job, rewrite, checkpoint, windows, folds }, job.cx)?;
    write(&network_path(job), &changes)?;
    let hashes = sources(job).map(|e| Ok((e.name.clone(), source_hash(job.model, e)?)));
    let hashes = hashes.collect::<Result<BTreeMap<_, _>>>()?;
    record_file(&network_path(job), json!({"sources": hashes}))
}

/// Writes a tensor that the changes of the network have made.
pub fn new_tensor(job: &Job<'_>, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let place = "the changes of the network; their task comes first";
    let changes = job.rotated.as_ref().ok_or_else(|| Error::missing(&entry.name, place))?;
    let (name, info) = &entry.tensors[0];
    let bytes = changes.tensors.get(name).ok_or_else(|| Error::missing(name, place))?;
    sink.write_shared(name, info, bytes)
}
