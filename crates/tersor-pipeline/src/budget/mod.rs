//! Chooses a recipe for a budget: bits, group, grid and range search of each matrix, by its effect on the predictions.
//!
//! Each matrix in turn is quantized to three bits, with all others original, and the divergence of the predictions on a part of the calibration text
//! is measured (`measure.rs`). The loss of another storage option is assumed proportional to its quantization error (`options.rs`), and losses are
//! assumed to add. Dynamic programming then minimizes the total loss within the budget.

mod measure;
mod options;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tersor_core::stages::Stages;
use tersor_core::{Context, Error, Limits, ParamError, Result};
use tersor_formats::{Model, json as files, write_atomic};
use tersor_groupwise::mixed::{Choice, allocate};

use self::options::{Item, StorageOption};
use crate::kinds::Kinds;
use crate::output::{FileKind, check_file};
use crate::plan::{Action, Data, Options, Plan};
use crate::recipe::{Recipe, Rule};
use crate::units::megabytes;

/// The maximum size of the result.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Maximum total length of all weight files in bytes.
    Bytes(u64),
    /// Maximum number of stored bits per weight.
    Bits(f64),
}

impl Limit {
    /// Returns the limit in bytes.
    fn bytes(self, plan: &Plan) -> u64 {
        match self {
            Limit::Bytes(bytes) => bytes,
            Limit::Bits(bits) => (bits * elements(plan) / 8.0) as u64,
        }
    }

    /// Returns the size of a plan in bytes, counted as this limit counts.
    fn used(self, plan: &Plan) -> Result<u64> {
        match self {
            Limit::Bytes(_) => plan.weight_bytes(),
            Limit::Bits(_) => Ok(plan.weights().iter().map(|w| w.bytes).sum()),
        }
    }

