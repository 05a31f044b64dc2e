//! Plans: a recipe applied to the headers of a model, before any weight is read.
//!
//! A [`Plan`] has an [`Entry`] for every tensor of the output, which says what is done with the tensor and exactly which tensors are stored for it.
//! Sizes, peak memory and the tasks into which the work is divided follow from the entries. A *site* ([`Site`]) is an input of linear layers with the
//! matrices that read it, such as the input of q, k and v. A *window* is a piece of the calibration text of a fixed number of tokens; for an encoder
//! it is one line. A *shard* is a run of consecutive windows whose statistics are summed together.

mod entry;
mod file;
mod gather;
mod memory;
mod summary;
mod tasks;

pub use entry::{Action, Entry};
pub use file::PlanFile;
pub(crate) use file::{INSTRUCTION_SET, hash};
pub use gather::Calibrated;
pub use summary::{Smoothed, Summary, TensorSummary};
pub use tasks::{Task, TaskSummary};

use std::collections::BTreeMap;
use std::path::PathBuf;

use tersor_core::{
    Context, DType, Effect, Error, Extent, Method, NonFinite, ParamError, Result, Rewrite, Site, StatNeeds, TensorInfo,
    stages::{Target, assemble},
    tensors::join,
};
use tersor_formats::safetensors::Header;
use tersor_formats::{Model, Tensor};
use tersor_models::{Architecture, StoredWeight, Tokenizer, Upstream};

use crate::calibrate::{self, Statistics, Wanted};
use crate::kinds::Kinds;
use crate::recipe::{self, HEAD, Recipe, Roles};
use crate::rewrite;
use crate::text::{Text, Tokens};
use crate::units::megabytes;

/// Size of a block of rows in bytes of f32 values.
const BLOCK_BYTES: usize = 8 << 20;

/// Calibration data: a text, on which the network is run, or statistics of the inputs of its matrices that were gathered before.
#[derive(Clone, Default, Debug)]
pub enum Data {
    /// No data. A plan can be made without data; [`compress`](crate::compress()) then errors if the recipe needs some.
    #[default]
    None,
    /// A text.
    Text(Text),
    /// The paths of files of statistics of the original network: all files that [`Plan::gather`] wrote for one text, or one importance matrix of
    /// llama.cpp.
    Statistics(Vec<PathBuf>),
}

/// What [`Plan::new`] takes beside a model and a recipe: calibration data and how it is cut into windows. The default is no data, 128 windows, the
/// usual number of tokens, and known architectures only.
#[derive(Clone, Debug)]
pub struct Options {
    /// The calibration data. It is not read if the recipe needs none.
    pub data: Data,
    /// The number of windows (sequences of `ctx` tokens) to take from the beginning of the text, at least 1; for an encoder, the number of lines. A
    /// text with fewer is used whole. 128 by default.
    pub windows: usize,
    /// The number of tokens of a window, from 2 to the model's maximum (512 with `generic`); for an encoder, the maximum per line. None for the
    /// smaller of 512 and the model's maximum.
    pub ctx: Option<usize>,
    /// Whether the model is taken as one of unknown architecture, even if its configuration is known. The roles of its matrices are then guessed from
    /// their names, and recipes that need data are refused.
    pub generic: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { data: Data::None, windows: 128, ctx: None, generic: false }
    }
}

/// A recipe applied to the headers of a model: what is done with each tensor, what is stored for it, and what the result depends on.
/// [`compress`](crate::compress()) carries it out.
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Every tensor of the output, sorted by its name there.
    pub entries: Vec<Entry>,
    /// The smoothing (a change that scales input features before compression) of each [`Site`] that has one, by the name of the site. A site is an
    /// input of linear layers with the matrices that read it.
    pub smoothings: BTreeMap<String, Box<dyn Rewrite>>,
    /// The change of the whole network before anything is compressed, such as a rotation. None if the recipe has none.
    pub rotation: Option<Box<dyn Rewrite>>,
    /// The seed of all random numbers.
    pub seed: u64,
    /// Everything that the bytes of the result depend on, as hashes or plain values by name: `headers`, `files`, `config`, `tokenizer`, `recipe`,
    /// `seed`, `version` and `instruction set`; with calibration also `statistics`, and `calibration text` with `calibration windows` or `importance
    /// matrix`.
    pub inputs: BTreeMap<String, String>,
    /// The architecture of the model; None with [`Options::generic`].
    pub network: Option<Architecture>,
    /// The calibration text; None if the recipe needs no data or no text was given.
    pub calibration: Option<Text>,
    /// The opened files of statistics; None if the recipe needs no data or none were given.
    pub statistics: Option<Statistics>,
    /// Whether hidden states (the activations between layers, of all windows) are kept on disk instead of in memory. [`Plan::fit`] sets it.
    pub spill: bool,
    /// The number of calibration windows (for an encoder, lines), and the maximum number of tokens of each. With a text or with files of statistics
    /// from [`Plan::gather`] these are the windows that are used, otherwise those of the [`Options`].
    pub windows: [usize; 2],
    /// The tokens of the windows of the calibration text.
    tokens: Option<Tokens>,
}

