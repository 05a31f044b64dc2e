//! Recipes: which stages compress each matrix of a network, what changes the whole network before, and how its caches are stored.
//!
//! A recipe is a TOML file, or a name such as `w4-g128-gptq` that stands for one:
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
//! This module knows no kind of stage: it parses, prints and checks those of a registry.

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
pub use roles::{HEAD, Roles};

/// Which weights are upstream of a site (an input, and the matrices that read it) while its statistics are gathered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statistics {
    /// The compressed weights of all sites before it.
    Sequential,
    /// The weights of the original network.
    Original,
}

/// A recipe: the stages (steps) that compress the matrices of a network, and settings of the whole network. The first rule that matches a
/// matrix applies; a matrix that no rule matches is not compressed.
#[derive(Clone)]
pub struct Recipe {
    /// The name of the recipe, for tables and directories: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Which weights are upstream of a site while its statistics are gathered; None for the usual choice, which is sequential unless the
    /// statistics come from files.
    pub statistics: Option<Statistics>,
    /// The changes of the whole network before anything is compressed, in order.
    pub network: Vec<Box<dyn StageSpec>>,
    /// The forms of the key-value caches. The first that matches a layer applies; a layer that none matches has an f32 cache.
    pub cache: Vec<CacheRule>,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// A rule of a recipe: which matrices it is for, and the stages that compress them.
#[derive(Clone)]
pub struct Rule {
    /// The rule is for a matrix that at least one of these matches.
    pub patterns: Vec<Pattern>,
    /// The stages that compress a matrix, in order.
    pub stages: Vec<Box<dyn StageSpec>>,
    /// What is done with NaN and infinities among the weights.
    pub non_finite: NonFinite,
    /// The line of the recipe file on which the rule begins, counted from 1; None for a rule that was not read from a TOML text. Plans warn of rules with
    /// a line that match nothing.
    pub line: Option<usize>,
}

/// The form of the key-value caches of some layers.
#[derive(Clone)]
pub struct CacheRule {
    /// The layers that it is for.
    pub layers: Layers,
    /// The stage that stores keys and values.
    pub stage: Box<dyn StageSpec>,
}

impl Recipe {
    /// The version of the recipe format that this crate reads and writes.
    pub const VERSION: i64 = 1;

    /// Returns the recipe that `name` stands for, or that the TOML file `name` holds. `kinds` has the kinds of stages that it may name.
    /// Errors (bad usage) if there is neither, or if the recipe is invalid; errors if the file cannot be read.
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

    /// Parses a recipe in TOML. `file` is its name in messages. Errors (bad usage), naming line, rule, stage and parameter, if it is
    /// invalid.
    pub fn from_toml(text: &str, file: &str, kinds: &Stages) -> Result<Self> {
        let place = Place { file, path: Vec::new() };
        let node = Node::from_toml(text).map_err(|(line, message)| place.refuse(line, message))?;
        Self::of(&node, file, kinds)
    }

    /// Parses a recipe in the form of [`Recipe::to_json`]. `file` is its name in messages. Errors (bad usage) if it is invalid.
    pub fn from_json(json: &Json, file: &str, kinds: &Stages) -> Result<Self> {
        Self::of(&Node::from_json(json), file, kinds)
    }

    fn of(node: &Node, file: &str, kinds: &Stages) -> Result<Self> {
        let recipe = parse::recipe(node, file, kinds)?;
        recipe.check_in(file, kinds)?;
        Ok(recipe)
    }

    /// Returns the recipe in JSON, with all parameters of every stage.
    pub fn to_json(&self) -> Json {
        print::recipe(self, None).to_json()
    }

    /// Returns the recipe in TOML. Parameters that have the default of their kind in `kinds` are left out.
    pub fn to_toml(&self, kinds: &Stages) -> String {
        print::toml(self, kinds)
    }

    /// Errors (bad usage), naming rule and stage, if stages contradict each other or do not fit together.
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

    /// Returns the first rule that matches the matrix `tensor`, and its index; None if no rule matches. `roles` says what the matrix
    /// computes; a tied embedding, which is the output head as well, has two roles.
    pub fn rule(&self, tensor: &str, roles: &[Role]) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, r)| r.matches(tensor, roles))
    }

    /// Returns the stages of each matrix that reads the site `site` (an input that matrices share), in the order of its consumers; none for a matrix
    /// that no rule matches. `roles` has what each matrix computes.
    pub fn stages_of(&self, site: &Site, roles: &Roles) -> Vec<&[Box<dyn StageSpec>]> {
        let rule = |weight: &str| self.rule(weight, roles.of(weight)).map_or(&[][..], |(_, r)| &r.stages);
        site.consumers.iter().map(|c| rule(&c.weight)).collect()
    }

    /// Returns the changes of the whole network before anything is compressed, in order. Errors (bad usage) if a stage is invalid.
    pub fn network_rewrites(&self, kinds: &Stages) -> Result<Vec<Box<dyn Rewrite>>> {
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

/// Returns stages in JSON, with all their parameters, for [`stages_from_json`].
pub fn stages_json(stages: &[Box<dyn StageSpec>]) -> Json {
    print::stages(stages, None).to_json()
}

/// Parses the stages of a rule in the form of [`stages_json`]; `what` is their name in messages. Errors (bad usage) if they are invalid.
pub fn stages_from_json(json: &Json, what: &str, kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
    parse::rule_stages(&Node::from_json(json), what, kinds)
}

/// Returns a stage on one line, as a TOML table with all its parameters.
pub fn stage_text(stage: &dyn StageSpec) -> String {
    print::stage(stage, None).to_toml()
}

impl Rule {
    /// Returns whether a pattern of the rule matches the matrix `tensor`. `roles` says what the matrix computes.
    pub fn matches(&self, tensor: &str, roles: &[Role]) -> bool {
        self.patterns.iter().any(|p| p.matches(tensor, roles))
    }

    /// Returns whether a stage of the rule has parts with stages of their own.
    pub fn has_parts(&self) -> bool {
        self.stages.iter().any(|s| print::has_parts(&**s))
    }

    /// Returns the rule of the stages `stages` for the matrices that `patterns` match. Errors (bad usage) if a pattern is invalid.
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
    /// Parses the list `cache` of a recipe in the form of [`Recipe::to_json`]; null stands for an empty list. `file` is its name in messages. Errors
    /// (bad usage) if it is invalid.
    pub fn list(json: &Json, file: &str, kinds: &Stages) -> Result<Vec<Self>> {
        parse::caches(&Node::from_json(json), file, kinds)
    }
}

/// Recipes are equal if their [JSON](Recipe::to_json) is.
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
