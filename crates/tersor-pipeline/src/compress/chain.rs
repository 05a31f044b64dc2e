//! Compression with calibration data: the calibration windows pass through the network one layer at a time, and each site's matrices are compressed
//! with the statistics of its inputs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tersor_core::{
    Compressed, Context, Error, Exec, Fold, FoldedRows, InputChange, LinearOp, Prepared, Result, RowSource, Site,
    StatNeeds, StatSet,
};
use tersor_models::{Calibration, Checkpoint, Hooks, ObservedSite, SiteChanges, Upstream};
use tersor_operators::online;

use super::matrix::{Job, check_source, source_hash};
use super::{rewrites, tasks};
use crate::plan::Action;
use crate::rewrite;

/// How often the hidden states are saved when one process does all tasks: the work that a crash loses.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// The pass of the calibration windows (token sequences) through the layers, in which each layer is compressed with the inputs that it gets.
pub(crate) struct Chain<'j, 'a> {
    job: &'j Job<'a>,
    checkpoint: &'j Checkpoint,
    calibration: Calibration<'j>,
    upstream: Upstream,
    /// Number of layers passed so far.
    passed: usize,
    /// Hashes of the copied tensors of the layers passed so far.
    sources: BTreeMap<String, String>,
}

impl<'j, 'a> Chain<'j, 'a> {
    /// Starts behind the latest saved hidden states of at most `max` layers, or at the embeddings. `windows` has the token numbers of all calibration
    /// windows. Errors if a tensor that was read before has changed, if the embedding is to be compressed first and is not, or if a file cannot be
    /// read.
    pub(crate) fn start(
        job: &'j Job<'a>,
        checkpoint: &'j Checkpoint,
        windows: &[Vec<u32>],
        max: usize,
    ) -> Result<Self> {
        let plan = job.plan;
        let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let scratch = plan.spill.then(|| job.parts.scratch());
        let all = 0..slices.len();
        let mut calibration = Calibration::new(checkpoint, &slices, all, plan.windows[1], scratch)?;
        let upstream = plan.upstream();
        let (mut passed, mut sources) = (0, BTreeMap::new());
        match job.parts.latest_stream(max)? {
            Some(before) => {
                for (name, hash) in &before.sources {
                    let entry = plan.entry(name).map(|i| &plan.entries[i]);
                    let entry = entry.ok_or_else(|| Error::Missing { name: name.clone(), place: "the plan".into() })?;
                    check_source(job.model, entry, Some(hash))?;
                }
                calibration.resume(&before.path)?;
                (passed, sources) = (before.layers, before.sources);
            }
            None => embed(job, &mut calibration, upstream)?,
        }
        Ok(Self { job, checkpoint, calibration, upstream, passed, sources })
    }

    /// Returns the number of layers that the windows have passed.
    pub(crate) fn passed(&self) -> usize {
        self.passed
    }

