//! Parses recipes. Errors are bad usage; they name the file, the line, the rule, the stage, the parameter, and the nearest valid one.

use tersor_core::stages::{Field, FieldKind, Fields, List, Section, Slot, StageSpec, Stages};
use tersor_core::{Error, NonFinite, ParamError, Result, Value};

use super::node::{Data, Node};
use super::{CacheRule, Layers, Pattern, Recipe, Rule, Statistics};

/// Where in a recipe the parser is.
#[derive(Clone)]
pub(super) struct Place<'a> {
    /// The file, or the name of the recipe.
    pub file: &'a str,
    /// The path to the value: `rule 2`, `stage 1 (rtn)`.
    pub path: Vec<String>,
}

impl Place<'_> {
    fn at(&self, step: impl Into<String>) -> Self {
        let mut path = self.path.clone();
        path.push(step.into());
        Self { path, ..*self }
    }

    /// Returns the error that the value at this place, in the line `line`, breaks a rule.
    pub(super) fn refuse(&self, line: Option<usize>, rule: impl Into<String>) -> Error {
        let line = line.map(|n| format!("line {n}"));
        let all: Vec<String> =
            [self.file.to_string()].into_iter().chain(line).chain(self.path.iter().cloned()).collect();
        ParamError::new("recipe", all.join(", "), rule).into()
    }

    /// Puts the place in front of an error of a stage.
    pub(super) fn wrap(&self, line: Option<usize>, error: Error) -> Error {
        match error {
            Error::Param(e) if e.name == "recipe" => e.into(),
            other => self.refuse(line, other.to_string()),
        }
    }
}

/// Returns the sentence that `word` is unknown and which of `known` is nearest.
fn unknown<'k>(what: &str, word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let near = known.iter().min_by_key(|k| strsim::damerau_levenshtein(k, word));
    match near {
        Some(near) => format!("there is no {what} `{word}`; the nearest is `{near}` (all: {})", known.join(", ")),
        None => format!("there is no {what} `{word}`, because none is known here"),
    }
}

/// A table of the file with the names that were asked for.
struct Table<'a> {
    all: &'a [(String, Node)],
    line: Option<usize>,
    place: Place<'a>,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    fn new(node: &'a Node, place: Place<'a>) -> Result<Self> {
        match &node.data {
            Data::Table(all) => Ok(Self { all, line: node.line, place, asked: Vec::new() }),
            _ => Err(place.refuse(node.line, format!("it is {}; it must be a table", node.what()))),
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.push(key);
        self.all.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    fn text(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        let Some(node) = self.get(key) else { return Ok(None) };
        match &node.data {
            Data::Value(Value::Text(t)) => Ok(Some(t)),
            _ => Err(self
                .place
                .at(format!("`{key}`"))
                .refuse(node.line, format!("it is {}; it must be a string", node.what()))),
        }
    }

    fn list(&mut self, key: &'static str) -> Result<&'a [Node]> {
        let Some(node) = self.get(key) else { return Ok(&[]) };
        match &node.data {
            Data::List(all) => Ok(all),
            _ => Err(self
                .place
                .at(format!("`{key}`"))
                .refuse(node.line, format!("it is {}; it must be a list", node.what()))),
        }
    }

    /// Errors if the table has a key that was not asked for; `what` says what a key is.
    fn finish(self, what: &str) -> Result<()> {
        let other = self.all.iter().find(|(k, _)| !self.asked.contains(&k.as_str()));
        let Some((key, node)) = other else { return Ok(()) };
        Err(self.place.refuse(node.line, unknown(what, key, self.asked.iter().copied().filter(|k| *k != "kind"))))
    }
}

/// Sets the parameters of a stage, or of a table in a stage, from a table of the file.
struct Reader<'a, 'k> {
    table: Table<'a>,
    kinds: &'k Stages,
}

impl Fields for Reader<'_, '_> {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        let Some(node) = self.table.get(field.name) else { return Ok(()) };
        let place = self.table.place.at(format!("`{}`", field.name));
        let Data::Value(given) = &node.data else {
            return Err(place.refuse(node.line, format!("it is {}; it must be {}", node.what(), field.kind)));
        };
        if field.check(given).is_err() {
            return Err(place.refuse(node.line, format!("it is {}; it must be {}", node.what(), field.kind)));
        }
        *value = Some(given.clone());
        Ok(())
    }
    fn numbers(&mut self, field: &Field, value: &mut Vec<f64>) -> Result<()> {
        if !self.table.all.iter().any(|(k, _)| k == field.name) {
            self.table.asked.push(field.name);
            return Ok(());
        }
        let place = self.table.place.at(format!("`{}`", field.name));
        let FieldKind::Floats(range) = &field.kind else { return Ok(()) };
        let one = Field { kind: FieldKind::Float(range.clone()), ..field.clone() };
        let number = |node: &Node| match &node.data {
            Data::Value(v) if one.check(v).is_ok() => Ok(if let Value::Int(n) = v {
                *n as f64
            } else if let Value::Float(x) = v {
                *x
            } else {
                0.0
            }),
            _ => Err(place.refuse(node.line, format!("it has {}; it must be {}", node.what(), field.kind))),
        };
        *value = self.table.list(field.name)?.iter().map(number).collect::<Result<_>>()?;
        Ok(())
    }
    fn nested(&mut self, field: &Field, value: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
        if let FieldKind::Stages(slots) = &field.kind
            && self.table.all.iter().any(|(k, _)| k == field.name)
        {
            *value = stages(self.table.list(field.name)?, &self.table.place, slots, self.kinds)?;
        }
        self.table.asked.push(field.name);
        Ok(())
    }
    fn tables(&mut self, field: &Field, list: &mut dyn List) -> Result<()> {
        if !self.table.all.iter().any(|(k, _)| k == field.name) {
            self.table.asked.push(field.name);
            return Ok(());
        }
        let all = self.table.list(field.name)?;
        list.resize(all.len());
        for (i, node) in all.iter().enumerate() {
            let place = self.table.place.at(format!("element {} of `{}`", i + 1, field.name));
            let mut reader = Reader { table: Table::new(node, place.clone())?, kinds: self.kinds };
            list.fields(i, &mut reader).map_err(|e| place.wrap(node.line, e))?;
            reader.table.finish("parameter")?;
        }
        Ok(())
    }
}

