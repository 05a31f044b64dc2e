//! [`Pipeline`]: a model and a recipe, from data to a compressed directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tersor_core::{Context, Error, Limits, Result};
use tersor_formats::Model;

use crate::compress::{Finished, Outcome, Part, compress};
use crate::kinds::Kinds;
use crate::plan::{Calibrated, Data, Options, Plan, Summary};
use crate::recipe::Recipe;
use crate::text::Text;

/// A model to compress, a recipe, and calibration data: [`plan`](Self::plan) returns what becomes of each tensor, from headers alone, and
/// [`Planned::compress`] writes the result. The page of this crate has an example.
pub struct Pipeline<'k> {
    model: Model,
    recipe: Recipe,
    options: Options,
    seed: Option<u64>,
    kinds: &'k Kinds,
}

impl<'k> Pipeline<'k> {
    /// Returns the pipeline of a model and a recipe, without calibration data. `kinds` are all kinds of operators and stages that it knows.
    pub fn new(model: Model, recipe: Recipe, kinds: &'k Kinds) -> Self {
        Self { model, recipe, options: Options::default(), seed: None, kinds }
    }

    /// Opens a model (a directory or a `.gguf` file) and finds a recipe by its name or TOML file. Errors if the model cannot be opened or is compressed
    /// already, or there is no such recipe.
    pub fn open(model: impl AsRef<Path>, recipe: &str, kinds: &'k Kinds) -> Result<Self> {
        crate::compress::check_original(model.as_ref())?;
        let model = Model::open(model.as_ref(), &Limits::default())?;
        Ok(Self::new(model, Recipe::find(recipe, &kinds.stages)?, kinds))
    }

    /// Sets the calibration text. Recipes without calibration ignore it.
    pub fn data(mut self, text: Text) -> Self {
        self.options.data = Data::Text(text);
        self
    }

    /// Sets files of statistics, in place of a calibration text: all parts that [`Planned::gather`] wrote, or one importance matrix of llama.cpp.
    pub fn statistics(mut self, files: Vec<PathBuf>) -> Self {
        self.options.data = Data::Statistics(files);
        self
    }

    /// Sets the number of windows (pieces of a fixed number of tokens) of the calibration text, or of lines for an encoder; 128 unless set.
    pub fn windows(mut self, windows: usize) -> Self {
        self.options.windows = windows;
        self
    }

    /// Sets the tokens per window; unless set, the smaller of 512 and the model's maximum.
    pub fn ctx(mut self, ctx: usize) -> Self {
        self.options.ctx = Some(ctx);
        self
    }

    /// Sets the seed of all random numbers; unless set, that of the [`Context`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Accepts a model of unknown architecture. Its matrices are found by name patterns, and methods that need data are refused.
    pub fn generic(mut self) -> Self {
        self.options.generic = true;
        self
    }

    /// Plans the compression, within [`Context::max_memory`]. Errors as [`Plan::new`] and [`Plan::fit`] do.
    pub fn plan(self, cx: &Context) -> Result<Planned<'k>> {
        let seeded = cx.clone().with_seed(self.seed.unwrap_or(cx.seed));
        let mut plan = Plan::new(&self.model, self.recipe, &self.options, self.kinds, &seeded)?;
        plan.fit(&self.model, cx)?;
        Ok(Planned { model: self.model, plan, kinds: self.kinds })
    }
}

/// A plan with its model.
pub struct Planned<'k> {
    /// The model.
    pub model: Model,
    /// The plan.
    pub plan: Plan,
    kinds: &'k Kinds,
}

impl Planned<'_> {
    /// Returns the peak memory of [`compress`](Self::compress) in bytes, by term. The peak is their sum.
    pub fn memory(&self) -> BTreeMap<&'static str, u64> {
        self.plan.memory(&self.model)
    }

    /// Returns the figures of the plan: sizes, bits, memory, tensors, tasks.
    pub fn summary(&self) -> Result<Summary> {
        self.plan.summary(&self.model)
    }

    /// Compresses the model into the directory `out`. If the work is stopped, the same call continues from there. Errors as
    /// [`compress`](crate::compress()) does.
    pub fn compress(&self, out: &Path, cx: &Context) -> Result<Finished> {
        match self.part(out, Part::All, cx)? {
            Outcome::Finished(finished) => Ok(finished),
            Outcome::Task(_) => Err(Error::format("task", "it is not all of the work")),
        }
    }

    /// Does a part of the work: one task of [`Plan::tasks`], or the merge of their results. Processes that share a directory may each do other tasks.
    pub fn part(&self, out: &Path, part: Part, cx: &Context) -> Result<Outcome> {
        compress(&self.model, &self.plan, out, part, self.kinds, cx)
    }

    /// Gathers the statistics of the original network that the plan needs into the file `out`: those of part `i` of the `n` parts that the calibration windows
    /// are divided into, for `[i, n]`, counted from 1. The files of all parts, together, are the statistics of the whole text. Returns the numbers of sites
    /// (inputs with the matrices that read them) and windows, and the length of the file. Errors unless `1 <= i <= n` and `n` is at most the number of shards
    /// of the windows, if `out` exists and is no earlier file of statistics, if a tensor cannot be read, or if the work is cancelled.
    pub fn gather(&self, part: [usize; 2], out: &Path, cx: &Context) -> Result<Calibrated> {
        self.plan.gather(&self.model, part, out, self.kinds, cx)
    }
}
