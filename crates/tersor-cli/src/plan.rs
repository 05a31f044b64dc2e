//! What a recipe makes of a model, from headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tersor::core::{DType, Error, Limits, Method, ParamError, Result, StatNeeds, TensorInfo, tensors::join};
use tersor::formats::safetensors::Header;
use tersor::formats::{Model, json as files, write_atomic};
use tersor::llm::{DecoderConfig, StoredWeight, Tokenizer, bits_per_weight};

use crate::recipe::Recipe;
use crate::{args, megabytes, print_json};

/// The embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Bytes of f32 values in a block of rows.
const BLOCK_BYTES: usize = 8 << 20;

/// What happens to a tensor.
pub enum Action {
    /// Its stored bytes are kept (of block types: its values, as f32).
    Copy,
    /// It is a matrix and this method compresses it.
    Compress(Box<dyn Method>),
}

/// A tensor in a plan.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Axes of the original.
    pub shape: Vec<usize>,
    /// Number of the rule, where one matched.
    pub rule: Option<usize>,
    /// What happens.
    pub action: Action,
    /// Tensors that it becomes, by full name.
    pub tensors: Vec<(String, TensorInfo)>,
    /// File that they go to.
    pub file: String,
}

impl Entry {
    /// Bytes of all tensors that it becomes.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.bytes().unwrap_or(0) as u64).sum()
    }

    /// What its method must know about its inputs.
    pub fn needs(&self) -> StatNeeds {
        match &self.action {
            Action::Copy => StatNeeds::default(),
            Action::Compress(m) => m.needs(),
        }
    }

    /// Rows and columns, of a matrix.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [r, c] => Some([r, c]),
            _ => None,
        }
    }

    fn method_name(&self) -> String {
        match &self.action {
            Action::Copy => "copy".into(),
            Action::Compress(m) => m.name(),
        }
    }
}

/// What calibrates, as asked for.
#[derive(Default)]
pub struct Calibration {
    /// The text; a plan needs none.
    pub text: Option<PathBuf>,
    /// Windows of it.
    pub windows: usize,
    /// Tokens of a window; the smaller of 512 and the model's maximum unless given.
    pub ctx: Option<usize>,
}

impl Calibration {
    /// From the command line.
    pub fn from_args(a: &args::Calibration, ctx: Option<usize>) -> Self {
        Self { text: a.calib.clone(), windows: a.calib_windows, ctx }
    }
}

/// A recipe applied to the headers of a model.
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Every tensor, sorted by name.
    pub entries: Vec<Entry>,
    /// Seed of everything random.
    pub seed: u64,
    /// What the result depends on, each hashed.
    pub inputs: BTreeMap<String, String>,
    /// The architecture, unless matrices are taken by name.
    pub config: Option<DecoderConfig>,
    /// What calibrates, for recipes that need it and where it was given.
    pub calibration: Option<Text>,
    /// Windows of calibration and their length, as planned.
    pub windows: [usize; 2],
}

/// A calibration text.
pub struct Text {
    /// Its content.
    pub content: String,
    /// Where it was read, for messages.
    pub name: String,
}

