//! Plans: the result of a recipe on a model, computed from headers alone.

mod budget;
mod memory;
mod show;
mod smoothing;
mod tasks;

pub use show::run;
pub use tasks::Task;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tersor::core::{
    Check, DType, Effect, Error, Extent, Limits, Method, ParamError, Result, Rewrite, Site, StatNeeds, TensorInfo,
    tensors::join,
};
use tersor::formats::safetensors::Header;
use tersor::formats::{Model, Tensor, json as files};
use tersor::llm::{Architecture, StoredWeight, Tokenizer, Upstream};

use crate::args;
use crate::recipe::Recipe;
use crate::statistics::Statistics;
use tersor::lowrank::rotate::SAMPLE_TOKENS;
use tersor::lowrank::{By, Rotate};

/// Tensor name of the output head.
const HEAD: &str = "lm_head.weight";

/// Size of a block of rows in bytes of f32 values.
const BLOCK_BYTES: usize = 8 << 20;

/// What is done with a tensor.
pub enum Action {
    /// The tensor is copied as it is stored; GGUF block types are converted to f32.
    Copy,
    /// The tensor is a vector into which a rewrite folds factors; it is stored in f32.
    Fold,
    /// The tensor is a matrix and is compressed by this method.
    Compress(Box<dyn Method>),
    /// The tensor is not in the model; the rotation of the network adds it.
    New,
}

/// A tensor in a plan.
pub struct Entry {
    /// Name of the tensor in the output.
    pub name: String,
    /// Name of the tensor in the model: the same, except for an output head that is separated from the embedding.
    pub source: String,
    /// Shape of the original tensor.
    pub shape: Vec<usize>,
    /// Index of the matching rule of the recipe; none if no rule matches.
    pub rule: Option<usize>,
    /// What is done with the tensor.
    pub action: Action,
    /// Name, type and shape of the tensors that are stored for it.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Name of the file that they are stored in.
    pub file: String,
}

impl Entry {
    /// Returns the total length in bytes of the tensors that are stored for it.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.bytes().unwrap_or(0) as u64).sum()
    }

    /// Returns the statistics of its inputs that its method needs.
    pub fn needs(&self) -> StatNeeds {
        match &self.action {
            Action::Copy | Action::Fold | Action::New => StatNeeds::default(),
            Action::Compress(m) => m.needs(),
        }
    }

    /// Returns rows and columns of a matrix; none for another tensor.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [r, c] => Some([r, c]),
            _ => None,
        }
    }
}

/// The calibration data and memory limit given by the user.
#[derive(Default)]
pub struct Calibration {
    /// The calibration text, if one is given; a plan without budget needs none.
    pub text: Option<PathBuf>,
    /// Number of windows of the text.
    pub windows: usize,
    /// Tokens per window; none for the smaller of 512 and the model's maximum.
    pub ctx: Option<usize>,
    /// Files of statistics to use instead of a text.
    pub stats: Vec<PathBuf>,
    /// Maximum memory of compression in bytes, if it is limited.
    pub max_memory: Option<u64>,
}

impl Calibration {
    /// Converts the arguments of the command line.
    pub fn from_args(a: &args::Calibration, ctx: Option<usize>) -> Self {
        Self { text: a.calib.clone(), windows: a.calib_windows, ctx, stats: a.stats.clone(), max_memory: a.max_memory }
    }
}

/// A recipe applied to the headers of a model.
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Every tensor of the output, sorted by name.
    pub entries: Vec<Entry>,
    /// The smoothing of each smoothed site, by the name of the site.
    pub smoothings: BTreeMap<String, Box<dyn Rewrite>>,
    /// The rotation of the whole network, if the recipe has one.
    pub rotation: Option<Box<dyn Rewrite>>,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Everything that the result depends on, as hashes by name.
    pub inputs: BTreeMap<String, String>,
    /// The architecture; none with `--generic`.
    pub network: Option<Architecture>,
    /// The calibration text, if the recipe needs data and one was given.
    pub calibration: Option<Text>,
    /// Statistics from files, if the recipe needs data and they were given.
    pub statistics: Option<Statistics>,
    /// Whether hidden states are kept on disk instead of in memory.
    pub spill: bool,
    /// Number of calibration windows, and tokens per window.
    pub windows: [usize; 2],
}

/// A calibration text.
pub struct Text {
    /// Its content.
    pub content: String,
    /// The path that it was read from, for messages.
    pub name: String,
}

