//! A recipe from a budget: bits, groups and method for each matrix, by what it does to the predictions.
//!
//! Every matrix of the network is quantized at three bits, alone, and the divergence of the predictions on some of the calibration text is
//! measured. From there its loss at other widths and groups is in proportion to its error: of widths up to 4 bits GPTQ's own, in the norm of the
//! inputs, with ranges searched or not, whichever is better for this matrix at this width; of larger ones as rounding's falls. Losses add, and
//! a dynamic program spends the budget.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tersor::core::{
    Check, Context, Error, Limits, LinearOp, MatView, ParamError, Result, RowSource, Site, StatNeeds, StatSet, metrics,
    read_finite,
};
use tersor::formats::{Model, json as files, write_atomic};
use tersor::groupwise::gptq::Factor;
use tersor::groupwise::mixed::{Choice, allocate};
use tersor::groupwise::{Clip, Gptq, Rtn};
use tersor::llm::{Behind, Calibration as Walk, Checkpoint, Forks, Hooks, Replaced, SiteKind};

use super::{Calibration, Plan};
use crate::recipe::{Group, Patterns, Recipe, Rule};
use crate::{cancel_on_signals, progress, windows};

/// What the result may take.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Bytes of all weight files.
    Bytes(u64),
    /// Bits a weight.
    Bits(f64),
}

/// Tokens that predictions are compared on.
const SAMPLE: usize = 512;

/// Width and group at which the effect of a matrix is measured.
const MEASURED: (u32, usize) = (3, 64);

/// Groups to choose from; 0 is the row.
const GROUPS: [usize; 3] = [32, 64, 128];

/// A way to store a matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Way {
    bits: u32,
    /// 0 is the row.
    group: usize,
    /// Whether ranges are searched.
    mse: bool,
}

/// What GPTQ got wrong at a width, in groups of 64: as ranges are, and with ranges searched.
struct Solved {
    plain: f64,
    searched: f64,
}

/// A matrix with its ways to be stored.
#[derive(Serialize, Deserialize)]
struct Item {
    name: String,
    method: String,
    ways: Vec<Way>,
    bytes: Vec<u64>,
    /// Error of each, in one unit.
    errors: Vec<f64>,
    /// The same of what was measured.
    measured: f64,
    /// What that did to the predictions.
    effect: f64,
}