/// Parses a stage that may have one of the slots `slots`; `known` are keys of its table that are no parameters.
fn stage<'a>(
    mut table: Table<'a>,
    section: Section,
    slots: &[Slot],
    kinds: &Stages,
    number: usize,
) -> Result<Box<dyn StageSpec>> {
    let place = table.place.at(format!("stage {number}"));
    let Some(kind) = table.text("kind")? else {
        return Err(place.refuse(table.line, "it has no `kind`"));
    };
    let own = || kinds.kinds().filter(|s| s.slot().section() == section && slots.contains(&s.slot()));
    let Some(found) = own().find(|s| s.kind() == kind) else {
        return Err(place.refuse(table.line, unknown("kind of stage", kind, own().map(|s| s.kind()))));
    };
    let mut stage = found.clone_stage();
    let place = table.place.at(format!("stage {number} (`{kind}`)"));
    table.place = place.clone();
    let line = table.line;
    let mut reader = Reader { table, kinds };
    stage.fields(&mut reader).map_err(|e| place.wrap(line, e))?;
    reader.table.finish("parameter")?;
    Ok(stage)
}

fn stages(nodes: &[Node], place: &Place<'_>, slots: &[Slot], kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
    let section = slots.first().map_or(Section::Rules, |s| s.section());
    let one = |(i, node): (usize, &Node)| stage(Table::new(node, place.clone())?, section, slots, kinds, i + 1);
    nodes.iter().enumerate().map(one).collect()
}

/// The slots of the stages of a rule.
const OF_RULES: [Slot; 5] = [Slot::Transform, Slot::Prune, Slot::Quantize, Slot::Repair, Slot::Activations];

