//! Compression by what flows into each matrix: the calibration text goes through the network a layer at a time.

use std::sync::Arc;

use tersor::core::compose::Dense;
use tersor::core::{DType, Error, Exec, LinearOp, Prepared, Result, StatNeeds, StatSet};
use tersor::llm::{Behind, Calibration, Checkpoint, Hooks, SiteKind, Tokenizer, windows};

use super::matrix::Job;
use crate::plan::{Action, EMBEDDING, Entry};

/// Compresses every entry of the plan.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let (plan, cx) = (job.plan, job.cx);
    let text = plan.calibration.as_ref();
    let text = text.ok_or_else(|| Error::Missing { name: "calibration text".into(), place: "the plan".into() })?;
    let checkpoint = Checkpoint::open(job.model.path(), &tersor::registry())?;
    let tokens = Tokenizer::of(&checkpoint)?.encode(&text.content)?;
    let [asked, ctx] = plan.windows;
    let cut = windows(&tokens, ctx, Some(asked)).map_err(|e| e.in_tensor(&text.name))?;
    if cut.len() < asked {
        let (name, n) = (&text.name, cut.len());
        cx.progress.warn(&format!("{name} has {n} windows of {ctx} tokens, fewer than {asked}"));
    }
    let behind = plan.recipe.behind()?;
    let mut calibration = Calibration::new(&checkpoint, &cut)?;
    let head = "lm_head.weight";
    for entry in plan.entries.iter().filter(|e| layer_of(&e.name).is_none() && !e.needs().any_data()) {
        if entry.name == EMBEDDING && behind == Behind::Compressed {
            job.alone(entry, &mut |first, op| {
                let rows = op.shape()[0];
                calibration.embed(first..first + rows, &mut |t, out| op.decompress_rows(t - first..t - first + 1, out))
            })?;
        } else {
            job.alone(entry, &mut |_, _| Ok(()))?;
        }
    }
    if behind == Behind::Original {
        let rows = job.model.rows(EMBEDDING)?;
        calibration.embed(0..rows.shape()[0], &mut |t, out| rows.read_rows(t..t + 1, out))?;
    }
    let mut exec = Exec::new();
    for layer in 0..checkpoint.config().layers {
        let weight = |part: &str| plan.entry(&format!("model.layers.{layer}.{part}.weight"));
        let needs = |kind: SiteKind| {
            let of = kind.consumers().iter().filter_map(|p| weight(p)).map(Entry::needs);
            of.fold(StatNeeds::default(), StatNeeds::union)
        };
        let compress = &mut |kind: SiteKind, stats: &StatSet| {
            let entries: Vec<&Entry> = kind.consumers().iter().filter_map(|p| weight(p)).collect();
            site(job, &entries, stats, behind == Behind::Compressed)
        };
        let mut hooks = Hooks { behind, cancel: &cx.cancel, seed: plan.seed, needs: &needs, compress };
        calibration.layer(layer, &mut hooks, &mut exec)?;
        // Norms and biases, and whatever else lies in the layer.
        let known = |name: &str| {
            SiteKind::ALL.iter().flat_map(|k| k.consumers()).any(|p| weight(p).is_some_and(|e| e.name == name))
        };
        for entry in plan.entries.iter().filter(|e| layer_of(&e.name) == Some(layer) && !known(&e.name)) {
            job.alone(entry, &mut |_, _| Ok(()))?;
        }
    }
    for entry in plan.entries.iter().filter(|e| layer_of(&e.name).is_some_and(|l| l >= checkpoint.config().layers)) {
        job.alone(entry, &mut |_, _| Ok(()))?;
    }
    if let Some(entry) = plan.entry(head).filter(|e| e.needs().any_data()) {
        let stats = calibration.head(entry.needs(), plan.seed, &cx.cancel)?;
        site(job, &[entry], &stats, false)?;
    }
    Ok(())
}

/// The layer that a tensor belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

/// Compresses the consumers of a site; rules that they share prepare once. With `keep`, the values that came out take
/// the originals' place.
fn site(job: &mut Job<'_>, entries: &[&Entry], stats: &StatSet, keep: bool) -> Result<Vec<Option<Arc<dyn LinearOp>>>> {
    let mut prepared: Vec<(Option<usize>, Box<dyn Prepared + '_>)> = Vec::new();
    let mut out = Vec::new();
    for entry in entries {
        let Action::Compress(method) = &entry.action else {
            out.push(None);
            continue;
        };
        if !prepared.iter().any(|p| p.0 == entry.rule) {
            let stats = method.needs().any_data().then_some(stats);
            prepared.push((entry.rule, method.prepare(stats, job.cx).map_err(|e| e.in_tensor(&entry.name))?));
        }
        let Some((_, ready)) = prepared.iter().find(|p| p.0 == entry.rule) else { continue };
        let shape = entry.matrix().unwrap_or_default();
        let mut values = vec![0f32; if keep { tersor::core::view::elements(shape)? } else { 0 }];
        job.matrix(entry, &**ready, &mut |first, op| match keep {
            true => {
                let [rows, cols] = op.shape();
                op.decompress_rows(0..rows, &mut values[first * cols..(first + rows) * cols])
            }
            false => Ok(()),
        })?;
        let op = if keep { Some(Arc::new(Dense::new(values, shape, DType::F32)?) as Arc<dyn LinearOp>) } else { None };
        out.push(op);
    }
    Ok(out)
}