/// Chooses. Gives the recipe, and the sum of losses that it was chosen by. Error when there is no calibration text, the network is not known, or
/// the budget is below what the smallest choices take. What was measured is kept in `measured`, or taken from there, when it is of the same
/// model, text and version.
pub fn choose(
    model: &Model,
    limit: Limit,
    seed: u64,
    generic: bool,
    calibration: &Calibration,
    measured: Option<&Path>,
) -> Result<(Recipe, Option<f64>)> {
    if let Limit::Bits(bits) = limit
        && !(bits.is_finite() && bits > 0.0)
    {
        return Err(ParamError::new("bits", bits, "must be a positive number of bits a weight").into());
    }
    if calibration.text.is_none() || generic {
        let rule = "a budget is spent by what flows through a network that is known: give a text (--calib), not --generic or --stats";
        return Err(ParamError::new("calib", "missing", rule).into());
    }
    // Where errors are measured, and what is left as it is.
    let probe = Recipe::find("w3-g64-gptq")?;
    let plan = Plan::new(model, probe, seed, false, calibration)?;
    let cx = Context::new().with_seed(seed).with_progress(progress::bars());
    cancel_on_signals(&cx.cancel);
    let mut items = match measured.filter(|m| m.is_file()) {
        Some(path) => load(path, &plan)?,
        None => measure(&plan, model, &cx)?,
    };
    if let Some(path) = measured.filter(|m| !m.is_file()) {
        let all = json!({"inputs": plan.inputs, "matrices": items});
        write_atomic(path, &files::to_bytes(&all))?;
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    let choices: Vec<Vec<Choice>> = items.iter().map(Item::choices).collect();
    let elements: f64 = plan.weights().iter().map(|w| w.shape[0] as f64 * w.shape[1] as f64).sum();
    let chosen: u64 = items.iter().filter_map(|i| Some(plan.entries[plan.entry(&i.name)?].bytes())).sum();
    // What else the files hold: other tensors, and headers, which change a little with the types.
    let mut beside = match limit {
        Limit::Bytes(_) => plan.weight_bytes()? - chosen,
        Limit::Bits(_) => plan.weights().iter().map(|w| w.bytes).sum::<u64>() - chosen,
    };
    let most = match limit {
        Limit::Bytes(bytes) => bytes,
        Limit::Bits(bits) => (bits * elements / 8.0) as u64,
    };
    for _ in 0..8 {
        let least: u64 = choices.iter().filter_map(|c| c.iter().map(|c| c.cost).min()).sum();
        let Some(spare) = most.checked_sub(beside).filter(|s| *s >= least) else {
            return Err(match limit {
                Limit::Bytes(b) => ParamError::new("budget", b, format!("must be at least {}", least + beside)),
                Limit::Bits(b) => {
                    let rule = format!("must be at least {:.3}", (least + beside) as f64 * 8.0 / elements);
                    ParamError::new("bits", b, rule)
                }
            }
            .into());
        };
        let picks = allocate(&choices, spare)?;
        let recipe = recipe(limit, &items, &picks);
        let made = Plan::new(model, recipe.clone(), seed, false, calibration)?;
        let takes = match limit {
            Limit::Bytes(_) => made.weight_bytes()?,
            Limit::Bits(_) => made.weights().iter().map(|w| w.bytes).sum(),
        };
        if takes <= most {
            let loss = choices.iter().zip(&picks).map(|(c, p)| c[*p].loss).sum();
            return Ok((recipe, Some(loss)));
        }
        beside += takes - most;
    }
    Err(Error::Numerical("the headers of the files grow faster than the budget".into()))
}

/// One rule for each way that some matrix is stored.
fn recipe(limit: Limit, items: &[Item], picks: &[usize]) -> Recipe {
    let mut rules: BTreeMap<(Way, &str), Vec<String>> = BTreeMap::new();
    for (item, pick) in items.iter().zip(picks) {
        rules.entry((item.ways[*pick], &item.method)).or_default().push(glob::Pattern::escape(&item.name));
    }
    let mut all: Vec<Rule> = (rules.into_iter())
        .map(|((way, method), names)| Rule {
            bits: Some(way.bits),
            group: (way.group > 0).then_some(Group::Size(way.group as u64)),
            mse: way.mse,
            ..Rule::named(Patterns::Many(names), method)
        })
        .collect();
    // What nothing flows into is rounded, as by the recipes that have a name.
    all.push(Rule { bits: Some(8), ..Rule::named(Patterns::One("*".into()), "rtn") });
    let name = match limit {
        Limit::Bytes(bytes) => format!("budget-{:.1}MB", bytes as f64 / 1e6),
        Limit::Bits(bits) => format!("bits-{bits}"),
    };
    Recipe { name, statistics: None, kv: None, rotate: None, rules: all }
}

impl Solved {
    /// Whether searching is worth it.
    fn search(&self) -> bool {
        self.searched < self.plain
    }
}

impl Item {
    /// Of a matrix whose errors at some widths, in groups of 64, were found by `solved`; larger widths follow rounding's squared errors.
    fn new(
        name: &str,
        method: &str,
        values: &MatView<'_, f32>,
        widths: std::ops::RangeInclusive<u32>,
        groups: &[usize],
        solved: &BTreeMap<u32, Solved>,
    ) -> Result<Self> {
        let [_, cols] = values.shape();
        let flat = values.to_f32();
        let rounded = |bits: u32, group: usize| -> Result<(f64, u64)> {
            let rtn = Rtn::new().bits(bits);
            let op = if group == 0 { rtn.per_channel() } else { rtn.group(group) }.quantize(values)?;
            let mut error = 0f64;
            crate::compress::each_block(&op, |first, block| {
                error += metrics::squared_error(&flat[first * cols..][..block.len()], &block);
                Ok(())
            })?;
            Ok((error, op.storage_bits() / 8))
        };
        let mut found: BTreeMap<(u32, usize), (f64, u64)> = BTreeMap::new();
        let mut ways = Vec::new();
        for bits in widths {
            for &group in groups {
                found.insert((bits, group), rounded(bits, group)?);
                ways.push(Way { bits, group, mse: solved.get(&bits).is_some_and(Solved::search) });
            }
        }
        let error = |way: (u32, usize)| found.get(&way).map_or(0.0, |f| f.0);
        let scaled = |way: &Way| {
            // The nearest width that was solved, not above this one; ranges of larger widths are not searched.
            let anchor = solved.range(..=way.bits).next_back().or(solved.iter().next());
            let lost = |s: &Solved| if way.mse { s.searched } else { s.plain };
            let scale = anchor.map_or(1.0, |(b, s)| lost(s) / error((*b, MEASURED.1)).max(f64::MIN_POSITIVE));
            error((way.bits, way.group)) * scale
        };
        let (bytes, errors) =
            (ways.iter().map(|w| found[&(w.bits, w.group)].1).collect(), ways.iter().map(scaled).collect());
        let measured = solved.get(&MEASURED.0).map_or_else(|| error(MEASURED), |s| s.plain.min(s.searched));
        Ok(Self { name: name.into(), method: method.into(), ways, bytes, errors, measured, effect: 0.0 })
    }

    /// Costs and losses.
    fn choices(&self) -> Vec<Choice> {
        let scale = self.effect / self.measured.max(f64::MIN_POSITIVE);
        self.bytes.iter().zip(&self.errors).map(|(cost, e)| Choice { cost: *cost, loss: e * scale }).collect()
    }
}

/// Every matrix that something flows into, or that is looked up, with its effect.
fn measure(plan: &Plan, model: &Model, cx: &Context) -> Result<Vec<Item>> {
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
    cx.progress.begin("measure", network.layers() as u64 + 2);
    let head = if network.tied() { None } else { Some("lm_head.weight") };
    let table = network.embeddings().into_iter().next();
    let ends: Vec<String> = table.iter().cloned().chain(head.filter(|h| checkpoint.has(h)).map(String::from)).collect();
    for name in &ends {
        let rows = model.rows(name)?;
        let values = read_finite(&*rows, 0..rows.shape()[0])?;
        let view = MatView::new(&values, rows.shape())?;
        items.push(Item::new(name, "rtn", &view, 3..=8, &[32, 64, 128, 0], &BTreeMap::new())?);
    }
    let quantized = |name: &str| -> Result<Arc<dyn LinearOp>> {
        let rows = model.rows(name)?;
        let values = read_finite(&*rows, 0..rows.shape()[0])?;
        let op = Rtn::new().bits(MEASURED.0).group(MEASURED.1).quantize(&MatView::new(&values, rows.shape())?)?;
        Ok(Arc::new(op))
    };
    if let Some(name) = &table {
        let op = quantized(name)?;
        let other = op.clone();
        forks.embedding(name, network.tied().then_some(op), &mut |from, row, out| {
            if from == name {
                other.decompress_rows(row..row + 1, out)
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
            let missing = || Error::Missing { name: "XᵀX".into(), place: format!("the statistics of {}", site.name) };
            let gram = stats.gram().ok_or_else(missing)?;
            let factor = cx.run(|| Gptq::new().check()?.factor(gram, site.features))?;
            for (place, c) in site.consumers.iter().enumerate() {
                let rows = model.rows(&c.weight)?;
                let (item, op) = solve(&c.weight, &*rows, &factor, cx).map_err(|e| e.in_tensor(&c.weight))?;
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
    let effects: BTreeMap<String, f64> = forks.finish(&cx.cancel)?.into_iter().collect();
    cx.progress.end();
    for item in &mut items {
        item.effect = effects.get(&item.name).copied().unwrap_or(0.0);
    }
    Ok(items)
}

/// What was measured before. Error when it was of another model, text or version.
fn load(path: &Path, plan: &Plan) -> Result<Vec<Item>> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    if json["inputs"] != json!(plan.inputs) {
        return Err(bad("was measured on another model, text or version; remove it or choose another name"));
    }
    let items: Vec<Item> = serde_json::from_value(json["matrices"].clone()).map_err(|e| bad(&e.to_string()))?;
    let whole = |i: &Item| {
        let lengths = [i.bytes.len(), i.errors.len()];
        lengths.iter().all(|n| *n == i.ways.len()) && plan.entry(&i.name).is_some()
    };
    if items.is_empty() || !items.iter().all(whole) {
        return Err(bad("does not fit the model"));
    }
    Ok(items)
}

/// GPTQ at 2 to 4 bits: errors, and the operator that is measured.
fn solve(name: &str, rows: &dyn RowSource, factor: &Factor, cx: &Context) -> Result<(Item, Arc<dyn LinearOp>)> {
    let values = read_finite(rows, 0..rows.shape()[0])?;
    let view = MatView::new(&values, rows.shape())?;
    let (mut solved, mut op): (_, Option<Arc<dyn LinearOp>>) = (BTreeMap::new(), None);
    for bits in [2, 3, 4] {
        let run = |clip: Clip| -> Result<(f64, Box<dyn LinearOp>)> {
            let gptq = Gptq::new().bits(bits).group(MEASURED.1).clip(clip).check()?;
            let done = cx.run(|| gptq.quantize_with(&view, factor))?;
            Ok((done.report.data_error.unwrap_or(done.report.squared_error), done.op))
        };
        let ((plain, first), (searched, second)) = (run(Clip::None)?, run(Clip::Search { norm: 2.4 })?);
        let errors = Solved { plain, searched };
        if bits == MEASURED.0 {
            op = Some(if errors.search() { second } else { first }.into());
        }
        solved.insert(bits, errors);
    }
    let item = Item::new(name, "gptq", &view, 2..=8, &GROUPS, &solved)?;
    let op = op.ok_or_else(|| Error::Missing { name: name.into(), place: "what was quantized".into() })?;
    Ok((item, op))
}
