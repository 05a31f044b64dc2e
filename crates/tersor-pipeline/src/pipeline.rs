//! [`Pipeline`]: a model and a recipe, from calibration data to a compressed directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tersor_core::{Context, Error, Limits, Result};
use tersor_formats::Model;

use crate::compress::{Finished, Outcome, Part, compress};
use crate::kinds::Kinds;
use crate::plan::{Calibrated, Data, Options, Plan, Summary};
use crate::recipe::Recipe;
use crate::text::Text;

/// A model to compress, a recipe, and calibration data. [`plan`](Self::plan) computes from headers alone what is done with each tensor and what is
/// stored for it; [`Planned::compress`] then writes the result. The page of this crate has an example.
pub struct Pipeline<'k> {
    model: Model,
    recipe: Recipe,
    options: Options,
    seed: Option<u64>,
    kinds: &'k Kinds,
}

impl<'k> Pipeline<'k> {
    /// Returns the pipeline of `model` and `recipe`, without calibration data. `kinds` has all kinds of operators and stages that may occur.
    pub fn new(model: Model, recipe: Recipe, kinds: &'k Kinds) -> Self {
        Self { model, recipe, options: Options::default(), seed: None, kinds }
    }

    /// Opens the model at `model`, a directory in the layout of Hugging Face or a `.safetensors` or `.gguf` file, and finds the recipe that `recipe`
    /// names: the path of a TOML file, or a name such as `w4-g128-gptq` ([`Recipe::find`]). `kinds` has all kinds of operators and stages that may
    /// occur.
    ///
    /// # Errors
    ///
    /// An [`Error::Unsupported`] if the model is an output directory of [`compress`](crate::compress()). An [`Error::Io`], [`Error::Format`] or
    /// [`Error::Limit`] if a file of the model is missing, invalid or too large. An [`Error::Param`] if there is no such recipe or it is invalid.
    pub fn open(model: impl AsRef<Path>, recipe: &str, kinds: &'k Kinds) -> Result<Self> {
        crate::compress::check_original(model.as_ref())?;
        let model = Model::open(model.as_ref(), &Limits::default())?;
        Ok(Self::new(model, Recipe::find(recipe, &kinds.stages)?, kinds))
    }

    /// Sets the calibration text, in place of text or statistics set before. Recipes that need no data ignore it.
    pub fn data(mut self, text: Text) -> Self {
        self.options.data = Data::Text(text);
        self
    }

    /// Sets the paths of files of statistics, in place of text or statistics set before: all files that [`Planned::gather`] wrote for one text, or
    /// one importance matrix of llama.cpp. Recipes that need no data ignore them.
    pub fn statistics(mut self, files: Vec<PathBuf>) -> Self {
        self.options.data = Data::Statistics(files);
        self
    }

    /// Sets the number of windows (sequences of a fixed number of tokens) to take from the beginning of the calibration text; for an encoder, the
    /// number of lines. Without this call it is 128. [`plan`](Self::plan) refuses 0.
    pub fn windows(mut self, windows: usize) -> Self {
        self.options.windows = windows;
        self
    }

    /// Sets the number of tokens of a calibration window; for an encoder, the maximum per line. Without this call it is the smaller of 512 and the
    /// model's maximum. [`plan`](Self::plan) refuses a number below 2 or above the model's maximum.
    pub fn ctx(mut self, ctx: usize) -> Self {
        self.options.ctx = Some(ctx);
        self
    }

    /// Sets the seed of all random numbers. Without this call it is the seed of the [`Context`] that [`plan`](Self::plan) gets.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes [`plan`](Self::plan) accept a model of unknown architecture. The roles of its matrices are guessed from their names, and recipes that
    /// need data are refused.
    pub fn generic(mut self) -> Self {
        self.options.generic = true;
        self
    }

    /// Plans the compression, and keeps hidden states on disk if [`Context::max_memory`] demands it ([`Plan::fit`]). Warnings go to the listener of
    /// `cx`. Reads the calibration text, but no weights.
    ///
    /// # Errors
    ///
    /// Those of [`Plan::new`], if the recipe, the model and the data do not fit together, and of [`Plan::fit`], if more memory is needed than
    /// [`Context::max_memory`].
    pub fn plan(self, cx: &Context) -> Result<Planned<'k>> {
        let seeded = cx.clone().with_seed(self.seed.unwrap_or(cx.seed));
        let mut plan = Plan::new(&self.model, self.recipe, &self.options, self.kinds, &seeded)?;
        plan.fit(&self.model, cx)?;
        Ok(Planned { model: self.model, plan, kinds: self.kinds })
    }
}

/// A [`Plan`] with the model that it is for, ready to be carried out.
pub struct Planned<'k> {
    /// The model.
    pub model: Model,
    /// The plan.
    pub plan: Plan,
    kinds: &'k Kinds,
}

impl Planned<'_> {
    /// Returns the estimated peak memory of [`compress`](Self::compress) in bytes, by part, such as `hidden states` ([`Plan::memory`]). The peak is
    /// the sum.
    pub fn memory(&self) -> BTreeMap<&'static str, u64> {
        self.plan.memory(&self.model)
    }

    /// Returns the figures of the plan: sizes, bits per weight, memory, tensors and tasks.
    ///
    /// # Errors
    ///
    /// Those of [`Plan::weight_bytes`]: a size overflows, or the file format reserves the name of a tensor.
    pub fn summary(&self) -> Result<Summary> {
        self.plan.summary(&self.model)
    }

    /// Compresses the model into the directory `out`, which is made if it does not exist, and returns its size and other figures. If the work is
    /// stopped, the same call continues it; if `out` is complete already, nothing is done. Progress and cancellation are those of `cx`, the seed is
    /// that of the plan.
    ///
    /// # Errors
    ///
    /// Those of [`compress`](crate::compress()): data is missing, `out` has other files or work from other inputs or is in use, a tensor or file
    /// cannot be read or written, or the work is cancelled.
    pub fn compress(&self, out: &Path, cx: &Context) -> Result<Finished> {
        match self.part(out, Part::All, cx)? {
            Outcome::Finished(finished) => Ok(finished),
            Outcome::Task(_) => Err(Error::format("task", "it is not all of the work")),
        }
    }

    /// Does a part of the work of [`compress`](Self::compress) in the directory `out`: one task of [`Plan::tasks`], or the merge of their results
    /// into the output. Several processes that share the directory may do different tasks at the same time. Returns the number of the task, or the
    /// figures of the complete directory.
    ///
    /// # Errors
    ///
    /// Those of [`compress`](crate::compress()). Also an [`Error::Param`] if there is no task of the number, and an error if tasks that must be done
    /// before have not been done.
    pub fn part(&self, out: &Path, part: Part, cx: &Context) -> Result<Outcome> {
        compress(&self.model, &self.plan, out, part, self.kinds, cx)
    }

    /// Runs the original network on the calibration text and writes the statistics that the plan needs to the file `out`: for `[i, n]`, part `i`
    /// (from 1 to `n`) of `n` parts of the windows. The files of all parts together are the statistics of the whole text, for
    /// [`Pipeline::statistics`]. Returns the numbers of sites (inputs of linear layers) and windows, and the length of the file. See
    /// [`Plan::gather`].
    ///
    /// # Errors
    ///
    /// Those of [`Plan::gather`]: no data is needed or no text was given, `part` is out of range, `out` is another file, a file or tensor cannot be
    /// read or written, or the work is cancelled.
    pub fn gather(&self, part: [usize; 2], out: &Path, cx: &Context) -> Result<Calibrated> {
        self.plan.gather(&self.model, part, out, self.kinds, cx)
    }
}
