//! Recipes: how each weight matrix of a network is compressed, which changes are made to the whole network before, and in which form the key-value
//! caches of a decoder are stored.
//!
//! A recipe consists of *stages*, which are steps of compression with their parameters, such as smoothing, rotation or quantization
//! ([`StageSpec`]). A *rule* says which stages compress the matrices that its patterns match. A recipe is a TOML
//! file, or a name such as `w4-g128-gptq` that stands for one:
//!
//! ```toml
//! version = 1
//! name = "example"
//! network = [{ kind = "rotate", by = "hadamard" }]
//! cache = [{ match = "*", kind = "int", bits = 4, keys = "hadamard" }]
//! rules = [
//!     { match = ["@embedding", "@head"], stages = [{ kind = "rtn", bits = 8 }] },
//!     { match = "@linear", stages = [{ kind = "gptq", bits = 4, group = 128 }, { kind = "lqer", rank = 32 }] },
//! ]
//! ```
//!
//! This module knows no kind of stage by itself. Its functions take a registry ([`Stages`]) of the kinds that a recipe may name.

mod list;
mod name;
mod node;
mod parse;
mod pattern;
mod print;
mod roles;

use std::path::Path;

use serde_json::Value as Json;
use tersor_core::stages::{StageSpec, Stages, Target, assemble};
use tersor_core::{Error, NonFinite, ParamError, Result, Rewrite, Role, Site};
use tersor_formats::Content;

pub use list::{KindInfo, ParameterInfo, list};
use node::Node;
use parse::Place;
pub use pattern::{Layers, Pattern};
pub(crate) use roles::HEAD;
pub use roles::Roles;

/// Which weights compute the calibration inputs of a [`Site`] (an input of linear layers, with the matrices that read it): the weights of all layers
/// and sites in front of it are either compressed ones or original ones while the statistics of its inputs are gathered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statistics {
    /// The matrices in front of the site are the compressed ones, so that each site is calibrated on the errors of those before it.
    Sequential,
    /// The matrices of the layers in front of the site's own are the compressed ones, those of its own layer the original ones: all sites of a layer
    /// are observed in one pass.
    Layer,
    /// The matrices in front of the site are those of the original network.
    Original,
}

/// A recipe: rules with the stages (steps such as smoothing or quantization) that compress the matrices of a network, and settings of the whole
/// network. The first rule that matches a matrix applies to it. A matrix that no rule matches is stored with its original values in its own float
/// type (block-quantized types of GGUF in f32). Two recipes are equal if their [JSON](Self::to_json) is.
#[derive(Clone)]
pub struct Recipe {
    /// The name of the recipe, for tables and directories. In a file it consists of ASCII letters, digits, `-`, `_` and `.`, and does not begin with
    /// `.`.
    pub name: String,
    /// Which weights are in front of a site (an input of linear layers) while its statistics are gathered. None for the usual choice:
    /// [`Statistics::Original`] if the statistics come from files, [`Statistics::Sequential`] otherwise.
    pub statistics: Option<Statistics>,
    /// The stages that change the whole network before anything is compressed, such as a rotation, in order.
    pub network: Vec<Box<dyn StageSpec>>,
    /// The forms of the key-value caches. The first one that matches a layer applies to it; a layer that none matches has an f32 cache.
    pub cache: Vec<CacheRule>,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// A rule of a recipe: which matrices it is for, and the stages (steps such as smoothing or quantization) that compress them.
#[derive(Clone)]
pub struct Rule {
    /// The rule is for each matrix that at least one of these patterns matches.
    pub patterns: Vec<Pattern>,
    /// The stages that compress a matrix, in the order of their slots: smoothing, pruning, quantization, correction, activations
    /// ([`Slot`](tersor_core::stages::Slot)).
    pub stages: Vec<Box<dyn StageSpec>>,
    /// What is done with NaN and infinities among the weights: they are an error, or replaced.
    pub non_finite: NonFinite,
    /// The line of the recipe file on which the rule begins, counted from 1. None for a rule that was not read from a TOML text. A
    /// [`Plan`](crate::Plan) warns of a rule that has a line and matches no matrix.
    pub line: Option<usize>,
}

/// The form in which the key-value caches of some layers of a decoder are stored.
#[derive(Clone)]
pub struct CacheRule {
    /// The layers that the form is for.
    pub layers: Layers,
    /// The stage that stores keys and values, of the slot [`Slot::Cache`](tersor_core::stages::Slot::Cache), with its parameters such as the number
    /// of bits.
    pub stage: Box<dyn StageSpec>,
}

impl Recipe {
    /// The version of the recipe format that this crate reads and writes, the key `version` of a file.
    pub const VERSION: i64 = 1;

