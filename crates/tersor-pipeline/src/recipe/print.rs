//! Recipes as a tree, from which JSON and TOML are written.

use tersor_core::stages::{Field, Fields, List, StageSpec, Stages};
use tersor_core::{NonFinite, Result, Value};

use super::node::{Data, Node};
use super::{CacheRule, Recipe, Rule, Statistics};

/// Collects the parameters of a stage in their order.
struct Printer<'k> {
    all: Vec<(&'static str, Node)>,
    /// The kinds of stages, if parameters that have their default value are left out.
    kinds: Option<&'k Stages>,
}

impl Fields for Printer<'_> {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        self.all.extend(value.clone().map(|v| (field.name, Node::value(v))));
        Ok(())
    }
    fn numbers(&mut self, field: &Field, value: &mut Vec<f64>) -> Result<()> {
        self.all.push((field.name, Node::list(value.iter().map(|v| Node::value(Value::Float(*v))))));
        Ok(())
    }
    fn nested(&mut self, field: &Field, value: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
        self.all.push((field.name, stages(value, self.kinds)));
        Ok(())
    }
    fn tables(&mut self, field: &Field, list: &mut dyn List) -> Result<()> {
        let mut all = Vec::new();
        for i in 0..list.len() {
            let mut one = Printer { all: Vec::new(), kinds: self.kinds };
            list.fields(i, &mut one)?;
            all.push(Node::table(one.all));
        }
        self.all.push((field.name, Node::list(all)));
        Ok(())
    }
}

fn parameters(stage: &dyn StageSpec, kinds: Option<&Stages>) -> Vec<(&'static str, Node)> {
    let mut printer = Printer { all: Vec::new(), kinds };
    // This visitor refuses nothing, so that a stage has no reason to fail.
    let _ = stage.clone_stage().fields(&mut printer);
    printer.all
}

/// Returns the tree of a stage: its kind and its parameters. With `kinds`, parameters that have the default of the kind are left out.
pub(super) fn stage(stage: &dyn StageSpec, kinds: Option<&Stages>) -> Node {
    let default = kinds.and_then(|k| k.make_in(stage.slot().section(), stage.kind()).ok());
    let default = default.map(|d| parameters(&*d, kinds)).unwrap_or_default();
    let is_default =
        |(name, value): &(&str, Node)| default.iter().any(|(n, v)| n == name && v.to_json() == value.to_json());
    let own = parameters(stage, kinds).into_iter().filter(|p| !is_default(p));
    Node::table([("kind", Node::text(stage.kind()))].into_iter().chain(own))
}

pub(super) fn stages(all: &[Box<dyn StageSpec>], kinds: Option<&Stages>) -> Node {
    Node::list(all.iter().map(|s| stage(&**s, kinds)))
}

/// Returns one pattern as it is, several as a list.
fn patterns<'p>(all: impl ExactSizeIterator<Item = &'p str>) -> Node {
    let mut all: Vec<Node> = all.map(Node::text).collect();
    if all.len() == 1 { all.remove(0) } else { Node::list(all) }
}

fn rule(rule: &Rule, kinds: Option<&Stages>) -> Node {
    let mut all = vec![
        ("match", patterns(rule.patterns.iter().map(|p| p.text.as_str()))),
        ("stages", stages(&rule.stages, kinds)),
    ];
    let repair = match rule.non_finite {
        NonFinite::Refuse => None,
        NonFinite::Zero => Some("zero"),
        NonFinite::Clamp => Some("clamp"),
    };
    all.extend(repair.map(|word| ("non_finite", Node::text(word))));
    Node::table(all)
}

fn cache(rule: &CacheRule, kinds: Option<&Stages>) -> Node {
    let mut node = stage(&*rule.stage, kinds);
    if let Data::Table(all) = &mut node.data {
        all.insert(0, ("match".into(), Node::text(&rule.layers.to_string())));
    }
    node
}

/// Returns the tree of a recipe. With `kinds`, parameters that have the default of their kind are left out.
pub(super) fn recipe(r: &Recipe, kinds: Option<&Stages>) -> Node {
    let mut all = vec![("version", Node::value(Value::Int(Recipe::VERSION))), ("name", Node::text(&r.name))];
    all.extend(r.statistics.map(|s| ("statistics", Node::text(s.name()))));
    if !r.network.is_empty() {
        all.push(("network", stages(&r.network, kinds)));
    }
    if !r.cache.is_empty() {
        all.push(("cache", Node::list(r.cache.iter().map(|c| cache(c, kinds)))));
    }
    all.push(("rules", Node::list(r.rules.iter().map(|r| rule(r, kinds)))));
    Node::table(all)
}

impl Statistics {
    /// Returns the word of a recipe file for this choice: `sequential`, `layer` or `original`.
    pub fn name(self) -> &'static str {
        match self {
            Statistics::Sequential => "sequential",
            Statistics::Layer => "layer",
            Statistics::Original => "original",
        }
    }
}

/// Writes a recipe as TOML, with one element of each list on a line.
pub(super) fn toml(r: &Recipe, kinds: &Stages) -> String {
    let Data::Table(all) = recipe(r, Some(kinds)).data else { return String::new() };
    let mut out = String::new();
    for (key, node) in all {
        let text = match &node.data {
            Data::List(all) => {
                let lines: String = all.iter().map(|n| format!("    {},\n", n.to_toml())).collect();
                format!("[\n{lines}]")
            }
            _ => node.to_toml(),
        };
        out += &format!("{key} = {text}\n");
    }
    out
}

/// Returns whether a stage has a list of tables with stages of their own.
pub(super) fn has_parts(stage: &dyn StageSpec) -> bool {
    let is_list =
        |node: &Node| matches!(&node.data, Data::List(all) if all.iter().any(|n| matches!(n.data, Data::Table(_))));
    parameters(stage, None).iter().any(|(_, node)| is_list(node))
}
