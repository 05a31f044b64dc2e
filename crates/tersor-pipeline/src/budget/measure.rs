//! Measures the effect of each matrix of a model on the predictions.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tersor_core::stages::{Measured, Way, Ways};
use tersor_core::{Context, Error, LinearOp, Result, RowSource, Site, StatNeeds, StatSet};
use tersor_formats::Model;
use tersor_models::{
    CONCURRENT_NETWORKS, Calibration, Checkpoint, Hooks, Sensitivity, SiteKind, Substitution, Upstream,
};

use super::item::Item;
use super::progress::Progress;
use crate::kinds::Kinds;
use crate::plan::{Action, Plan};

/// The number of tokens on which predictions are compared.
const SAMPLE: usize = 512;

/// Returns the estimated peak memory of [`measure`] for `plan` of `model`, in bytes by part; the peak is the sum.
pub(crate) fn memory(plan: &Plan, model: &Model) -> BTreeMap<&'static str, u64> {
    let streams = plan.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))).count();
    plan.memory_of_measuring(model, [streams + 1, SAMPLE, CONCURRENT_NETWORKS])
}

/// Returns the number of progress steps of [`measure`]: one for the embedding, and one for each layer.
pub(crate) fn steps(plan: &Plan) -> u64 {
    plan.network.as_ref().map_or(0, |n| n.layers() as u64) + 1
}

/// Returns the [`Ways`] of all kinds of stages that have some: the ways that need data if `observed`, which says that the inputs of the matrix are
/// observed, and the other ways if not. Errors with [`Error::Missing`] if there are none.
pub(crate) fn ways(kinds: &Kinds, observed: bool) -> Result<Vec<Box<dyn Ways>>> {
    let all = kinds.stages.kinds().filter_map(|s| s.ways()).filter(|w| w.needs().any_data() == observed);
    let all: Vec<Box<dyn Ways>> = all.collect();
    let place = "the registered kinds of stages; a budget chooses among them";
    if all.is_empty() { Err(Error::missing("a way to store a matrix", place)) } else { Ok(all) }
}

/// Returns the matrix `name`, whose weights `rows` has, with its forms and their errors, and the matrix stored in the probe of the first of `ways`.
/// `stats` are the statistics of its inputs.
fn measured(
    name: &str,
    rows: &dyn RowSource,
    ways: &[Box<dyn Ways>],
    stats: &StatSet,
    cx: &Context,
) -> Result<(Item, Arc<dyn LinearOp>)> {
    let ready = ways.iter().map(|w| w.prepare(stats, cx)).collect::<Result<Vec<_>>>()?;
    prepared(name, rows, &ready, cx)
}