    /// Returns the recipe that the TOML file at the path `name` holds, if `name` ends in `.toml` or there is a file of this name; otherwise the
    /// recipe that `name` stands for, as [`from_name`](Self::from_name) does. `kinds` has the kinds of stages that the recipe may name.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if the file is not a text in UTF-8, if the recipe is invalid, or if the name stands for no recipe. An [`Error::Io`] if the
    /// file cannot be read.
    pub fn find(name: &str, kinds: &Stages) -> Result<Self> {
        let path = Path::new(name);
        if name.ends_with(".toml") || path.is_file() {
            let refuse = |content: Content| {
                ParamError::new("recipe", name, format!("it is {content}, where a recipe in TOML is expected"))
            };
            if path.is_dir() {
                return Err(refuse(Content::Directory).into());
            }
            let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            let text = String::from_utf8(text).map_err(|e| refuse(Content::of(e.as_bytes())))?;
            return Self::from_toml(&text, name, kinds);
        }
        Self::from_name(name, kinds)
    }

    /// Parses the text of a recipe in TOML, and checks it as [`check`](Self::check) does. `file` is what error messages call the recipe, such as the
    /// path of its file. `kinds` has the kinds of stages that it may name.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `recipe` if the text is no TOML, has an unknown key, kind of stage or parameter, or a value out of range,
    /// or if stages do not fit together. The message has `file`, the line, the rule, the stage and the parameter.
    pub fn from_toml(text: &str, file: &str, kinds: &Stages) -> Result<Self> {
        let place = Place { file, path: Vec::new() };
        let node = Node::from_toml(text).map_err(|(line, message)| place.refuse(line, message))?;
        Self::of(&node, file, kinds)
    }

    /// Parses a recipe from the JSON that [`to_json`](Self::to_json) returns, and checks it as [`check`](Self::check) does. `file` is what error
    /// messages call the recipe. `kinds` has the kinds of stages that it may name. Parameters that the JSON lacks have their defaults.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `recipe`, as [`from_toml`](Self::from_toml) returns it but without lines, if the recipe is invalid.
    pub fn from_json(json: &Json, file: &str, kinds: &Stages) -> Result<Self> {
        Self::of(&Node::from_json(json), file, kinds)
    }

    fn of(node: &Node, file: &str, kinds: &Stages) -> Result<Self> {
        let recipe = parse::recipe(node, file, kinds)?;
        recipe.check_in(file, kinds)?;
        Ok(recipe)
    }

    /// Returns the recipe in JSON, with all parameters of every stage that have a value. The keys are those of a recipe file. The lines of rules are
    /// lost.
    pub fn to_json(&self) -> Json {
        print::recipe(self, None).to_json()
    }

    /// Returns the recipe in TOML, with one element of each list on a line. Parameters that have the default of their kind in `kinds` are left out.
    /// [`from_toml`](Self::from_toml) reads the text back into an equal recipe.
    pub fn to_toml(&self, kinds: &Stages) -> String {
        print::toml(self, kinds)
    }

    /// Checks each stage of the recipe, and that the stages of each rule make one method of compression. Parsing and [`from_name`](Self::from_name)
    /// do this already; it is for a recipe that was made or changed in a program. `kinds` has the kinds of stages that stages may make in turn. What
    /// depends on a model, such as a matrix that is too narrow for a method, is checked by [`Plan::new`](crate::Plan::new).
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `recipe`, with the numbers of the rule and of the stage (from 1), if parameters of a stage contradict
    /// each other, if the stages of a rule are out of the order of their slots, or if not exactly one of them makes the stored form of the weights.
    pub fn check(&self, kinds: &Stages) -> Result<()> {
        self.check_in(&self.name, kinds)
    }

    fn check_in(&self, file: &str, kinds: &Stages) -> Result<()> {
        let place = |path: Vec<String>| Place { file, path };
        let of_list = |stage: &dyn StageSpec, what: String| {
            stage.parts(&Target::none(kinds)).map(drop).map_err(|e| place(vec![what]).wrap(None, e))
        };
        for (i, stage) in self.network.iter().enumerate() {
            of_list(&**stage, format!("`network`, stage {} (`{}`)", i + 1, stage.kind()))?;
        }
        for (i, cache) in self.cache.iter().enumerate() {
            of_list(&*cache.stage, format!("cache {} (`{}`)", i + 1, cache.stage.kind()))?;
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let rules: [&[Box<dyn StageSpec>]; 1] = [&rule.stages];
            let at = Target { rules: &rules, network: &self.network, ..Target::none(kinds) };
            for (j, stage) in rule.stages.iter().enumerate() {
                let what = vec![format!("rule {}", i + 1), format!("stage {} (`{}`)", j + 1, stage.kind())];
                stage.parts(&at).map_err(|e| place(what).wrap(None, e))?;
            }
            assemble(&at).map_err(|e| place(vec![format!("rule {}", i + 1)]).wrap(None, e))?;
        }
        Ok(())
    }