    /// Compresses the next layer, and passes the windows through it. Errors if a tensor cannot be read or compressed (the error names it), or the
    /// work is cancelled.
    pub(crate) fn layer(&mut self) -> Result<()> {
        let (job, plan, cx, upstream) = (self.job, self.job.plan, self.job.cx, self.upstream);
        // An unreadable record is reported when the site is compressed.
        let needs = |site: &Site| tasks::needs(plan, &tasks::unfinished(job, site).unwrap_or_default());
        let compress = &mut |site: &Site, stats: &StatSet| {
            self::site(job, site, stats)?;
            let replaced = |c: &tersor_core::Consumer| match upstream {
                Upstream::Compressed | Upstream::CompressedLayers => replacement(job, &c.weight),
                Upstream::Original => Ok(None),
            };
            site.consumers.iter().map(replaced).collect()
        };
        let layer = self.passed;
        let known = match &job.rotated {
            Some(changes) => Some(rewrite::merged(changes, &format!("model.layers.{layer}."))),
            None if plan.smoothings.is_empty() => Some(Vec::new()),
            None => rewrites::of_layer(job, layer)?.map(|changes| changes.folds.clone()),
        };
        let smoothing_needs =
            |site: &Site| plan.smoothings.get(&site.name).map_or(StatNeeds::default(), |s| s.needs(site));
        let rewrite = &mut |observed: &[ObservedSite<'_>]| rewrites::smooth(job, layer, observed);
        let changes = SiteChanges { needs: &smoothing_needs, rewrite };
        let rewriting = if known.is_none() { Some(changes) } else { None };
        let (seed, folds) = (plan.seed, known.unwrap_or_default());
        let change = |site: &Site| input_change(job, site);
        let (cancel, needs, change) = (&cx.cancel, &needs, &change);
        let mut hooks = Hooks { upstream, cancel, seed, needs, change, compress, rewriting, folds };
        self.calibration.layer(self.passed, &mut hooks)?;
        let network = self.checkpoint.architecture()?;
        for entry in plan.entries.iter().filter(|e| network.layer_of(&e.name) == Some(self.passed)) {
            if matches!(entry.action, Action::Copy | Action::Fold) {
                self.sources.insert(entry.name.clone(), source_hash(job.model, entry)?);
            }
        }
        self.passed += 1;
        Ok(())
    }

    /// Saves the hidden states, from which a later run can continue. Errors if they cannot be written.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.calibration.save(&self.job.parts.stream_path(self.passed))?;
        self.job.parts.record_stream(self.passed, &self.sources)
    }

    /// Compresses the matrix of the output head, whose site (its input) is `site_`. It is to be called behind the last layer. Errors if the matrix
    /// cannot be read or compressed.
    pub(crate) fn head(&mut self, site_: &Site) -> Result<()> {
        let (job, plan) = (self.job, self.job.plan);
        let needs = tasks::needs(plan, &tasks::unfinished(job, site_)?);
        let stats = self.calibration.head(needs, plan.seed, &job.cx.cancel)?;
        site(job, site_, &stats)
    }
}

/// Passes the windows through all layers and the output head, and compresses them, from the work in progress on. Errors as the steps of [`Chain`] do.
pub(crate) fn run(job: &Job<'_>, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<()> {
    let network = checkpoint.architecture()?;
    let mut chain = Chain::start(job, checkpoint, windows, network.layers())?;
    for site in network.sites().iter().filter(|s| s.layer.is_some_and(|l| l < chain.passed())) {
        job.cx.progress.advance(site.consumers.len() as u64, &site.name);
    }
    let mut saved = Instant::now();
    while chain.passed() < network.layers() {
        chain.layer()?;
        if saved.elapsed() >= SAVE_EVERY {
            chain.save()?;
            saved = Instant::now();
        }
    }
    match head_site(job, checkpoint)? {
        Some(site) => chain.head(&site),
        None => Ok(()),
    }
}

/// Returns the site (the input) of the output head if its matrix needs data and is not finished; None otherwise. Errors if a record is invalid.
pub(crate) fn head_site(job: &Job<'_>, checkpoint: &Checkpoint) -> Result<Option<Site>> {
    for site in checkpoint.architecture()?.sites().into_iter().filter(|s| s.layer.is_none()) {
        for c in &site.consumers {
            if let Some(i) = job.plan.entry(&c.weight)
                && job.plan.entries[i].needs().any_data()
                && job.parts.finished(i)?.is_none()
            {
                return Ok(Some(site));
            }
        }
    }
    Ok(None)
}

