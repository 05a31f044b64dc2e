//! The kinds of stages that recipes may name, with their parameters.

use serde::Serialize;
use tersor_core::stages::{Field, FieldKind, Fields, List, StageSpec, Stages};
use tersor_core::{Result, Value};

use super::node::Node;

/// A kind of stage (a step of compression that recipes name, such as `gptq`) with its parameters, for tables and help texts.
#[derive(Clone, Debug, Serialize)]
pub struct KindInfo {
    /// The list of a recipe that stages of this kind belong in: `network`, `rules` or `cache`.
    pub list: &'static str,
    /// The name of what its stages work on, a [`Slot`](tersor_core::stages::Slot) such as `quantize`.
    pub slot: &'static str,
    /// The name of the kind in recipes, such as `gptq`.
    pub kind: &'static str,
    /// What the kind does, in one sentence.
    pub help: &'static str,
    /// The words by which the name of a recipe asks for the kind, such as `smooth` for `smoothquant`.
    pub words: Vec<&'static str>,
    /// The forms of the segments of a recipe's name that set its parameters, such as `g<number>` for the group size.
    pub segments: Vec<String>,
    /// Its parameters, in the order in which recipes print them.
    pub parameters: Vec<ParameterInfo>,
}

/// A parameter of a kind of stage.
#[derive(Clone, Debug, Serialize)]
pub struct ParameterInfo {
    /// The name of the parameter in recipes. For a parameter of the elements of a list it has the name of the list in front, such as
    /// `parts[].columns`.
    pub name: String,
    /// The values that the parameter may have, as a phrase such as `an integer of 2 to 8`.
    pub values: String,
    /// The default value, written as in TOML. None if the parameter has no default, and for lists of stages or tables.
    pub default: Option<String>,
    /// What the parameter means, in one sentence.
    pub help: &'static str,
}

/// Collects parameters; those of elements of a list have the name of the list in front.
#[derive(Default)]
struct Lister {
    prefix: String,
    all: Vec<ParameterInfo>,
}

impl Lister {
    fn add(&mut self, field: &Field, default: Option<String>) {
        let (name, values) = (format!("{}{}", self.prefix, field.name), field.kind.to_string());
        self.all.push(ParameterInfo { name, values, default, help: field.help });
    }
}

impl Fields for Lister {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        self.add(field, value.clone().map(|v| Node::value(v).to_toml()));
        Ok(())
    }
    fn numbers(&mut self, field: &Field, value: &mut Vec<f64>) -> Result<()> {
        self.add(field, Some(Node::list(value.iter().map(|v| Node::value(Value::Float(*v)))).to_toml()));
        Ok(())
    }
    fn nested(&mut self, field: &Field, _: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
        let FieldKind::Stages(slots) = &field.kind else { return Ok(()) };
        let slots: Vec<&str> = slots.iter().map(|s| s.name()).collect();
        self.add(field, None);
        if let Some(last) = self.all.last_mut() {
            last.values = format!("a list of stages of {}", slots.join(", "));
        }
        Ok(())
    }
    fn tables(&mut self, field: &Field, list: &mut dyn List) -> Result<()> {
        self.add(field, None);
        if list.is_empty() {
            list.resize(1);
        }
        let own = format!("{}{}[].", self.prefix, field.name);
        let prefix = std::mem::replace(&mut self.prefix, own);
        list.fields(0, self)?;
        self.prefix = prefix;
        Ok(())
    }
}

/// Returns every kind of stage in the registry `kinds` with its parameters, sorted by the slot that it works on
/// ([`Slot`](tersor_core::stages::Slot)), then by name. It cannot fail.
pub fn list(kinds: &Stages) -> Vec<KindInfo> {
    let mut all: Vec<&dyn StageSpec> = kinds.kinds().collect();
    all.sort_by_key(|s| (s.slot(), s.kind()));
    let info = |stage: &dyn StageSpec| {
        let mut lister = Lister::default();
        // This visitor refuses nothing, so that a stage has no reason to fail.
        let _ = stage.clone_stage().fields(&mut lister);
        KindInfo {
            list: stage.slot().section().name(),
            slot: stage.slot().name(),
            kind: stage.kind(),
            help: stage.help(),
            words: stage.words(),
            segments: stage.segments().iter().map(|s| s.to_string()).collect(),
            parameters: lister.all,
        }
    };
    all.into_iter().map(info).collect()
}