    /// Returns the first rule that matches the matrix of the tensor name `tensor`, with its index in [`rules`](Self::rules); None if no rule matches.
    /// `roles` has what the matrix computes, such as queries; a tied embedding, which is the output head as well, has two roles.
    pub fn rule(&self, tensor: &str, roles: &[Role]) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, r)| r.matches(tensor, roles))
    }

    /// Returns, for each matrix that reads the input of `site`, in the order of [`Site::consumers`], the stages of the rule that applies to it. The
    /// list is empty for a matrix that no rule matches. `roles` has what each matrix of the network computes.
    pub fn stages_of(&self, site: &Site, roles: &Roles) -> Vec<&[Box<dyn StageSpec>]> {
        let rule = |weight: &str| self.rule(weight, roles.of(weight)).map_or(&[][..], |(_, r)| &r.stages);
        site.consumers.iter().map(|c| rule(&c.weight)).collect()
    }

    /// Returns the changes of the whole network that the stages of [`network`](Self::network) make, in order. `kinds` has the kinds of stages that
    /// stages may make in turn.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if parameters of a stage are invalid.
    pub(crate) fn network_rewrites(&self, kinds: &Stages) -> Result<Vec<Box<dyn Rewrite>>> {
        let mut all = Vec::new();
        for stage in &self.network {
            for part in stage.parts(&Target::none(kinds))? {
                if let tersor_core::stages::Part::Rewrite(rewrite) = part {
                    all.push(rewrite);
                }
            }
        }
        Ok(all)
    }
}

/// Returns the stages of a rule in JSON, a list of tables with all parameters that have a value, for [`stages_from_json`].
pub(crate) fn stages_json(stages: &[Box<dyn StageSpec>]) -> Json {
    print::stages(stages, None).to_json()
}

/// Parses the stages of a rule from the JSON that [`stages_json`] returns. `what` is what error messages call the stages. `kinds` has the kinds of
/// stages that may occur.
///
/// # Errors
///
/// An [`Error::Param`] of the parameter `recipe` if the JSON is no list, or if a stage is invalid.
pub(crate) fn stages_from_json(json: &Json, what: &str, kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
    parse::rule_stages(&Node::from_json(json), what, kinds)
}

/// Returns a stage on one line, as the TOML table of a recipe file with all its parameters that have a value: `{ kind = "rtn", bits = 4 }`.
pub fn stage_text(stage: &dyn StageSpec) -> String {
    print::stage(stage, None).to_toml()
}

impl Rule {
    /// Returns whether at least one pattern of the rule matches the matrix of the tensor name `tensor`. `roles` has what the matrix computes, such as
    /// queries.
    pub fn matches(&self, tensor: &str, roles: &[Role]) -> bool {
        self.patterns.iter().any(|p| p.matches(tensor, roles))
    }

    /// Returns whether a stage of the rule has parts with stages of their own, such as one that splits the columns of a matrix into parts.
    pub(crate) fn has_parts(&self) -> bool {
        self.stages.iter().any(|s| print::has_parts(&**s))
    }

    /// Returns the rule that compresses the matrices that at least one of `patterns` matches by `stages`. Each pattern is a role or a name, as
    /// [`Pattern::new`] takes them. NaN and infinities are an error ([`NonFinite::Refuse`]), and the rule has no line. The stages are not checked;
    /// see [`Recipe::check`].
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `match` if a pattern is invalid.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>, stages: Vec<Box<dyn StageSpec>>) -> Result<Self> {
        let pattern = |p: &str| Pattern::new(p).map_err(|rule| ParamError::new("match", format!("`{p}`"), rule).into());
        Ok(Self {
            patterns: patterns.into_iter().map(pattern).collect::<Result<_>>()?,
            stages,
            non_finite: NonFinite::Refuse,
            line: None,
        })
    }
}

impl CacheRule {
    /// Parses the list `cache` of a recipe from the JSON that [`Recipe::to_json`] returns; null stands for an empty list. `file` is what error
    /// messages call the recipe. `kinds` has the kinds of stages that the list may name. The stages are not checked further; see [`Recipe::check`].
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `recipe` if the JSON is no list, or if a pattern of layers, a kind of cache or a parameter is invalid.
    pub fn list(json: &Json, file: &str, kinds: &Stages) -> Result<Vec<Self>> {
        parse::caches(&Node::from_json(json), file, kinds)
    }
}

/// Recipes are equal if their [JSON](Recipe::to_json) is, so that the lines of rules do not matter.
impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.to_json())
    }
}