impl Plan {
    /// Plans the compression of a model from its headers. Errors if the architecture is unsupported (unless `generic`), a rule is invalid, a method
    /// cannot store a matrix of the model's shape, or the calibration data does not fit the recipe.
    pub fn new(model: &Model, recipe: Recipe, seed: u64, generic: bool, calibration: &Calibration) -> Result<Self> {
        recipe.check()?;
        let network = match (model.config(), generic) {
            (Some(_), false) => Some(Architecture::of(model)?),
            (None, false) => {
                let place = format!("{} (--generic takes matrices by name)", model.path().display());
                return Err(Error::Missing { name: "config.json".into(), place });
            }
            (_, true) => None,
        };
        let tied = network.as_ref().is_some_and(Architecture::tied);
        let rotation: Option<Box<dyn Rewrite>> = match recipe.rotate.as_deref() {
            Some(how) => {
                // The rotation is the same for all layers, so the shares of one layer's rule hold for all.
                let rule = recipe.rule("model.layers.0.self_attn.o_proj.weight")?;
                Some(rotation(how, network.as_ref(), rule.and_then(|(_, r)| r.shares()))?)
            }
            None => None,
        };
        let sites = network.as_ref().map(Architecture::sites).unwrap_or_default();
        let smoothings = smoothing::of(&recipe, &sites)?;
        if rotation.is_some() && !smoothings.is_empty() {
            let rule = "it and `smooth` exclude each other: a rotation already spreads outliers over all features";
            return Err(ParamError::new("rotate", "given", rule).into());
        }
        let mut effects: Vec<(String, Effect)> = Vec::new();
        for site in &sites {
            if let Some(smoothing) = smoothings.get(&site.name) {
                effects.extend(smoothing.plan(std::slice::from_ref(site))?);
            }
        }
        if let Some(rotation) = &rotation {
            effects.extend(rotation.plan(&sites)?);
        }
        let mut by_name: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
        for (name, effect) in &effects {
            by_name.entry(name).or_default().push(effect);
        }
        let of = |name: &str| by_name.get(name).into_iter().flatten().copied();
        let mut entries = Vec::new();
        let mut tensors: Vec<(String, Tensor)> = model.tensors().into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut own_head = false;
        for (name, effect) in &effects {
            if let Effect::Untie { from } = effect {
                // A copy of the head in the file is not used; the head is made from the embedding.
                tensors.retain(|(_, t)| t.name != *name);
                let table = tensors.iter().find(|(_, t)| t.name == *from).map(|(_, t)| t.clone());
                tensors.extend(table.map(|t| (from.clone(), Tensor { name: name.clone(), ..t })));
                tensors.sort_by(|a, b| a.1.name.cmp(&b.1.name));
                own_head = true;
            }
        }
        let site_of: BTreeMap<&str, &Site> =
            sites.iter().flat_map(|s| s.consumers.iter().map(move |c| (c.weight.as_str(), s))).collect();
        for (source, t) in tensors {
            // A copy of a tied head in the file is not used. The rotary frequencies of a GGUF file are in the configuration.
            if (tied && !own_head && t.name == HEAD) || (model.gguf().is_some() && t.name == "rope_freqs.weight") {
                continue;
            }
            let stored = DType::from_name(&t.dtype);
            let is_float = stored.is_none_or(DType::is_weight);
            let rule = if is_float && t.shape.len() == 2 { recipe.rule(&t.name)? } else { None };
            let original = stored.filter(|d| d.is_weight()).unwrap_or(DType::F32);
            let (action, tensors) = if is_float && let [rows, cols] = t.shape[..] {
                let method = match rule {
                    Some((_, rule)) => {
                        let site = site_of.get(t.name.as_str()).copied();
                        rule.method(&t.name, original, heads_of(network.as_ref(), &t.name), site)?
                    }
                    None => Box::new(tersor::operators::Cast::new(original)?),
                };
                let mut layout = method.layout([rows, cols]).map_err(|e| e.in_tensor(&t.name))?;
                for effect in of(&t.name) {
                    if let Effect::Online(own) = effect {
                        layout = layout.nested("op");
                        layout.tensors.extend(own.tensors.iter().cloned());
                    }
                }
                let tensors = layout.tensors.into_iter().map(|(s, info)| (join(&t.name, &s), info)).collect();
                (Action::Compress(method), tensors)
            } else if is_float && of(&t.name).any(|e| *e == Effect::Values) {
                (Action::Fold, vec![(t.name.clone(), TensorInfo { dtype: DType::F32, shape: t.shape.clone() })])
            } else {
                let dtype = stored.unwrap_or(DType::F32);
                (Action::Copy, vec![(t.name.clone(), TensorInfo { dtype, shape: t.shape.clone() })])
            };
            let file = model.shard_of(&source).to_string();
            entries.push(Entry {
                name: t.name,
                source,
                shape: t.shape,
                rule: rule.map(|r| r.0),
                action,
                tensors,
                file,
            });
        }
        for (name, effect) in &effects {
            let Effect::New { info, beside } = effect else { continue };
            entries.push(Entry {
                source: name.clone(),
                name: name.clone(),
                shape: info.shape.clone(),
                rule: None,
                action: Action::New,
                tensors: vec![(name.clone(), info.clone())],
                file: model.shard_of(beside).to_string(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let max = network.as_ref().map_or(512, Architecture::max_positions);
        let ctx = calibration.ctx.unwrap_or(max.min(512));
        if ctx < 2 || ctx > max {
            return Err(ParamError::new("ctx", ctx, format!("must be 2 to {max}, the model's maximum")).into());
        }
        if calibration.windows == 0 {
            return Err(ParamError::new("calib-windows", 0, "must be at least 1").into());
        }
        let mut plan = Self {
            inputs: inputs(model, &recipe, seed)?,
            recipe,
            entries,
            smoothings,
            rotation,
            seed,
            network,
            calibration: None,
            statistics: None,
            spill: false,
            windows: [calibration.windows, ctx],
        };
        if plan.needs_data() {
            plan.check_sites()?;
            plan.take_data(calibration)?;
        }
        Ok(plan)
    }

    /// Reads the calibration text, or opens the statistics. Errors if they cannot be used with the recipe.
    fn take_data(&mut self, calibration: &Calibration) -> Result<()> {
        let mut upstream = self.recipe.upstream()?;
        if !self.smoothings.is_empty() && (!calibration.stats.is_empty() || upstream == Upstream::Original) {
            let rule = "it changes the inputs of later sites, so it needs a text (--calib) and sequential statistics";
            return Err(ParamError::new("smooth", "given", rule).into());
        }
        if self.rotation.is_some() && (!calibration.stats.is_empty() || upstream == Upstream::Original) {
            let rule = "it changes the inputs of every site, so it needs a text (--calib) and sequential statistics";
            return Err(ParamError::new("rotate", "given", rule).into());
        }
        if !calibration.stats.is_empty() {
            if self.recipe.statistics.as_deref() == Some("sequential") {
                let rule = "the files have statistics of the original network, and the recipe needs `sequential` ones; give a text (--calib)";
                return Err(ParamError::new("stats", "given", rule).into());
            }
            let statistics = Statistics::open(&calibration.stats, self)?;
            self.inputs.extend(statistics.inputs()?);
            self.windows = statistics.windows().unwrap_or(self.windows);
            self.statistics = Some(statistics);
            upstream = Upstream::Original;
        } else if let Some(path) = &calibration.text {
            let content = crate::eval::read_text(path)?;
            let [windows, ctx] = self.windows;
            self.inputs.insert("calibration text".into(), hash(content.as_bytes()));
            self.inputs.insert("calibration windows".into(), format!("{windows} of {ctx}"));
            self.calibration = Some(Text { content, name: path.display().to_string() });
        }
        let name = if upstream == Upstream::Original { "original" } else { "sequential" };
        self.inputs.insert("statistics".into(), name.into());
        Ok(())
    }

    /// Returns which weights are upstream of the sites during calibration.
    pub fn upstream(&self) -> Result<Upstream> {
        if self.statistics.is_some() { Ok(Upstream::Original) } else { self.recipe.upstream() }
    }

    /// Returns the sites of the network; none with `--generic`.
    pub fn sites(&self) -> Vec<Site> {
        self.network.as_ref().map(Architecture::sites).unwrap_or_default()
    }

    /// Returns whether the rotation of the network needs calibration data.
    pub fn rotation_needs_data(&self) -> bool {
        let found = |r: &dyn Rewrite| self.sites().iter().any(|s| r.needs(s).any_data());
        self.rotation.as_ref().is_some_and(|r| found(&**r))
    }

    /// Returns whether calibration data is needed at all.
    pub fn needs_data(&self) -> bool {
        self.needs_site_data() || self.rotation_needs_data()
    }

    /// Returns whether compressing some matrix, or smoothing some site, needs calibration data.
    pub fn needs_site_data(&self) -> bool {
        !self.smoothings.is_empty() || self.entries.iter().any(|e| e.needs().any_data())
    }

    /// Errors unless every matrix whose method needs data is a consumer of a site.
    fn check_sites(&self) -> Result<()> {
        let Some(network) = &self.network else {
            let value = "choose a method without calibration, such as rtn".to_string();
            return Err(Error::Unsupported { what: "calibration of a model of unknown architecture", value });
        };
        let (sites, tables) = (network.sites(), network.embeddings());
        let rotated = self.rotation.is_some();
        let fed = |name: &str| {
            let reads = |s: &&tersor::core::Site| s.consumers.iter().any(|c| c.weight == name);
            sites.iter().filter(|s| s.layer.is_some() || !rotated).any(|s| reads(&s))
        };
        for e in self.entries.iter().filter(|e| e.needs().any_data()) {
            if !fed(&e.name) || tables.contains(&e.name) {
                let value = "no activations flow into it; choose a method without calibration, such as rtn".to_string();
                return Err(Error::Unsupported { what: "calibration of this matrix", value }.in_tensor(&e.name));
            }
        }
        Ok(())
    }

    /// Returns the index of a tensor's entry; none if there is no such tensor.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok()
    }

    /// Returns one hash over everything that the result depends on.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, hash) in &self.inputs {
            hasher.update(name.as_bytes()).update(b"\0").update(hash.as_bytes()).update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns the stored tensors of each output file.
    pub fn files(&self) -> BTreeMap<String, BTreeMap<String, TensorInfo>> {
        let mut files: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
        for e in &self.entries {
            files.entry(e.file.clone()).or_default().extend(e.tensors.iter().cloned());
        }
        files
    }

    /// Returns the total length of all weight files in bytes, headers included.
    pub fn weight_bytes(&self) -> Result<u64> {
        self.files().values().map(|tensors| Ok(Header::canonical(tensors)?.0.file_len())).sum()
    }

    /// Returns the matrices with their stored sizes.
    pub fn weights(&self) -> Vec<StoredWeight> {
        let weight = |e: &Entry| Some(StoredWeight { name: e.name.clone(), shape: e.matrix()?, bytes: e.bytes() });
        self.entries.iter().filter_map(weight).collect()
    }

    /// Returns how many rows of a matrix `[rows, cols]` a method compresses at a time.
    pub fn block_rows([rows, cols]: [usize; 2], method: &dyn Method) -> usize {
        use tersor::core::method::ROW_UNIT;
        if method.extent() == Extent::Whole {
            return rows.max(1);
        }
        (BLOCK_BYTES / 4 / cols.max(1) / ROW_UNIT).max(1) * ROW_UNIT
    }
}

/// Returns the rotation of a network by its name in a recipe: `hadamard`, `orthogonal`, `resq`, or `pca` (`resq` without the random rotation inside
/// each subspace). `shares` are the relative sizes of the subspaces, if matrices are split. Errors if the network is no decoder.
fn rotation(how: &str, network: Option<&Architecture>, shares: Option<Vec<f64>>) -> Result<Box<dyn Rewrite>> {
    let by = match how {
        "hadamard" => By::Hadamard,
        "orthogonal" => By::Orthogonal,
        "resq" => By::Principal { mix: true },
        "pca" => By::Principal { mix: false },
        _ => {
            let rule = "must be hadamard, orthogonal, resq or pca";
            return Err(ParamError::new("rotate", format!("`{how}`"), rule).into());
        }
    };
    if !matches!(network, Some(Architecture::Decoder(_))) {
        let rule = "it is supported for decoders of a known architecture only";
        return Err(ParamError::new("rotate", "given", rule).into());
    }
    let rotate = Rotate::new(by).head(HEAD).split_heads(shares.is_some());
    Ok(Box::new(shares.map_or(rotate.clone(), |s| rotate.shares(s)).check()?))
}

/// Returns the number of heads whose outputs are concatenated in the input of a matrix; 1 if it has another input.
fn heads_of(network: Option<&Architecture>, name: &str) -> usize {
    match network {
        Some(Architecture::Decoder(c)) if name.ends_with(".self_attn.o_proj.weight") => c.heads,
        _ => 1,
    }
}

/// Returns the BLAKE3 hash of bytes.
fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Returns what a result depends on before calibration data is known, as hashes by name.
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

/// Reads the recipe, the seed and the hashed inputs of a plan file. Errors if one is missing or invalid.
pub fn recipe_of(path: &Path) -> Result<(Recipe, u64, BTreeMap<String, String>)> {
    let json = files::read(path, &Limits::default())?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    let recipe = serde_json::from_value(json["recipe"].clone()).map_err(|e| bad(&format!("recipe: {e}")))?;
    let seed = json["seed"].as_u64().ok_or_else(|| bad("`seed` is missing or not a number"))?;
    let inputs = serde_json::from_value(json["inputs"].clone()).map_err(|e| bad(&format!("inputs: {e}")))?;
    Ok((recipe, seed, inputs))
}
