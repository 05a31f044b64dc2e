//! Files of plans, and the inputs that they record.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tersor_core::{Context, Error, Limits, Result};
use tersor_formats::{Model, json as files, write_atomic};
use tersor_llm::Tokenizer;

use super::Plan;
use crate::kinds::Kinds;
use crate::output::{FileKind, RECIPE_HEAD, check_file};
use crate::recipe::Recipe;

/// What a file of a plan has.
pub struct PlanFile {
    /// The recipe.
    pub recipe: Recipe,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Everything that the result depends on, as hashes by name.
    pub inputs: BTreeMap<String, String>,
    /// Number of calibration windows, and tokens per window.
    pub windows: [usize; 2],
}

/// The name of the input that says on which instruction set something was made.
pub(crate) const INSTRUCTION_SET: &str = "instruction set";

impl PlanFile {
    /// Reads a file that [`Plan::save`] wrote. Errors if the recipe, the seed or the inputs are missing or invalid.
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

    /// Returns what [`Plan::save`] writes to a file of this name: a recipe if it ends in `.toml`, a plan otherwise.
    pub fn kind(path: &Path) -> FileKind {
        if path.extension().is_some_and(|e| e == "toml") { FileKind::Recipe } else { FileKind::Plan }
    }

    /// Errors, naming them, if inputs that the file records differ from those of a plan that was made from its recipe. The plan may have more inputs:
    /// the file may have been made without a calibration text.
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
    /// Writes the plan to a file, for [`PlanFile::read`]; if the name ends in `.toml`, writes the recipe only.
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

/// Returns the BLAKE3 hash of bytes.
pub(crate) fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Returns what a result depends on before calibration data is known, as hashes by name.
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
