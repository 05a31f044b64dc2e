//! Measures the effect of each matrix on the predictions.

use std::collections::BTreeMap;

use tersor_core::{Check, Context, Result, Site, StatNeeds, StatSet};
use tersor_formats::Model;
use tersor_groupwise::Gptq;
use tersor_llm::{CONCURRENT_NETWORKS, Calibration, Checkpoint, Hooks, Sensitivity, SiteKind, Substitution, Upstream};

use super::options::{self, Item};
use crate::kinds::Kinds;
use crate::plan::{Action, Plan};

/// Number of tokens on which predictions are compared.
const SAMPLE: usize = 512;

/// Returns the peak memory of [`measure`] in bytes, by term.
pub fn memory(plan: &Plan, model: &Model) -> BTreeMap<&'static str, u64> {
    let streams = plan.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))).count();
    plan.memory_of_measuring(model, [streams + 1, SAMPLE, CONCURRENT_NETWORKS])
}

/// Returns the number of progress steps of [`measure`]: the embedding and the layers.
pub fn steps(plan: &Plan) -> u64 {
    plan.network.as_ref().map_or(0, |n| n.layers() as u64) + 1
}

/// Returns every matrix of a layer, the embedding and the head, with storage options, errors and measured effect. Errors if the model or the
/// calibration text cannot be used.
pub fn measure(plan: &Plan, model: &Model, kinds: &Kinds, cx: &Context) -> Result<Vec<Item>> {
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
    let network = checkpoint.architecture();
    let mut read = |name: &str, row: usize, out: &mut [f32]| model.rows(name)?.read_rows(row..row + 1, out);
    let mut networks = Sensitivity::new(&checkpoint, &sample, ctx, &mut read)?;
    let mut items = Vec::new();
    let head = if network.tied() { None } else { Some("lm_head.weight") };
    let table = network.embeddings().into_iter().next();
    let own_head = head.filter(|h| checkpoint.has(h)).map(String::from);
    let embedding_and_head: Vec<String> = table.iter().cloned().chain(own_head).collect();
    for name in &embedding_and_head {
        items.push(Item::by_rounding(name, &*model.rows(name)?).map_err(|e| e.in_tensor(name))?);
    }
    let quantized = |name: &str| options::probe(&*model.rows(name)?, kinds).map_err(|e| e.in_tensor(name));
    if let Some(name) = &table {
        let op = quantized(name)?;
        let other = op.clone();
        networks.add_embedding(name, network.tied().then_some(op), &mut |from, row, out| {
            if from == name {
                other.decompress_rows(row..row + 1, out, &cx.exec)
            } else {
                model.rows(from)?.read_rows(row..row + 1, out)
            }
        })?;
    }
    cx.progress.advance(1, "embedding");

    let mut calibration = Calibration::new(&checkpoint, &windows, 0..windows.len(), ctx, None)?;
    calibration.embed(&mut |name, row, out| model.rows(name)?.read_rows(row..row + 1, out))?;
    for layer in 0..network.layers() {
        let mut substitutions: Vec<Substitution> = Vec::new();
        let mut kinds = SiteKind::ALL.into_iter();
        let mut compress = |site: &Site, stats: &StatSet| {
            let kind = kinds.next().unwrap_or(SiteKind::Down);
            let gram = stats.require_gram().map_err(|e| e.in_tensor(&site.name))?;
            let factor = cx.run(|| Gptq::new().check()?.factor(gram, site.features))?;
            for (index, c) in site.consumers.iter().enumerate() {
                let rows = model.rows(&c.weight)?;
                let (item, op) = Item::by_gptq(&c.weight, &*rows, &factor, cx).map_err(|e| e.in_tensor(&c.weight))?;
                items.push(item);
                substitutions.push(Substitution { site: kind, index, name: c.weight.clone(), op });
            }
            Ok(vec![None; site.consumers.len()])
        };
        let needs = |_: &Site| StatNeeds { gram: true, ..StatNeeds::default() };
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
        cx.progress.advance(1, &format!("layer {layer}"));
    }
    if let Some(name) = head.filter(|h| checkpoint.has(h)) {
        networks.add_head(name, quantized(name)?)?;
    }
    drop(calibration);
    let effects: BTreeMap<String, f64> = networks.finish(&cx.cancel)?.into_iter().collect();
    for item in &mut items {
        item.effect = effects.get(&item.name).copied().unwrap_or(0.0);
    }
    Ok(items)
}