/// Computes the embeddings of the calibration windows, from the compressed tables if `upstream` says so, otherwise from the original ones.
fn embed(job: &Job<'_>, calibration: &mut Calibration<'_>, upstream: Upstream) -> Result<()> {
    let mut compressed: BTreeMap<String, Option<Arc<dyn LinearOp>>> = BTreeMap::new();
    let tables = job.plan.network.as_ref().map(|n| n.embeddings()).unwrap_or_default();
    let own = |changes: &tersor_core::Changes| -> Vec<Fold> {
        changes.folds.iter().filter(|f| tables.contains(&f.weight)).cloned().collect()
    };
    let folds: Vec<Fold> = job.rotated.as_ref().map(own).unwrap_or_default();
    calibration.embed(&mut |name, row, out| {
        if !compressed.contains_key(name) {
            let mut op = None;
            if upstream != Upstream::Original
                && let Some(i) = job.plan.entry(name)
                && matches!(job.plan.entries[i].action, Action::Compress(_))
            {
                let record = job.parts.finished(i)?;
                let waiting = || Error::Missing {
                    name: name.into(),
                    place: "the finished matrices; its task comes first".into(),
                };
                op = Some(job.parts.operator(i, &job.plan.entries[i], &record.ok_or_else(waiting)?, job.kinds)?);
            }
            compressed.insert(name.into(), op);
        }
        match compressed.get(name) {
            Some(Some(op)) => op.decompress_rows(row..row + 1, out, &Exec::serial()),
            _ => FoldedRows::new(&*job.model.rows(name)?, name, &folds)?.read_rows(row..row + 1, out),
        }
    })
}

/// Returns the operator of a finished matrix; none if it is not finished.
fn replacement(job: &Job<'_>, weight: &str) -> Result<Option<Arc<dyn LinearOp>>> {
    let Some(i) = job.plan.entry(weight) else { return Ok(None) };
    let Some(record) = job.parts.finished(i)? else { return Ok(None) };
    Ok(Some(job.parts.operator(i, &job.plan.entries[i], &record, job.kinds)?))
}

/// Wraps a prepared method so that its operators apply `change` to their inputs. Returns the method itself if there is no change.
pub(crate) fn with_input_change<'s>(
    change: Option<&'s InputChange>,
    prepared: Box<dyn Prepared + 's>,
) -> Box<dyn Prepared + 's> {
    struct Changed<'s>(&'s InputChange, Box<dyn Prepared + 's>);
    impl Prepared for Changed<'_> {
        fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
            let done = self.1.compress(w, rows, cx)?;
            Ok(Compressed { op: online(done.op, self.0)?, report: done.report })
        }
    }
    match change {
        Some(change) => Box::new(Changed(change, prepared)),
        None => prepared,
    }
}

/// Returns the transform that the running network applies to the inputs of a site, if there is one.
fn input_change(job: &Job<'_>, site: &Site) -> Result<Option<InputChange>> {
    site.consumers.first().map_or(Ok(None), |c| rewrites::input_change(job, &c.weight))
}

/// Compresses the unfinished matrices of a site (an input of linear layers) with the statistics `stats` of the input. Matrices of the same rule share
/// the preparation. Errors if the statistics lack something, or a matrix cannot be read or compressed; the error names the matrix.
pub(crate) fn site(job: &Job<'_>, site: &Site, stats: &StatSet) -> Result<()> {
    let plan = job.plan;
    let change = input_change(job, site)?;
    let mut prepared: Vec<(Option<usize>, Box<dyn Prepared + '_>)> = Vec::new();
    for number in site.consumers.iter().filter_map(|c| plan.entry(&c.weight)) {
        let entry = &plan.entries[number];
        let Action::Compress(method) = &entry.action else { continue };
        if job.parts.finished(number)?.is_none() {
            if !prepared.iter().any(|p| p.0 == entry.rule) {
                let ready = method.prepare(stats, job.cx).map_err(|e| e.in_tensor(&entry.name))?;
                let ready = with_input_change(change.as_ref(), ready);
                prepared.push((entry.rule, ready));
            }
            let Some((_, ready)) = prepared.iter().find(|p| p.0 == entry.rule) else { continue };
            job.matrix(number, &**ready)?;
        }
        job.cx.progress.advance(1, &entry.name);
    }
    Ok(())
}