impl Plan {
    /// Plans from headers. Error when the architecture is unknown (unless `generic`), a rule is invalid, or a
    /// method cannot lay a matrix out.
    pub fn new(model: &Model, recipe: Recipe, seed: u64, generic: bool, calibration: &Calibration) -> Result<Self> {
        recipe.check()?;
        let config = match (model.config(), generic) {
            (Some(config), false) => Some(DecoderConfig::from_json(config)?),
            (None, false) => {
                let place = format!("{} (with --generic, matrices are taken by name)", model.path().display());
                return Err(Error::Missing { name: "config.json".into(), place });
            }
            (_, true) => None,
        };
        let tied = config.as_ref().is_some_and(|c| c.tied);
        let mut entries = Vec::new();
        for t in model.tensors() {
            // The one is the other: a second copy in the file has no reader. The frequencies are in the configuration.
            if (tied && t.name == "lm_head.weight") || (model.gguf().is_some() && t.name == "rope_freqs.weight") {
                continue;
            }
            let stored = DType::from_name(&t.dtype);
            let is_float = stored.is_none_or(DType::is_weight);
            let rule = if is_float && t.shape.len() == 2 { recipe.rule(&t.name)? } else { None };
            let original = stored.filter(|d| d.is_weight()).unwrap_or(DType::F32);
            let (action, tensors) = if is_float && let [rows, cols] = t.shape[..] {
                let method = match rule {
                    Some((_, rule)) => rule.method(original)?,
                    None => Box::new(tersor::core::compose::Cast::new(original)?),
                };
                let layout = method.layout([rows, cols]).map_err(|e| e.in_tensor(&t.name))?;
                let tensors = layout.tensors.into_iter().map(|(s, info)| (join(&t.name, &s), info)).collect();
                (Action::Compress(method), tensors)
            } else {
                let dtype = stored.unwrap_or(DType::F32);
                (Action::Copy, vec![(t.name.clone(), TensorInfo { dtype, shape: t.shape.clone() })])
            };
            let file = model.shard_of(&t.name).to_string();
            entries.push(Entry { name: t.name, shape: t.shape, rule: rule.map(|r| r.0), action, tensors, file });
        }
        let most = config.as_ref().map_or(512, |c| c.max_positions);
        let ctx = calibration.ctx.unwrap_or(most.min(512));
        if ctx < 2 || ctx > most {
            return Err(
                ParamError::new("ctx", ctx, format!("must be 2 to {most}, which the model was made for")).into()
            );
        }
        if calibration.windows == 0 {
            return Err(ParamError::new("calib-windows", 0, "must be at least 1").into());
        }
        let mut plan = Self {
            inputs: inputs(model, &recipe, seed)?,
            recipe,
            entries,
            seed,
            config,
            calibration: None,
            windows: [calibration.windows, ctx],
        };
        if plan.needs_data() {
            plan.check_sites()?;
            if let Some(path) = &calibration.text {
                let content = crate::eval::read_text(path)?;
                let (windows, hash) = (format!("{} of {ctx}", calibration.windows), hash(content.as_bytes()));
                plan.inputs.insert("calibration text".into(), hash);
                plan.inputs.insert("calibration windows".into(), windows);
                plan.calibration = Some(Text { content, name: path.display().to_string() });
            }
        }
        Ok(plan)
    }

    /// Whether some matrix is compressed by what flows into it.
    pub fn needs_data(&self) -> bool {
        self.entries.iter().any(|e| e.needs().any_data())
    }

    /// Error unless every matrix that wants data is one that data flows into.
    fn check_sites(&self) -> Result<()> {
        let Some(config) = &self.config else {
            let value = "by name patterns alone: its method needs data (choose rtn)".to_string();
            return Err(Error::Unsupported { what: "calibration of a model of unknown architecture", value });
        };
        let sites = config.sites();
        let fed = |name: &str| sites.iter().any(|s| s.consumers.iter().any(|c| c.weight == name));
        for e in self.entries.iter().filter(|e| e.needs().any_data()) {
            if !fed(&e.name) || e.name == EMBEDDING {
                let value =
                    "it is looked up before anything flows; choose a method without data, such as rtn".to_string();
                return Err(Error::Unsupported { what: "calibration of this matrix", value }.in_tensor(&e.name));
            }
        }
        Ok(())
    }

    /// The entry of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }

    /// One hash of everything that the result depends on.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, hash) in &self.inputs {
            hasher.update(name.as_bytes()).update(b"\0").update(hash.as_bytes()).update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The tensors of each file.
    pub fn files(&self) -> BTreeMap<String, BTreeMap<String, TensorInfo>> {
        let mut files: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
        for e in &self.entries {
            files.entry(e.file.clone()).or_default().extend(e.tensors.iter().cloned());
        }
        files
    }

