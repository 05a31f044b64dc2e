//! The choice of a recipe for a budget of bytes or bits (mixed precision): how each matrix is stored, by its measured effect on the predictions.
//!
//! A *form* of a matrix is one way to store it, such as GPTQ with 4 bits in groups of 64. Kinds of stages (steps of compression that recipes name)
//! offer forms with the size and the error of each ([`Ways`](tersor_core::stages::Ways)). Each matrix in turn is stored in a form with a large error,
//! for example in 3 bits, while all others are original, and the divergence of the predictions on the first 512 tokens of the calibration text is
//! measured. The loss of a form is assumed to be proportional to its error, and losses to add up. [`allocate`] then minimizes the total loss within
//! the budget. [`choose`] does all of this.

mod allocate;
mod item;
mod measure;
mod progress;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tersor_core::stages::{StageSpec, Stages};
use tersor_core::{Context, Error, Limits, ParamError, Result};
use tersor_formats::{Model, json as files, write_atomic};
use tersor_models::MANIFEST;

pub use self::allocate::{Choice, allocate};
pub(crate) use self::item::Item;
pub(crate) use self::measure::{prepared, ways};
use crate::kinds::Kinds;
use crate::output::{FileKind, Reserved, check_file, hash_model};
use crate::plan::{Action, Data, INSTRUCTION_SET, Options, Plan};
use crate::recipe::{Recipe, Rule};
use crate::units::megabytes;

/// The budget of [`choose`]: the maximum size of the compressed model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// The maximum total length of all weight files in bytes, headers included.
    Bytes(u64),
    /// The maximum number of stored bits per element over all two-dimensional tensors, embedding tables and output head included; finite and above 0.
    /// Scales and zeros of groups count as stored bits.
    Bits(f64),
}