/// Returns the matrix `name`, whose weights `rows` has, `[out_features, in_features]`, with its forms and the error of each, and the matrix stored in
/// the form with which its effect is measured: the [`probe`](Measured::probe) of the first of `ready`. `ready` has forms prepared on the statistics
/// of the inputs of the matrix. Errors with the name of the matrix if `ready` is empty, if it cannot be measured or stored, or if the work is
/// cancelled.
pub(crate) fn prepared(
    name: &str,
    rows: &dyn RowSource,
    ready: &[Box<dyn tersor_core::stages::PreparedWays + '_>],
    cx: &Context,
) -> Result<(Item, Arc<dyn LinearOp>)> {
    let work = || -> Result<(Item, Arc<dyn LinearOp>)> {
        let all = ready.iter().map(|w| w.measure(rows, cx)).collect::<Result<Vec<Measured>>>()?;
        let first = ready.first().zip(all.first());
        let (way, probe): (_, &Way) =
            first.map(|(w, m)| (w, &m.probe)).ok_or_else(|| Error::missing("a probe", "the ways"))?;
        Ok((Item::new(name, &all), way.store(rows, probe, cx)?))
    };
    work().map_err(|e| e.in_tensor(name))
}

/// Returns every matrix of a layer, the embedding and the output head of `model`, with the forms in which it can be stored, the error of each, and
/// the measured effect on the predictions. `work` has a directory, the hashes of what the measurement depends on, and the least time between two
/// saves: the measurement is saved there, and continues from what was saved before. Errors if the model or the calibration text cannot be read, a
/// matrix cannot be measured, the directory has other files or other hashes, or the work is cancelled.
pub(crate) fn measure(
    plan: &Plan,
    model: &Model,
    kinds: &Kinds,
    work: Option<(&Path, &serde_json::Value, Duration)>,
    cx: &Context,
) -> Result<Vec<Item>> {
    let mut progress = work.map(|(dir, inputs, every)| Progress::open(dir, inputs, every)).transpose()?;
    let checkpoint = Checkpoint::open(model.path(), &kinds.operators)?;
    let all = plan.cut()?;
    let windows: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
    let ctx = plan.windows[1];
    let mut remaining = SAMPLE;
    let sample = windows.iter().map(|w| {
        let part = &w[..w.len().min(remaining)];
        remaining -= part.len();
        part
    });
    let sample: Vec<&[u32]> = sample.filter(|w| !w.is_empty()).collect();
    let network = checkpoint.architecture()?;
    let mut read = |name: &str, row: usize, out: &mut [f32]| model.rows(name)?.read_rows(row..row + 1, out);
    let mut networks = Sensitivity::new(&checkpoint, &sample, ctx, &mut read)?;
    let mut calibration = Calibration::new(&checkpoint, &windows, 0..windows.len(), ctx, None)?;
    let (rounding, fed) = (ways(kinds, false)?, ways(kinds, true)?);
    let rounded = |name: &str| measured(name, &*model.rows(name)?, &rounding, &StatSet::none(), cx);
    let head = if network.tied() { None } else { Some("lm_head.weight") }.filter(|h| checkpoint.has(h));
    let table = network.embeddings().into_iter().next();

    let before = progress.as_ref().map(|p| p.before(network.layers())).transpose()?.flatten();
    let (mut items, first) = match (before, &progress) {
        (Some(before), Some(progress)) => {
            let file = progress.resume(before.layers, &mut calibration)?;
            let mut heads = BTreeMap::new();
            if let Some(name) = table.as_ref().filter(|_| network.tied()) {
                heads.insert(name.clone(), rounded(name)?.1);
            }
            networks.resume(&file, before.networks, heads)?;
            cx.progress.advance(before.layers as u64 + 1, "measured before");
            (before.items, before.layers)
        }
        _ => {
            let mut items = Vec::new();
            if let Some(name) = &table {
                let (item, op) = rounded(name)?;
                items.push(item);
                let other = op.clone();
                networks.add_embedding(name, network.tied().then_some(op), &mut |from, row, out| {
                    if from == name {
                        other.decompress_rows(row..row + 1, out, &cx.exec)
                    } else {
                        model.rows(from)?.read_rows(row..row + 1, out)
                    }
                })?;
            }
            if let Some(name) = head {
                items.push(rounded(name)?.0);
            }
            cx.progress.advance(1, "embedding");
            calibration.embed(&mut |name, row, out| model.rows(name)?.read_rows(row..row + 1, out))?;
            (items, 0)
        }
    };
    for layer in first..network.layers() {
        let mut substitutions: Vec<Substitution> = Vec::new();
        let mut sites = SiteKind::ALL.into_iter();
        let mut compress = |site: &Site, stats: &StatSet| {
            let kind = sites.next().unwrap_or(SiteKind::Down);
            let ready = fed.iter().map(|w| w.prepare(stats, cx)).collect::<Result<Vec<_>>>();
            let ready = ready.map_err(|e| e.in_tensor(&site.name))?;
            for (index, c) in site.consumers.iter().enumerate() {
                let (item, op) = prepared(&c.weight, &*model.rows(&c.weight)?, &ready, cx)?;
                items.push(item);
                substitutions.push(Substitution { site: kind, index, name: c.weight.clone(), op });
            }
            Ok(vec![None; site.consumers.len()])
        };
        let needs = |_: &Site| fed.iter().map(|w| w.needs()).fold(StatNeeds::default(), StatNeeds::union);
        let mut hooks = Hooks {
            upstream: Upstream::Original,
            cancel: &cx.cancel,
            seed: plan.seed,
            needs: &needs,
            change: &|_| Ok(None),
            compress: &mut compress,
            rewriting: None,
            folds: Vec::new(),
        };
        calibration.layer(layer, &mut hooks)?;
        networks.layer(layer, substitutions, &cx.cancel)?;
        if let Some(progress) = &mut progress {
            progress.save(layer + 1, &items, &networks, &mut calibration)?;
        }
        cx.progress.advance(1, &format!("layer {layer}"));
    }
    if let Some(name) = head {
        networks.add_head(name, rounded(name)?.1)?;
    }
    drop(calibration);
    let effects: BTreeMap<String, f64> = networks.finish(&cx.cancel)?.into_iter().collect();
    for item in &mut items {
        item.effect = effects.get(&item.name).copied().unwrap_or(0.0);
    }
    Ok(items)
}

/// Deletes what [`measure`] saved in the directory `work` for the hashes `inputs`. Errors if it has other files or other hashes, or cannot be
/// deleted.
pub(crate) fn finish(work: &Path, inputs: &serde_json::Value) -> Result<()> {
    Progress::open(work, inputs, Duration::ZERO)?.finish()
}
