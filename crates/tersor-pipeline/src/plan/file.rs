//! Files of plans, and the inputs that they record.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tersor_core::{Context, Error, Limits, Result};
use tersor_formats::{Model, json as files, write_atomic};
use tersor_models::Tokenizer;

use super::Plan;
use crate::kinds::Kinds;
use crate::output::{FileKind, RECIPE_HEAD, check_file};
use crate::recipe::Recipe;

/// The content of a plan file: what is needed to make the same [`Plan`] again from the same model and text. [`Plan::save`] writes it.
pub struct PlanFile {
    /// The recipe.
    pub recipe: Recipe,
    /// The seed of all random numbers.
    pub seed: u64,
    /// Everything that the bytes of the result depend on, hashes or plain values by name, as in [`Plan::inputs`].
    pub inputs: BTreeMap<String, String>,
    /// The number of calibration windows, and the number of tokens of each, as in [`Plan::windows`].
    pub windows: [usize; 2],
}

/// The name of the entry of [`Plan::inputs`] that says which instruction set of the processor computes the result.
pub(crate) const INSTRUCTION_SET: &str = "instruction set";

impl PlanFile {
    /// Reads the plan file `path`, which [`Plan::save`] wrote. `kinds` has the kinds of stages that its recipe may name.
    ///
    /// # Errors
    ///
    /// An [`Error::Io`] if the file cannot be read. An [`Error::Format`] with its path if it is no JSON, or if the recipe, the seed, the inputs or
    /// the windows are missing or invalid.
    pub fn read(path: &Path, kinds: &Kinds) -> Result<Self> {
        let json = files::read(path, &Limits::default())?;
        let bad = |what: &str| Error::format(path.display().to_string(), what);
        let recipe = Recipe::from_json(&json["recipe"], &path.display().to_string(), &kinds.stages);
        let recipe = recipe.map_err(|e| bad(&e.to_string()))?;
        let seed = json["seed"].as_u64().ok_or_else(|| bad("`seed` is missing or not a number"))?;
        let inputs = serde_json::from_value(json["inputs"].clone()).map_err(|e| bad(&format!("inputs: {e}")))?;
        let number = |i: usize| json["windows"][i].as_u64().and_then(|n| usize::try_from(n).ok());
        let windows = number(0).zip(number(1)).ok_or_else(|| bad("`windows` is missing or not two numbers"))?;
        Ok(Self { recipe, seed, inputs, windows: [windows.0, windows.1] })
    }

    /// Returns the kind of file that [`Plan::save`] writes to `path`: [`FileKind::Recipe`] if the name ends in `.toml`, otherwise [`FileKind::Plan`].
    pub fn kind(path: &Path) -> FileKind {
        if path.extension().is_some_and(|e| e == "toml") { FileKind::Recipe } else { FileKind::Plan }
    }

    /// Checks that `plan`, which was made from the recipe and the seed of this file, depends on the same inputs. `plan` may have inputs that the file
    /// lacks: the file may have been made without a calibration text. If the instruction set of the processor differs, warns the listener of `cx`;
    /// that is no error.
    ///
    /// # Errors
    ///
    /// An [`Error::Format`] that names the other inputs of the file that differ in the plan, or that the plan lacks.
    pub fn check(&self, plan: &Plan, cx: &Context) -> Result<()> {
        let differs = |(name, hash): &(&String, &String)| plan.inputs.get(*name) != Some(*hash);
        if self.inputs.iter().filter(differs).any(|(name, _)| name == INSTRUCTION_SET) {
            cx.progress.warn("the plan was made on another instruction set; bytes may differ from those made there");
        }
        let differ = self.inputs.iter().filter(differs).filter(|(name, _)| *name != INSTRUCTION_SET);
        let differ: Vec<&str> = differ.map(|(name, _)| name.as_str()).collect();
        if differ.is_empty() {
            return Ok(());
        }
        let what = format!("it was made for another model or text: {} changed; plan again", differ.join(", "));
        Err(Error::format("plan", what))
    }
}

impl Plan {
    /// Writes the plan to the file `path`, for [`PlanFile::read`]. If the name ends in `.toml`, writes the recipe alone, without the parameters that
    /// have the defaults of their kinds in `kinds`. An earlier file of the same kind is replaced.
    ///
    /// # Errors
    ///
    /// An [`Error::Format`] if `path` is a directory or a file that is no earlier output of the same kind. An [`Error::Io`] if the file cannot be
    /// written.
    pub fn save(&self, path: &Path, kinds: &Kinds) -> Result<()> {
        let kind = PlanFile::kind(path);
        check_file(path, kind, &[])?;
        if kind == FileKind::Recipe {
            return write_atomic(path, format!("{RECIPE_HEAD}{}", self.recipe.to_toml(&kinds.stages)).as_bytes());
        }
        let file = json!({
            "recipe": self.recipe.to_json(), "seed": self.seed, "inputs": self.inputs, "windows": self.windows,
        });
        write_atomic(path, &files::to_bytes(&file))
    }
}

/// Returns the BLAKE3 hash of `bytes` as 64 hexadecimal digits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Returns what a result depends on before calibration data is known, for [`Plan::inputs`]: hashes of the headers, the names and lengths of the
/// weight files, the configuration, the tokenizer and the recipe, and the seed, the version of this crate and the instruction set.
pub(super) fn inputs(model: &Model, recipe: &Recipe, seed: u64) -> BTreeMap<String, String> {
    let mut headers = blake3::Hasher::new();
    for t in model.tensors() {
        headers.update(format!("{}\0{}\0{:?}\0{}\n", t.name, t.dtype, t.shape, t.bytes).as_bytes());
    }
    let recipe = recipe.to_json().to_string().into_bytes();
    let config = model.config().map(files::to_bytes).unwrap_or_default();
    let tokenizer = Tokenizer::json_of(model).unwrap_or_default();
    [
        ("headers", headers.finalize().to_hex().to_string()),
        ("files", hash(format!("{:?}", model.files()).as_bytes())),
        ("config", hash(&config)),
        ("tokenizer", hash(&tokenizer)),
        ("recipe", hash(&recipe)),
        ("seed", seed.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        (INSTRUCTION_SET, tersor_core::Isa::fingerprint()),
    ]
    .map(|(k, v)| (k.to_string(), v))
    .into()
}