impl Limit {
    /// Returns the name that the recipe for this limit gets: `budget-90MB` for 90 million bytes, `bits-4.5` for 4.5 bits. It cannot fail.
    pub fn name(self) -> String {
        match self {
            Limit::Bytes(bytes) => format!("budget-{}MB", bytes as f64 / 1e6),
            Limit::Bits(bits) => format!("bits-{bits}"),
        }
    }

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
fn refuse_too_small(plan: &Plan, limit: Limit, kinds: &Kinds) -> Result<()> {
    let mut min = limit.used(plan)?;
    let (rounding, fed) = (measure::ways(kinds, false)?, measure::ways(kinds, true)?);
    for entry in &plan.entries {
        if let (Action::Compress(method), Some(shape)) = (&entry.action, entry.matrix()) {
            let ways = if method.needs().any_data() { &fed } else { &rounding };
            let sizes = ways.iter().map(|w| w.smallest(shape)).collect::<Result<Vec<_>>>()?;
            min = min - entry.bytes() + sizes.into_iter().fold(entry.bytes(), u64::min);
        }
    }
    if min > limit.bytes(plan) { Err(limit.too_small(plan, min)) } else { Ok(()) }
}

/// The result of [`choose`]: a recipe, its predicted loss, and the memory that it took to find it.
pub struct Chosen {
    /// The recipe, of the name [`Limit::name`]. Its rules list the measured matrices by name; a last rule rounds all other two-dimensional tensors to
    /// 8 bits.
    pub recipe: Recipe,
    /// The predicted divergence of the compressed model from the original, the sum over the measured matrices: for a decoder, the mean
    /// Kullback-Leibler divergence of next-token predictions in nats; for an encoder, the squared difference of the last layer's outputs relative to
    /// their squared norm.
    pub loss: f64,
    /// The estimated peak memory of the measurement in bytes, by part as in [`Plan::memory`]; the peak is the sum. None if the measurement was read
    /// from a file.
    pub memory: Option<BTreeMap<&'static str, u64>>,
}

/// Where [`choose`] keeps the measurement of the effect of each matrix, which takes minutes to hours. By default it is kept in memory alone.
#[derive(Clone, Default, Debug)]
pub struct Store {
    /// The path of the JSON file of the finished measurement. It is read if it exists, and written otherwise. None to keep the measurement in memory.
    pub file: Option<PathBuf>,
    /// The path of the directory in which an unfinished measurement is saved between two layers. A later call of [`choose`] continues from there. The
    /// directory is deleted when the measurement is finished. None to save nothing before the end.
    pub work: Option<PathBuf>,
    /// The least time between two saves in [`work`](Self::work). A stopped run loses at most this time of work and the time of one layer. None for
    /// [`SAVE_EVERY`].
    pub every: Option<Duration>,
}

/// The default of [`Store::every`], the least time between two saves of an unfinished measurement: 30 seconds.
pub const SAVE_EVERY: Duration = Duration::from_secs(30);

impl Store {
    /// Returns the store with the finished measurement in the file `file` and the unfinished one in a directory beside it, whose path is that of the
    /// file with `.progress` at its end. Neither needs to exist; nothing is read or written. It cannot fail.
    pub fn beside(file: &Path) -> Self {
        let mut work = file.as_os_str().to_owned();
        work.push(".progress");
        Self { file: Some(file.to_path_buf()), work: Some(work.into()), every: None }
    }
}

/// Returns the recipe with the smallest predicted loss whose compressed model is not larger than `limit`. The effect of each matrix of the layers,
/// the embedding and the output head of `model` is measured on the calibration text of `options`, of which all fields count, or read from the file of
/// `store` if that exists. `kinds` has the operators and the kinds of stages (steps of compression): those of the recipe name `w3-g64-gptq`, and
/// kinds that offer forms of matrices with calibration data and without ([`StageSpec::ways`]). `cx` has seed, threads, progress, warnings,
/// cancellation and memory limit. Warns if the files of the model fit a limit in bytes as they are, and if a stored measurement was made on another
/// instruction set.
///
/// Errors with [`Error::Param`] if `limit` is not a positive number or is below the size of the smallest forms (the message has the least value), if
/// `options` has no text or is generic, if `kinds` lacks a stage, or if the measurement needs more memory than [`Context::max_memory`]. Errors as
/// [`Plan::new`] does, for example for a model of unknown architecture. Errors with [`Error::Missing`] if `kinds` offers no form. Errors with
/// [`Error::Format`], with the path, if `store` has a measurement of another model, text or version, or other files.
///
/// Errors with [`Error::Tensor`] if a matrix cannot be measured; it names the matrix, or the site (an input of linear layers) whose statistics cannot
/// be prepared. Errors with [`Error::Io`] if a file cannot be read or written. Errors with [`Error::Numerical`] if a loss is not finite, or if no
/// choice fits because the headers of the files grow with the choices. Errors with [`Error::Cancelled`] if the work is cancelled; with
/// [`Store::work`], the same call then continues from what was saved.
pub fn choose(
    model: &Model,
    limit: Limit,
    options: &Options,
    store: &Store,
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
    if let Some(path) = &store.file {
        check_file(path, FileKind::Measurement, &[model.path()])?;
    }
    let saved = store.file.as_ref().filter(|m| m.is_file());
    let memory = saved.is_none().then(|| measure::memory(&plan, model));
    let mut items = match saved {
        Some(path) => load(path, &plan, model, cx)?,
        None => {
            refuse_too_small(&plan, limit, kinds)?;
            let peak: u64 = memory.iter().flat_map(BTreeMap::values).sum();
            if let Some(max) = cx.max_memory.filter(|max| *max < peak) {
                let rule = format!("must be at least {peak} bytes ({}) for measuring", megabytes(peak));
                return Err(ParamError::new("max-memory", max, rule).into());
            }
            cx.progress.begin(&format!("measure (memory at most {})", megabytes(peak)), measure::steps(&plan));
            let inputs = json!({"inputs": plan.inputs, "model": hash_model(model)?});
            let work = store.work.as_deref().map(|dir| (dir, &inputs, store.every.unwrap_or(SAVE_EVERY)));
            let items = measure::measure(&plan, model, kinds, work, cx)?;
            cx.progress.end();
            if let Some(path) = &store.file {
                let all = json!({"inputs": inputs["inputs"], "model": inputs["model"], "matrices": items});
                write_atomic(path, &files::to_bytes(&all))?;
            }
            if let Some((dir, inputs, _)) = work {
                measure::finish(dir, inputs)?;
            }
            items
        }
    };
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

/// Returns the recipe that [`choose`] returns for `model`, `limit`, `options`, `kinds` and `cx`, to compress the model by it into the directory `out`
/// with [`compress`](crate::compress()). `out` is made if it does not exist. The measurement is kept in it as work in progress and saved when the
/// time `every` has passed ([`SAVE_EVERY`] if it is None), so that the same call after a stop continues. If `out` has a finished result of a recipe
/// of the name [`Limit::name`], that recipe is returned without a measurement; `compress` then checks that the result is of this model. If nothing
/// was measured when an error occurs, the work in progress is deleted, and `out` with it if it is empty. Warns as `choose` does, and if the work was
/// cancelled.
///
/// Errors as [`choose`] does. Errors with [`Error::Format`], with the directory, if `out` has files that this crate did not write, has a finished
/// result of a recipe of another name or an invalid one, or is in use by another process.
pub fn choose_for(
    model: &Model,
    limit: Limit,
    options: &Options,
    out: &Path,
    every: Option<Duration>,
    kinds: &Kinds,
    cx: &Context,
) -> Result<Recipe> {
    let manifest = out.join(MANIFEST);
    if manifest.is_file() {
        let json = files::read(&manifest, &Limits::default())?;
        let bad = |what: String| Error::format(out.display().to_string(), what);
        let recipe = Recipe::from_json(&json["recipe"], "recipe", &kinds.stages).map_err(|e| bad(e.to_string()))?;
        if recipe.name != limit.name() {
            return Err(bad(format!("it has a finished result of recipe `{}`; choose another directory", recipe.name)));
        }
        return Ok(recipe);
    }
    let reserved = Reserved::new(out)?;
    let (file, work) = (reserved.scratch().join("measured.json"), reserved.scratch().join("measuring"));
    let store = Store { file: Some(file.clone()), work: Some(work.clone()), every };
    let chosen = choose(model, limit, options, &store, kinds, cx);
    if chosen.is_err() && !file.is_file() && !progress::any(&work) {
        // Nothing was measured yet.
        reserved.abandon();
    } else if let Err(Error::Cancelled) = chosen {
        cx.progress.warn("stopped; the same command again continues from here");
    }
    Ok(chosen?.recipe)
}

/// Returns the recipe for `limit` that stores each of `items` in its form of the index in `picks`, with one rule for each list of stages that some
/// matrix has, and a last rule that rounds all other matrices to 8 bits. Errors if an item lacks its form, or a stage is of no kind in `kinds`.
pub(crate) fn recipe(limit: Limit, items: &[Item], picks: &[usize], kinds: &Stages) -> Result<Recipe> {
    // Stages and names of the matrices that have them, by the stages as text.
    type Rules = BTreeMap<String, (Vec<Box<dyn StageSpec>>, Vec<String>)>;
    let mut rules = Rules::new();
    for (item, pick) in items.iter().zip(picks) {
        let stages = item.stages(*pick, kinds)?;
        let text = item.ways.get(*pick).map(|w| w.stages.to_string()).unwrap_or_default();
        rules.entry(text).or_insert_with(|| (stages, Vec::new())).1.push(glob::Pattern::escape(&item.name));
    }
    let mut all = Vec::new();
    for (stages, names) in rules.into_values() {
        all.push(Rule::new(names.iter().map(String::as_str), stages)?);
    }
    // Other matrices are rounded to 8 bits, as in the named recipes.
    all.push(Rule::new(["*"], Recipe::outer(kinds)?)?);
    Ok(Recipe { name: limit.name(), statistics: None, network: Vec::new(), cache: Vec::new(), rules: all })
}

/// Reads a saved measurement. Errors if it is of another model, text or version. Warns if it was made on another instruction set.
fn load(path: &Path, plan: &Plan, model: &Model, cx: &Context) -> Result<Vec<Item>> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    let (mut now, mut then) = (json!(plan.inputs), json["inputs"].clone());
    if now[INSTRUCTION_SET] != then[INSTRUCTION_SET] {
        cx.progress.warn(&format!("{} was measured on another instruction set", path.display()));
        (now[INSTRUCTION_SET], then[INSTRUCTION_SET]) = (Json::Null, Json::Null);
    }
    if now != then || json["model"].as_str() != Some(&hash_model(model)?) {
        return Err(bad("it was measured with another model, text or version; remove it or choose another name"));
    }
    let items: Vec<Item> = serde_json::from_value(json["matrices"].clone()).map_err(|e| bad(&e.to_string()))?;
    if items.is_empty() || !items.iter().all(|i| plan.entry(&i.name).is_some()) {
        return Err(bad("its matrices are not those of the model; remove it or choose another name"));
    }
    Ok(items)
}