    /// Returns the error that at least `min` bytes are needed.
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

/// Returns the number of elements of all weights.
fn elements(plan: &Plan) -> f64 {
    plan.weights().iter().map(|w| w.shape[0] as f64 * w.shape[1] as f64).sum()
}

/// Errors if the limit is below the size of the smallest choices. Called before the measurement, which takes minutes.
fn refuse_too_small(plan: &Plan, limit: Limit) -> Result<()> {
    let mut min = limit.used(plan)?;
    for entry in &plan.entries {
        if let (Action::Compress(method), Some(shape)) = (&entry.action, entry.matrix()) {
            min = min - entry.bytes() + StorageOption::smallest(method.needs().gram).bytes(shape)?.min(entry.bytes());
        }
    }
    if min > limit.bytes(plan) { Err(limit.too_small(plan, min)) } else { Ok(()) }
}

/// The recipe chosen for a budget.
pub struct Chosen {
    /// The recipe.
    pub recipe: Recipe,
    /// The predicted total loss of the recipe.
    pub loss: f64,
    /// Planned peak memory of the measurement in bytes, by term; none if it was read from a file.
    pub memory: Option<BTreeMap<&'static str, u64>>,
}

/// Chooses the recipe with the smallest predicted loss within a limit. The measurement is read from the file `measured` if it exists, and written there
/// otherwise. Errors if there is no calibration text, the architecture is unsupported, the limit is below the size of the smallest choices, the
/// measurement needs more memory than [`Context::max_memory`], or the file has a measurement of another model, text or version.
pub fn choose(
    model: &Model,
    limit: Limit,
    options: &Options,
    measured: Option<&Path>,
    kinds: &Kinds,
    cx: &Context,
) -> Result<Chosen> {
    if let Limit::Bits(bits) = limit
        && !(bits.is_finite() && bits > 0.0)
    {
        return Err(ParamError::new("bits", bits, "must be a positive number of bits per weight").into());
    }
    if !matches!(options.data, Data::Text(_)) || options.generic {
        let rule = "a budget needs a text (--calib), and neither --generic nor --stats: the effect of each matrix is measured on the text";
        return Err(ParamError::new("calib", "missing", rule).into());
    }
    // The plan of the probing recipe gives the tensors that do not change, and the memory of the measurement.
    let probe = Recipe::find("w3-g64-gptq", &kinds.stages)?;
    let plan = Plan::new(model, probe, options, kinds, cx)?;
    if let Limit::Bytes(max) = limit
        && model.weight_bytes() <= max
    {
        let own = megabytes(model.weight_bytes());
        cx.progress.warn(&format!("the files of the model have {own} and fit the budget as they are"));
    }
    if let Some(path) = measured {
        check_file(path, FileKind::Measurement, &[model.path()])?;
    }
    let saved = measured.filter(|m| m.is_file());
    let memory = saved.is_none().then(|| measure::memory(&plan, model));
    let mut items = match saved {
        Some(path) => load(path, &plan)?,
        None => {
            refuse_too_small(&plan, limit)?;
            let peak: u64 = memory.iter().flat_map(BTreeMap::values).sum();
            if let Some(max) = cx.max_memory.filter(|max| *max < peak) {
                let rule = format!("must be at least {peak} bytes ({}) for measuring", megabytes(peak));
                return Err(ParamError::new("max-memory", max, rule).into());
            }
            cx.progress.begin(&format!("measure (memory at most {})", megabytes(peak)), measure::steps(&plan));
            let items = measure::measure(&plan, model, kinds, cx)?;
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
    // Bytes of other tensors and of the headers, whose length depends a little on the chosen types.
    let mut others = limit.used(&plan)? - chosen;
    let max = limit.bytes(&plan);
    for _ in 0..8 {
        let min: u64 = choices.iter().filter_map(|c| c.iter().map(|c| c.cost).min()).sum();
        let Some(available) = max.checked_sub(others).filter(|s| *s >= min) else {
            return Err(limit.too_small(&plan, min + others));
        };
        let picks = allocate(&choices, available)?;
        let recipe = recipe(limit, &items, &picks, &kinds.stages)?;
        let made = Plan::new(model, recipe.clone(), options, kinds, cx)?;
        let used = limit.used(&made)?;
        if used <= max {
            let loss = choices.iter().zip(&picks).map(|(c, p)| c[*p].loss).sum();
            return Ok(Chosen { recipe, loss, memory });
        }
        others += used - max;
    }
    Err(Error::Numerical(
        "no choice within the budget was found, because the file headers grow with the choices".into(),
    ))
}

/// Returns the recipe of the chosen options, with one rule for each storage option and method that some matrix uses.
fn recipe(limit: Limit, items: &[Item], picks: &[usize], kinds: &Stages) -> Result<Recipe> {
    let mut rules: BTreeMap<(StorageOption, &str), Vec<String>> = BTreeMap::new();
    for (item, pick) in items.iter().zip(picks) {
        rules.entry((item.options[*pick], &item.method)).or_default().push(glob::Pattern::escape(&item.name));
    }
    let mut all = Vec::new();
    for ((option, method), names) in rules {
        all.push(Rule::new(names.iter().map(String::as_str), vec![option.stage(method, kinds)?])?);
    }
    // Other matrices are rounded to 8 bits, as in the named recipes.
    let other = StorageOption { bits: 8, group: 0, sym: false, mse: false };
    all.push(Rule::new(["*"], vec![other.stage("rtn", kinds)?])?);
    let name = match limit {
        Limit::Bytes(bytes) => format!("budget-{:.1}MB", bytes as f64 / 1e6),
        Limit::Bits(bits) => format!("bits-{bits}"),
    };
    Ok(Recipe { name, statistics: None, network: Vec::new(), cache: Vec::new(), rules: all })
}

/// Reads a saved measurement. Errors if it is of another model, text or version.
fn load(path: &Path, plan: &Plan) -> Result<Vec<Item>> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    if json["inputs"] != json!(plan.inputs) {
        return Err(bad("it was measured with another model, text or version; remove it or choose another name"));
    }
    let items: Vec<Item> = serde_json::from_value(json["matrices"].clone()).map_err(|e| bad(&e.to_string()))?;
    let whole = |i: &Item| i.is_complete() && plan.entry(&i.name).is_some();
    if items.is_empty() || !items.iter().all(whole) {
        return Err(bad("its matrices are not those of the model; remove it or choose another name"));
    }
    Ok(items)
}