fn rule(node: &Node, place: Place<'_>, kinds: &Stages) -> Result<Rule> {
    let mut table = Table::new(node, place)?;
    let refuse = |t: &Table<'_>, node: &Node, rule: String| t.place.at("`match`").refuse(node.line, rule);
    let mut patterns = Vec::new();
    let Some(matched) = table.get("match") else {
        return Err(table.place.refuse(node.line, "it has no `match`; `match = \"*\"` matches every matrix"));
    };
    let all = if let Data::List(all) = &matched.data { all.as_slice() } else { std::slice::from_ref(matched) };
    for node in all {
        let Data::Value(Value::Text(text)) = &node.data else {
            return Err(refuse(
                &table,
                node,
                format!("it has {}; it must be a string, or a list of strings", node.what()),
            ));
        };
        patterns.push(Pattern::new(text).map_err(|rule| refuse(&table, node, rule))?);
    }
    let place = table.place.clone();
    let stages = stages(table.list("stages")?, &place, &OF_RULES, kinds)?;
    let non_finite = match table.text("non_finite")? {
        None | Some("error") => NonFinite::Refuse,
        Some("zero") => NonFinite::Zero,
        Some("clamp") => NonFinite::Clamp,
        Some(other) => {
            let rule = format!("it is `{other}`; it must be error, zero or clamp");
            return Err(place.at("`non_finite`").refuse(node.line, rule));
        }
    };
    let rule = Rule { patterns, stages, non_finite, line: node.line };
    table.finish("key of a rule")?;
    Ok(rule)
}

fn cache(node: &Node, place: Place<'_>, kinds: &Stages) -> Result<CacheRule> {
    let mut table = Table::new(node, place)?;
    let text = table.text("match")?.unwrap_or("*");
    let layers = Layers::parse(text).ok_or_else(|| {
        let rule = format!("it is `{text}`; it must be `*`, `layer 3` or `layers 0-3`");
        table.place.at("`match`").refuse(node.line, rule)
    })?;
    Ok(CacheRule { layers, stage: stage(table, Section::Cache, &[Slot::Cache], kinds, 1)? })
}

/// Parses the tree of a recipe, without checking that its stages fit together.
pub(super) fn recipe(node: &Node, file: &str, kinds: &Stages) -> Result<Recipe> {
    let place = Place { file, path: Vec::new() };
    let mut table = Table::new(node, place.clone())?;
    let version = table.get("version");
    if let Some(node) = version
        && !matches!(node.data, Data::Value(Value::Int(Recipe::VERSION)))
    {
        let rule = format!("it is {}; this program reads version {}", node.what(), Recipe::VERSION);
        return Err(place.at("`version`").refuse(node.line, rule));
    }
    let name = table.text("name")?.ok_or_else(|| place.refuse(node.line, "it has no `name`"))?.to_string();
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !plain || name.starts_with('.') {
        let rule =
            format!("it is `{name}`; it must consist of letters, digits, `-`, `_` and `.`, and not begin with `.`");
        return Err(place.at("`name`").refuse(node.line, rule));
    }
    let statistics = match table.text("statistics")? {
        None => None,
        Some("sequential") => Some(Statistics::Sequential),
        Some("layer") => Some(Statistics::Layer),
        Some("original") => Some(Statistics::Original),
        Some(other) => {
            let rule = format!("it is `{other}`; it must be sequential, layer or original");
            return Err(place.at("`statistics`").refuse(node.line, rule));
        }
    };
    let network = stages(table.list("network")?, &place.at("`network`"), &[Slot::Network], kinds)?;
    let numbered = |what: &str, i: usize| place.at(format!("{what} {}", i + 1));
    let caches = table.list("cache")?.iter().enumerate();
    let cache = caches.map(|(i, node)| cache(node, numbered("cache", i), kinds)).collect::<Result<_>>()?;
    let rules = table.list("rules")?.iter().enumerate();
    let rules = rules.map(|(i, node)| rule(node, numbered("rule", i), kinds)).collect::<Result<_>>()?;
    table.finish("key of a recipe")?;
    Ok(Recipe { name, statistics, network, cache, rules })
}

/// Parses the list of caches of a recipe; `file` is its name in messages.
pub(super) fn caches(node: &Node, file: &str, kinds: &Stages) -> Result<Vec<CacheRule>> {
    let place = Place { file, path: Vec::new() };
    match &node.data {
        Data::Other("null") => Ok(Vec::new()),
        Data::List(all) => {
            all.iter().enumerate().map(|(i, node)| cache(node, place.at(format!("cache {}", i + 1)), kinds)).collect()
        }
        _ => Err(place.at("`cache`").refuse(node.line, format!("it is {}; it must be a list", node.what()))),
    }
}

/// Parses the stages of a rule; `what` is their name in messages.
pub(super) fn rule_stages(node: &Node, what: &str, kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
    let place = Place { file: what, path: Vec::new() };
    match &node.data {
        Data::List(all) => stages(all, &place, &OF_RULES, kinds),
        _ => Err(place.refuse(node.line, format!("it is {}; it must be a list of stages", node.what()))),
    }
}
