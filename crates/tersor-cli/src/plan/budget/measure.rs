//! What each matrix does to the predictions.

use std::collections::BTreeMap;

use tersor::core::{Check, Context, Result, Site, StatNeeds, StatSet};
use tersor::formats::Model;
use tersor::groupwise::Gptq;
use tersor::llm::{ABREAST, Behind, Calibration as Walk, Checkpoint, Forks, Hooks, Replaced, SiteKind};

use super::ways::{self, Item};
use crate::plan::{Action, Plan};
use crate::windows;

/// Tokens that predictions are compared on.
const SAMPLE: usize = 512;

/// Memory that [`measure`] takes at most, by term.
pub fn memory(plan: &Plan, model: &Model) -> BTreeMap<&'static str, u64> {
    let streams = plan.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))).count();
    plan.memory_of_measuring(model, [streams + 1, SAMPLE, ABREAST])
}

/// Steps of [`measure`]: the embedding and the layers.
pub fn steps(plan: &Plan) -> u64 {
    plan.network.as_ref().map_or(0, |n| n.layers() as u64) + 1
}

/// Every matrix that something flows into, or that is looked up, with its effect.
pub fn measure(plan: &Plan, model: &Model, cx: &Context) -> Result<Vec<Item>> {
    let checkpoint = Checkpoint::open(model.path(), &tersor::registry())?;
    let all = windows::cut(plan, &checkpoint, &*cx.progress)?;
    let windows: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
    let ctx = plan.windows[1];
    let mut left = SAMPLE;
    let sample = windows.iter().map(|w| {
        let part = &w[..w.len().min(left)];
        left -= part.len();
        part
    });
    let sample: Vec<&[u32]> = sample.filter(|w| !w.is_empty()).collect();
    let network = checkpoint.architecture();
    let mut read = |name: &str, row: usize, out: &mut [f32]| model.rows(name)?.read_rows(row..row + 1, out);
    let mut forks = Forks::new(&checkpoint, &sample, ctx, &mut read)?;
    let mut items = Vec::new();
    let head = if network.tied() { None } else { Some("lm_head.weight") };
    let table = network.embeddings().into_iter().next();
    let ends: Vec<String> = table.iter().cloned().chain(head.filter(|h| checkpoint.has(h)).map(String::from)).collect();
    for name in &ends {
        items.push(Item::rounded(name, &*model.rows(name)?).map_err(|e| e.in_tensor(name))?);
    }
    let quantized = |name: &str| ways::coarse(&*model.rows(name)?).map_err(|e| e.in_tensor(name));
    if let Some(name) = &table {
        let op = quantized(name)?;
        let other = op.clone();
        forks.embedding(name, network.tied().then_some(op), &mut |from, row, out| {
            if from == name {
                other.decompress_rows(row..row + 1, out, &cx.exec)
            } else {
                model.rows(from)?.read_rows(row..row + 1, out)
            }
        })?;
    }
    cx.progress.advance(1, "embedding");

    let mut walk = Walk::new(&checkpoint, &windows, 0..windows.len(), ctx, None)?;
    walk.embed(&mut |name, row, out| model.rows(name)?.read_rows(row..row + 1, out))?;
    for layer in 0..network.layers() {
        let mut replaced: Vec<Replaced> = Vec::new();
        let mut kinds = SiteKind::ALL.into_iter();
        let mut compress = |site: &Site, stats: &StatSet| {
            let kind = kinds.next().unwrap_or(SiteKind::Down);
            let gram = stats.require_gram().map_err(|e| e.in_tensor(&site.name))?;
            let factor = cx.run(|| Gptq::new().check()?.factor(gram, site.features))?;
            for (place, c) in site.consumers.iter().enumerate() {
                let rows = model.rows(&c.weight)?;
                let (item, op) = Item::solved(&c.weight, &*rows, &factor, cx).map_err(|e| e.in_tensor(&c.weight))?;
                items.push(item);
                replaced.push((kind, place, c.weight.clone(), op));
            }
            Ok(vec![None; site.consumers.len()])
        };
        let needs = |_: &Site| StatNeeds { gram: true, ..StatNeeds::default() };
        let behind = Behind::Original;
        let mut hooks = Hooks {
            behind,
            cancel: &cx.cancel,
            seed: plan.seed,
            needs: &needs,
            change: &|_| Ok(None),
            compress: &mut compress,
            rewriting: None,
            folds: Vec::new(),
        };
        walk.layer(layer, &mut hooks)?;
        forks.layer(layer, replaced, &cx.cancel)?;
        cx.progress.advance(1, &format!("layer {layer}"));
    }
    if let Some(name) = head.filter(|h| checkpoint.has(h)) {
        forks.head(name, quantized(name)?);
    }
    drop(walk);
    let effects: BTreeMap<String, f64> = forks.finish(&cx.cancel)?.into_iter().collect();
    for item in &mut items {
        item.effect = effects.get(&item.name).copied().unwrap_or(0.0);
    }
    Ok(items)
}