impl Plan {
    /// Plans the compression of `model` by `recipe`, from the headers of its weight files and its configuration; no weights are read. `options` has
    /// the calibration data, which is read if the recipe needs some. `kinds` has the kinds of stages and operators, and `cx` the seed and the
    /// listener for warnings. Warns if no rule matches a matrix, if a rule that has a line in a recipe file matches none, and if the text has fewer
    /// windows than asked for.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if the recipe is invalid, if [`Options::ctx`] or [`Options::windows`] is out of range, if the network has no matrices that
    /// a rotation or a smoothing of the recipe can change, or if the recipe has both. Also if it has one of them and the data is other than a text
    /// with [sequential](recipe::Statistics::Sequential) statistics.
    ///
    /// An [`Error::Missing`] or [`Error::Unsupported`] if the model has no `config.json` or an unknown architecture (unless [`Options::generic`]), or
    /// if a method needs data of a matrix whose inputs cannot be observed. An [`Error::Tensor`] with the name of the tensor if a method cannot store
    /// a matrix of its shape. An [`Error::Io`], [`Error::Format`] or [`Error::Limit`] if the text, the tokenizer or the statistics cannot be read,
    /// are invalid, or are of another model.
    pub fn new(model: &Model, recipe: Recipe, options: &Options, kinds: &Kinds, cx: &Context) -> Result<Self> {
        recipe.check(&kinds.stages)?;
        let seed = cx.seed;
        let network = match (model.config(), options.generic) {
            (Some(_), false) => Some(Architecture::of(model)?),
            (None, false) => {
                let place = format!("{} (--generic takes matrices by name)", model.path().display());
                return Err(Error::Missing { name: "config.json".into(), place });
            }
            (_, true) => None,
        };
        if let Some(network) = &network {
            network.check_shapes(model)?;
        }
        let tied = network.as_ref().is_some_and(Architecture::tied);
        let rotation = rewrite::of_network(&recipe, network.as_ref(), kinds)?;
        let sites = network.as_ref().map(Architecture::sites).unwrap_or_default();
        let roles = Roles::new(network.as_ref(), &sites);
        let smoothings = rewrite::smoothings(&recipe, &sites, &roles, kinds)?;
        if rotation.is_some() && !smoothings.is_empty() {
            let rule = "it excludes stages of `transform`: a rotation already spreads outliers over all features";
            return Err(ParamError::new("network", "given", rule).into());
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
        let mut matched = vec![false; recipe.rules.len()];
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
            let rule = if is_float && t.shape.len() == 2 { recipe.rule(&t.name, roles.of(&t.name)) } else { None };
            if is_float && t.shape.len() == 2 {
                for (seen, rule) in matched.iter_mut().zip(&recipe.rules) {
                    *seen |= rule.matches(&t.name, roles.of(&t.name));
                }
            }
            let original = stored.filter(|d| d.is_weight()).unwrap_or(DType::F32);
            let (action, tensors) = if is_float && let [rows, cols] = t.shape[..] {
                let method = match rule {
                    Some((_, rule)) => {
                        let site = site_of.get(t.name.as_str()).copied();
                        let own = [rule.stages.as_slice()];
                        let of_site = site.map(|s| recipe.stages_of(s, &roles));
                        let target = Target {
                            weight: &t.name,
                            dtype: original,
                            site,
                            heads: heads_of(network.as_ref(), &t.name),
                            rules: of_site.as_deref().unwrap_or(&own),
                            own: site.and_then(|s| s.consumers.iter().position(|c| c.weight == t.name)).unwrap_or(0),
                            network: &recipe.network,
                            kinds: &kinds.stages,
                        };
                        let made = assemble(&target).map_err(|e| e.in_tensor(&t.name))?;
                        if !made.pruners.is_empty() {
                            let value = "stages that remove weights".to_string();
                            return Err(Error::Unsupported { what: "compression", value }.in_tensor(&t.name));
                        }
                        made.method
                    }
                    None => Box::new(tersor_operators::Cast::new(original)?),
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
        let ctx = options.ctx.unwrap_or(max.min(512));
        if ctx < 2 || ctx > max {
            return Err(ParamError::new("ctx", ctx, format!("must be 2 to {max}, the model's maximum")).into());
        }
        if options.windows == 0 {
            return Err(ParamError::new("calib-windows", 0, "must be at least 1").into());
        }
        let mut plan = Self {
            inputs: file::inputs(model, &recipe, seed),
            recipe,
            entries,
            smoothings,
            rotation,
            seed,
            network,
            calibration: None,
            statistics: None,
            spill: false,
            windows: [options.windows, ctx],
            tokens: None,
        };
        plan.warn_of_rules(model, &matched, cx)?;
        warn_of_tokenizer(model, cx);
        if plan.needs_data() {
            plan.check_sites()?;
            plan.take_data(&options.data, model, cx)?;
        }
        Ok(plan)
    }

    /// Reads the calibration text, or opens the statistics. Errors if they cannot be used with the recipe.
    fn take_data(&mut self, data: &Data, model: &Model, cx: &Context) -> Result<()> {
        let mut upstream = self.recipe_upstream();
        let files = if let Data::Statistics(files) = data { Some(files) } else { None };
        if !self.smoothings.is_empty() && (files.is_some() || upstream == Upstream::Original) {
            let rule = "it changes the inputs of later sites, so it needs a text (--calib) and sequential statistics";
            return Err(ParamError::new("stage of `transform`", "given", rule).into());
        }
        if self.rotation.is_some() && (files.is_some() || upstream == Upstream::Original) {
            let rule = "it changes the inputs of every site, so it needs a text (--calib) and sequential statistics";
            return Err(ParamError::new("network", "given", rule).into());
        }
        if let Some(files) = files {
            if let Some(wanted @ (recipe::Statistics::Sequential | recipe::Statistics::Layer)) = self.recipe.statistics
            {
                let rule = format!(
                    "the files have statistics of the original network, and the recipe needs `{}` ones; give a text (--calib)",
                    wanted.name()
                );
                return Err(ParamError::new("stats", "given", rule).into());
            }
            let statistics = Statistics::open(files, &self.wanted())?;
            self.inputs.extend(statistics.inputs()?);
            self.windows = statistics.windows().unwrap_or(self.windows);
            self.statistics = Some(statistics);
            upstream = Upstream::Original;
        } else if let Data::Text(text) = data {
            // Read once, so that the windows and the hash are of the same content.
            let content = text.read()?.into_owned();
            self.inputs.insert("calibration text".into(), file::hash(content.as_bytes()));
            let text = text.of_content(content);
            if let Some(network) = &self.network {
                let tokens = calibrate::cut(&text, self.windows, model, network, &*cx.progress)?;
                self.windows[0] = tokens.len();
                self.tokens = Some(tokens);
            }
            let [windows, ctx] = self.windows;
            self.inputs.insert("calibration windows".into(), format!("{windows} of {ctx}"));
            self.calibration = Some(text);
        }
        let name = match upstream {
            Upstream::Original => "original",
            Upstream::CompressedLayers => "layer",
            Upstream::Compressed => "sequential",
        };
        self.inputs.insert("statistics".into(), name.into());
        Ok(())
    }

    /// Warns if no rule matches a matrix, and of each rule of a recipe file that matches none; `matched` says which rules do.
    fn warn_of_rules(&self, model: &Model, matched: &[bool], cx: &Context) -> Result<()> {
        let name = &self.recipe.name;
        if !matched.contains(&true) {
            let (result, own) = (megabytes(self.weight_bytes()?), megabytes(model.weight_bytes()));
            let what = format!("no rule of recipe `{name}` matches a matrix of the model, so nothing is compressed");
            cx.progress.warn(&format!("{what}: the result has {result}, the model {own}"));
        }
        for (i, rule) in self.recipe.rules.iter().enumerate() {
            let Some(line) = rule.line.filter(|_| !matched[i]) else { continue };
            let patterns: Vec<String> = rule.patterns.iter().map(|p| format!("`{}`", p.as_str())).collect();
            let (number, patterns) = (i + 1, patterns.join(", "));
            cx.progress.warn(&format!(
                "recipe `{name}`, line {line}: rule {number} ({patterns}) matches no matrix of the model"
            ));
        }
        Ok(())
    }

    /// Returns which weights are in front of a site (an input of linear layers) while its statistics are gathered: original ones if the recipe says
    /// so or the statistics come from files, compressed ones otherwise.
    pub(crate) fn upstream(&self) -> Upstream {
        if self.statistics.is_some() { Upstream::Original } else { self.recipe_upstream() }
    }

    fn recipe_upstream(&self) -> Upstream {
        match self.recipe.statistics {
            Some(recipe::Statistics::Original) => Upstream::Original,
            Some(recipe::Statistics::Layer) => Upstream::CompressedLayers,
            Some(recipe::Statistics::Sequential) | None => Upstream::Compressed,
        }
    }

    /// Returns what is done with NaN and infinities among the values of the tensor of `entry`, as the rule that matches it says; they are an error if
    /// no rule does.
    pub(crate) fn non_finite(&self, entry: &Entry) -> NonFinite {
        entry.rule.and_then(|r| self.recipe.rules.get(r)).map_or(NonFinite::Refuse, |r| r.non_finite)
    }

    /// Returns the [sites](Site) of the network, which are the inputs of its linear layers with the matrices that read them, in the order of
    /// execution. The list is empty with [`Options::generic`].
    pub fn sites(&self) -> Vec<Site> {
        self.network.as_ref().map(Architecture::sites).unwrap_or_default()
    }

    /// Returns whether the rotation of the network needs calibration data.
    pub(crate) fn rotation_needs_data(&self) -> bool {
        let found = |r: &dyn Rewrite| self.sites().iter().any(|s| r.needs(s).any_data());
        self.rotation.as_ref().is_some_and(|r| found(&**r))
    }

    /// Returns whether calibration data is needed to carry out the plan: for the rotation of the network, for smoothing, or for the method of some
    /// matrix.
    pub fn needs_data(&self) -> bool {
        self.needs_site_data() || self.rotation_needs_data()
    }

    /// Returns whether calibration data is needed to smooth some site, or for the method of some matrix; that for a rotation of the network does not
    /// count.
    pub(crate) fn needs_site_data(&self) -> bool {
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
            let reads = |s: &&tersor_core::Site| s.consumers.iter().any(|c| c.weight == name);
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

    /// Returns the statistics that the methods of the plan's matrices need, by site, and what these statistics depend on.
    pub(crate) fn wanted(&self) -> Wanted {
        let with_needs = self.sites().into_iter().map(|site| {
            let entries = site.consumers.iter().filter_map(|c| self.entry(&c.weight));
            let needs = entries.map(|i| self.entries[i].needs()).fold(StatNeeds::default(), StatNeeds::union);
            (site, needs)
        });
        let sites = with_needs.filter(|(_, needs)| needs.any_data()).collect();
        let [windows, ctx] = self.windows;
        Wanted { sites, windows, ctx, seed: self.seed, inputs: self.inputs.clone() }
    }

    /// Returns the index in [`entries`](Self::entries) of the tensor that is called `name` in the output; None if there is no such tensor.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok()
    }

    /// Returns one hash over [`inputs`](Self::inputs), everything that the bytes of the result depend on: BLAKE3, 64 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, hash) in &self.inputs {
            hasher.update(name.as_bytes()).update(b"\0").update(hash.as_bytes()).update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns the stored tensors of each weight file of the output: by the name of the file, then by the name of the tensor, its type and shape.
    pub fn files(&self) -> BTreeMap<String, BTreeMap<String, TensorInfo>> {
        let mut files: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
        for e in &self.entries {
            files.entry(e.file.clone()).or_default().extend(e.tensors.iter().cloned());
        }
        files
    }

    /// Returns the total length of all weight files of the output in bytes, headers included. It is exact.
    ///
    /// # Errors
    ///
    /// An [`Error::Overflow`] if a size overflows, and an [`Error::Format`] if a tensor has a name that the file format reserves.
    pub fn weight_bytes(&self) -> Result<u64> {
        self.files().values().map(|tensors| Ok(Header::canonical(tensors)?.0.file_len())).sum()
    }

    /// Returns name, shape `[rows, cols]` and stored bytes of each two-dimensional tensor of the output.
    pub(crate) fn weights(&self) -> Vec<StoredWeight> {
        let weight = |e: &Entry| Some(StoredWeight { name: e.name.clone(), shape: e.matrix()?, bytes: e.bytes() });
        self.entries.iter().filter_map(weight).collect()
    }

    /// Returns how many rows of a matrix of the shape `[rows, cols]` are compressed at a time by `method`: all of them if it needs the whole matrix,
    /// otherwise as many as have about 8 MiB in f32, in multiples of [`ROW_UNIT`](tersor_core::method::ROW_UNIT).
    pub(crate) fn block_rows([rows, cols]: [usize; 2], method: &dyn Method) -> usize {
        use tersor_core::method::ROW_UNIT;
        if method.extent() == Extent::Whole {
            return rows.max(1);
        }
        (BLOCK_BYTES / 4 / cols.max(1) / ROW_UNIT).max(1) * ROW_UNIT
    }
}

/// Warns if the model has a tokenizer that cannot be read, which the output will lack.
fn warn_of_tokenizer(model: &Model, cx: &Context) {
    match Tokenizer::json_of(model) {
        Ok(_) | Err(Error::Missing { .. }) => {}
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => cx.progress.warn(&format!("the tokenizer of the model cannot be read, so the output has none: {e}")),
    }
}

/// Returns the number of heads whose outputs are concatenated in the input of a matrix; 1 if it has another input.
fn heads_of(network: Option<&Architecture>, name: &str) -> usize {
    match network {
        Some(Architecture::Decoder(c)) if name.ends_with(".self_attn.o_proj.weight") => c.heads,
        _ => 1,
    }
}
