//! A recipe from a budget: bits, group, grid and method for each matrix, by what it does to the predictions.
//!
//! Every matrix of the network is quantized at three bits, alone, and the divergence of the predictions on some of the calibration text is
//! measured ([`measure`]). From there its loss when stored in other ways is in proportion to its error ([`ways`]). Losses add, and a dynamic
//! program spends the budget.

mod measure;
mod ways;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tersor::core::{Context, Error, Limits, ParamError, Result};
use tersor::formats::{Model, json as files, write_atomic};
use tersor::groupwise::mixed::{Choice, allocate};

use self::ways::{Item, Way};
use super::{Action, Calibration, Plan};
use crate::recipe::{Group, Patterns, Recipe, Rule};
use crate::{cancel_on_signals, megabytes, progress};

/// What the result may take.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Bytes of all weight files.
    Bytes(u64),
    /// Bits a weight.
    Bits(f64),
}

impl Limit {
    /// In bytes of what is counted.
    fn bytes(self, plan: &Plan) -> u64 {
        match self {
            Limit::Bytes(bytes) => bytes,
            Limit::Bits(bits) => (bits * elements(plan) / 8.0) as u64,
        }
    }

    /// What a plan takes of it.
    fn takes(self, plan: &Plan) -> Result<u64> {
        match self {
            Limit::Bytes(_) => plan.weight_bytes(),
            Limit::Bits(_) => Ok(plan.weights().iter().map(|w| w.bytes).sum()),
        }
    }

    /// That at least so many bytes are needed.
    fn too_small(self, plan: &Plan, min: u64) -> Error {
        match self {
            Limit::Bytes(b) => ParamError::new("budget", b, format!("must be at least {min}")),
            Limit::Bits(b) => {
                ParamError::new("bits", b, format!("must be at least {:.3}", min as f64 * 8.0 / elements(plan)))
            }
        }
        .into()
    }
}

/// Elements of all weights.
fn elements(plan: &Plan) -> f64 {
    plan.weights().iter().map(|w| w.shape[0] as f64 * w.shape[1] as f64).sum()
}

/// Before minutes are spent on measuring.
fn refuse_too_small(plan: &Plan, limit: Limit) -> Result<()> {
    let mut min = limit.takes(plan)?;
    for entry in &plan.entries {
        if let (Action::Compress(method), Some(shape)) = (&entry.action, entry.matrix()) {
            min = min - entry.bytes() + Way::min(method.needs().gram).bytes(shape)?.min(entry.bytes());
        }
    }
    if min > limit.bytes(plan) { Err(limit.too_small(plan, min)) } else { Ok(()) }
}

/// What was chosen.
pub struct Chosen {
    pub recipe: Recipe,
    /// The sum of losses that it was chosen by.
    pub loss: f64,
    /// Memory that measuring was to take at most, by term; none where it was measured before.
    pub memory: Option<BTreeMap<&'static str, u64>>,
}

/// Chooses. Error when there is no calibration text, the network is not known, the budget is below what the smallest choices take, or measuring
/// takes more memory than is allowed. What was measured is kept in `measured`, or taken from there, when it is of the same model, text and
/// version.
pub fn choose(
    model: &Model,
    limit: Limit,
    seed: u64,
    generic: bool,
    calibration: &Calibration,
    measured: Option<&Path>,
) -> Result<Chosen> {
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
    if let Limit::Bytes(max) = limit
        && model.weight_bytes() <= max
    {
        let own = megabytes(model.weight_bytes());
        cx.progress.warn(&format!("the model's own files take {own} and fit the budget as they are"));
    }
    let kept = measured.filter(|m| m.is_file());
    let memory = kept.is_none().then(|| measure::memory(&plan, model));
    let mut items = match kept {
        Some(path) => load(path, &plan)?,
        None => {
            refuse_too_small(&plan, limit)?;
            let takes: u64 = memory.iter().flat_map(BTreeMap::values).sum();
            if let Some(max) = calibration.max_memory.filter(|max| *max < takes) {
                let rule = format!("must be at least {takes} bytes ({}) for measuring", megabytes(takes));
                return Err(ParamError::new("max-memory", max, rule).into());
            }
            cx.progress.begin(&format!("measure, in {} at most", megabytes(takes)), measure::steps(&plan));
            let items = measure::measure(&plan, model, &cx)?;
            cx.progress.end();
            items
        }
    };
    if let Some(path) = measured.filter(|m| !m.is_file()) {
        let all = json!({"inputs": plan.inputs, "matrices": items});
        write_atomic(path, &files::to_bytes(&all))?;
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    let choices: Vec<Vec<Choice>> = items.iter().map(Item::choices).collect();
    let chosen: u64 = items.iter().filter_map(|i| Some(plan.entries[plan.entry(&i.name)?].bytes())).sum();
    // What else the files hold: other tensors, and headers, which change a little with the types.
    let mut beside = limit.takes(&plan)? - chosen;
    let max = limit.bytes(&plan);
    for _ in 0..8 {
        let min: u64 = choices.iter().filter_map(|c| c.iter().map(|c| c.cost).min()).sum();
        let Some(spare) = max.checked_sub(beside).filter(|s| *s >= min) else {
            return Err(limit.too_small(&plan, min + beside));
        };
        let picks = allocate(&choices, spare)?;
        let recipe = recipe(limit, &items, &picks);
        let made = Plan::new(model, recipe.clone(), seed, false, calibration)?;
        let takes = limit.takes(&made)?;
        if takes <= max {
            let loss = choices.iter().zip(&picks).map(|(c, p)| c[*p].loss).sum();
            return Ok(Chosen { recipe, loss, memory });
        }
        beside += takes - max;
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
            grid: way.sym.then(|| "sym".into()),
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

/// What was measured before. Error when it was of another model, text or version.
fn load(path: &Path, plan: &Plan) -> Result<Vec<Item>> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    if json["inputs"] != json!(plan.inputs) {
        return Err(bad("was measured on another model, text or version; remove it or choose another name"));
    }
    let items: Vec<Item> = serde_json::from_value(json["matrices"].clone()).map_err(|e| bad(&e.to_string()))?;
    let whole = |i: &Item| i.is_whole() && plan.entry(&i.name).is_some();
    if items.is_empty() || !items.iter().all(whole) {
        return Err(bad("does not fit the model"));
    }
    Ok(items)
}