    /// Bytes of all weight files, headers included.
    pub fn weight_bytes(&self) -> Result<u64> {
        self.files().values().map(|tensors| Ok(Header::canonical(tensors)?.0.file_len())).sum()
    }

    /// The matrices and what they will take.
    pub fn weights(&self) -> Vec<StoredWeight> {
        let weight = |e: &Entry| Some(StoredWeight { name: e.name.clone(), shape: e.matrix()?, bytes: e.bytes() });
        self.entries.iter().filter_map(weight).collect()
    }

    /// Rows of a block of a matrix `[rows, cols]` under a method.
    pub fn block_rows([rows, cols]: [usize; 2], method: &dyn Method) -> usize {
        use tersor::core::method::ROW_UNIT;
        if method.needs().whole_matrix {
            return rows.max(1);
        }
        (BLOCK_BYTES / 4 / cols.max(1) / ROW_UNIT).max(1) * ROW_UNIT
    }

    /// Peak memory of `compress`, by term.
    pub fn memory(&self, tokenizer: u64) -> BTreeMap<&'static str, u64> {
        let block = |e: &Entry| match (&e.action, e.matrix()) {
            (Action::Compress(m), Some(shape)) => {
                // Values, values read back, stored bytes, codes and their packed form: four times the values.
                (Self::block_rows(shape, &**m).min(shape[0]) * shape[1]) as u64 * 16
            }
            _ => 0,
        };
        let mut terms = self.calibration_memory();
        let headers: u64 = self.entries.iter().map(|e| 200 + e.tensors.len() as u64 * 300).sum();
        terms.extend([
            ("rows", self.entries.iter().map(block).max().unwrap_or(0)),
            ("headers", headers),
            ("tokenizer", tokenizer),
            ("program", 10 << 20),
        ]);
        terms
    }

    /// What calibration adds: nothing where no method wants data.
    fn calibration_memory(&self) -> BTreeMap<&'static str, u64> {
        let Some(c) = self.config.as_ref().filter(|_| self.needs_data()) else { return BTreeMap::new() };
        let tokens = (self.windows[0] * self.windows[1]) as u64;
        let ctx = self.windows[1] as u64;
        let wide = self.entries.iter().filter(|e| e.needs().gram).filter_map(|e| e.matrix()).map(|m| m[1] as u64).max();
        let sites = tersor::llm::SiteKind::ALL.map(|k| k.shapes(c));
        let elements = |shapes: &[[usize; 2]]| shapes.iter().map(|s| (s[0] * s[1]) as u64).sum::<u64>();
        let largest = sites.iter().map(|s| elements(s)).max().unwrap_or(0);
        [
            // The stream, and beside it the attention output until it is added.
            ("hidden states", tokens * 4 * (c.hidden + c.heads * c.head_dim) as u64),
            // Statistics, the damped copy, its reversal and the factor, each in f64.
            ("gram", wide.unwrap_or(0).pow(2) * 8 * 4),
            // A layer in f32, and the compressed form of one site's matrices.
            ("layer", 4 * (sites.iter().map(|s| elements(s)).sum::<u64>() + largest)),
            // Of one window: queries, keys, values, scores of the heads at work, or the two halves of the gated product.
            ("window", 4 * ctx * (3 * c.intermediate.max(c.heads * c.head_dim) as u64 + 2 * ctx)),
        ]
        .into()
    }

    fn to_json(&self, tokenizer: u64) -> Result<Json> {
        let weights = self.weights();
        let (all, body) = bits_per_weight(&weights);
        let tensors: Vec<Json> = self
            .entries
            .iter()
            .map(|e| {
                let n = e.shape.iter().map(|&d| d as f64).product::<f64>();
                let bits = if n == 0.0 { 0.0 } else { e.bytes() as f64 * 8.0 / n };
                json!({"name": e.name, "rule": e.rule, "method": e.method_name(), "bits_per_weight": bits, "bytes": e.bytes()})
            })
            .collect();
        let tasks: Vec<Json> = (self.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))))
            .enumerate()
            .map(|(i, e)| json!({"task": i, "kind": "matrix", "tensor": e.name}))
            .collect();
        Ok(json!({
            "recipe": self.recipe.name, "bits_per_weight": all, "body_bits_per_weight": body,
            "weight_bytes": self.weight_bytes()?, "peak_memory_bytes": self.memory(tokenizer), "tensors": tensors, "tasks": tasks,
        }))
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn inputs(model: &Model, recipe: &Recipe, seed: u64) -> Result<BTreeMap<String, String>> {
    let mut headers = blake3::Hasher::new();
    for t in model.tensors() {
        headers.update(format!("{}\0{}\0{:?}\0{}\n", t.name, t.dtype, t.shape, t.bytes).as_bytes());
    }
    let recipe = serde_json::to_vec(recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
    let config = model.config().map(files::to_bytes).unwrap_or_default();
    let tokenizer = Tokenizer::json_of(model).unwrap_or_default();
    Ok([
        ("headers", headers.finalize().to_hex().to_string()),
        ("files", hash(format!("{:?}", model.files()).as_bytes())),
        ("config", hash(&config)),
        ("tokenizer", hash(&tokenizer)),
        ("recipe", hash(&recipe)),
        ("seed", seed.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("instruction set", tersor::core::Isa::fingerprint()),
    ]
    .map(|(k, v)| (k.to_string(), v))
    .into())
}

/// Reads a recipe, a seed and the hashed inputs back out of a plan file.
pub fn recipe_of(path: &Path) -> Result<(Recipe, u64, BTreeMap<String, String>)> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    let recipe = serde_json::from_value(json["recipe"].clone()).map_err(|e| bad(&format!("recipe: {e}")))?;
    let seed = json["seed"].as_u64().ok_or_else(|| bad("no `seed`"))?;
    let inputs = serde_json::from_value(json["inputs"].clone()).map_err(|e| bad(&format!("inputs: {e}")))?;
    Ok((recipe, seed, inputs))
}

pub fn run(a: &args::Plan, json: bool) -> Result<()> {
    let model = Model::open(&a.model, &Limits::default())?;
    let calibration = Calibration::from_args(&a.calibration, a.ctx);
    let plan = Plan::new(&model, Recipe::find(&a.recipe)?, a.seed, a.generic, &calibration)?;
    // A file is copied; of GGUF metadata a tree is made, of some twelve times the size of its text.
    let copies = if model.gguf().is_some() { 12 } else { 2 };
    let tokenizer = Tokenizer::json_of(&model).map_or(0, |t| t.len() as u64 * copies);
    if let Some(out) = &a.out {
        let recipe = serde_json::to_value(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
        let file = json!({"recipe": recipe, "seed": plan.seed, "inputs": plan.inputs});
        write_atomic(out, &files::to_bytes(&file))?;
    }
    let (all, body) = bits_per_weight(&plan.weights());
    if json {
        print_json(&plan.to_json(tokenizer)?);
        return Ok(());
    }
    let width = plan.entries.iter().map(|e| e.name.len()).max().unwrap_or(0);
    for e in plan.entries.iter().filter(|e| matches!(e.action, Action::Compress(_))) {
        let n = e.shape.iter().map(|&d| d as f64).product::<f64>().max(1.0);
        let rule = e.rule.map_or("-".to_string(), |r| r.to_string());
        println!(
            "{:width$}  rule {rule:>2}  {:6} {:6.3} bits  {:>10}",
            e.name,
            e.method_name(),
            e.bytes() as f64 * 8.0 / n,
            megabytes(e.bytes())
        );
    }
    println!(
        "{all:.3} bits a weight ({body:.3} without embedding and head), {} of weights",
        megabytes(plan.weight_bytes()?)
    );
    let memory = plan.memory(tokenizer);
    println!("{} of memory at most:", megabytes(memory.values().sum()));
    for (term, bytes) in memory {
        println!("  {term:10} {}", megabytes(bytes));
    }
    Ok(())
}
