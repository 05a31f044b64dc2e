//! The tree of a recipe: read from TOML with line numbers or from JSON, and written as both.

use serde_json::{Value as Json, json};
use tersor_core::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value of a recipe file.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its line in the file, counted from 1; None if it was not read from TOML.
    pub line: Option<usize>,
    pub data: Data,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Value(Value),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
    /// A type that recipes do not have, such as a date; its name.
    Other(&'static str),
}

impl Node {
    fn new(data: Data) -> Self {
        Self { line: None, data }
    }

    pub(super) fn value(value: Value) -> Self {
        Self::new(Data::Value(value))
    }

    pub(super) fn text(text: &str) -> Self {
        Self::value(Value::Text(text.into()))
    }

    pub(super) fn list(all: impl IntoIterator<Item = Node>) -> Self {
        Self::new(Data::List(all.into_iter().collect()))
    }

    pub(super) fn table<'k>(all: impl IntoIterator<Item = (&'k str, Node)>) -> Self {
        Self::new(Data::Table(all.into_iter().map(|(k, v)| (k.to_string(), v)).collect()))
    }

    /// Parses a TOML text. Errors with the line and the message of the first fault.
    pub(super) fn from_toml(text: &str) -> Result<Self, (Option<usize>, String)> {
        let line = |at: usize| Some(text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1);
        let table = DeTable::parse(text);
        let table = table.map_err(|e| (e.span().and_then(|s| line(s.start)), e.message().to_string()))?;
        Ok(Self { line: Some(1), data: of_table(table.get_ref(), &line) })
    }

    /// Converts JSON.
    pub(super) fn from_json(json: &Json) -> Self {
        Self::new(match json {
            Json::Null => Data::Other("null"),
            Json::Bool(b) => Data::Value(Value::Bool(*b)),
            Json::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Data::Value(Value::Int(n)),
                (None, Some(x)) => Data::Value(Value::Float(x)),
                (None, None) => Data::Other("a number out of range"),
            },
            Json::String(s) => Data::Value(Value::Text(s.clone())),
            Json::Array(all) => Data::List(all.iter().map(Self::from_json).collect()),
            Json::Object(all) => Data::Table(all.iter().map(|(k, v)| (k.clone(), Self::from_json(v))).collect()),
        })
    }

    /// Returns the node as JSON.
    pub(super) fn to_json(&self) -> Json {
        match &self.data {
            Data::Value(Value::Bool(v)) => json!(v),
            Data::Value(Value::Int(v)) => json!(v),
            Data::Value(Value::Float(v)) => json!(v),
            Data::Value(Value::Text(v)) => json!(v),
            Data::List(all) => all.iter().map(Self::to_json).collect(),
            Data::Table(all) => Json::Object(all.iter().map(|(k, v)| (k.clone(), v.to_json())).collect()),
            Data::Other(_) => Json::Null,
        }
    }

    /// Returns the node as TOML on one line: `{ kind = "rtn", bits = 4 }`.
    pub(super) fn to_toml(&self) -> String {
        match &self.data {
            Data::Value(Value::Bool(v)) => v.to_string(),
            Data::Value(Value::Int(v)) => v.to_string(),
            Data::Value(Value::Float(v)) => format!("{v:?}"),
            Data::Value(Value::Text(v)) => toml::Value::String(v.clone()).to_string(),
            Data::List(all) => format!("[{}]", all.iter().map(Self::to_toml).collect::<Vec<_>>().join(", ")),
            Data::Table(all) => {
                let all: Vec<String> = all.iter().map(|(k, v)| format!("{k} = {}", v.to_toml())).collect();
                format!("{{ {} }}", all.join(", "))
            }
            Data::Other(_) => String::new(),
        }
    }

    /// Returns what the node is, for messages: its value, or `a list`.
    pub(super) fn what(&self) -> String {
        match &self.data {
            Data::Value(_) => self.to_toml(),
            Data::List(_) => "a list".into(),
            Data::Table(_) => "a table".into(),
            Data::Other(name) => (*name).into(),
        }
    }
}

fn of_table(table: &DeTable<'_>, line: &impl Fn(usize) -> Option<usize>) -> Data {
    let pairs = table.iter().map(|(key, value)| (key.span().start, key.get_ref().to_string(), of_value(value, line)));
    let mut all: Vec<(usize, String, Node)> = pairs.collect();
    // Faults are reported in the order of the file.
    all.sort_by_key(|(at, ..)| *at);
    Data::Table(all.into_iter().map(|(_, key, value)| (key, value)).collect())
}

fn of_value(value: &Spanned<DeValue<'_>>, line: &impl Fn(usize) -> Option<usize>) -> Node {
    let data = match value.get_ref() {
        DeValue::String(s) => Data::Value(Value::Text(s.to_string())),
        DeValue::Integer(n) => {
            let parsed = i64::from_str_radix(n.as_str(), n.radix());
            parsed.map_or(Data::Other("an integer out of range"), |n| Data::Value(Value::Int(n)))
        }
        DeValue::Float(x) => {
            let parsed = x.as_str().parse();
            parsed.map_or(Data::Other("a number out of range"), |x| Data::Value(Value::Float(x)))
        }
        DeValue::Boolean(b) => Data::Value(Value::Bool(*b)),
        DeValue::Datetime(_) => Data::Other("a date"),
        DeValue::Array(all) => Data::List(all.iter().map(|v| of_value(v, line)).collect()),
        DeValue::Table(table) => of_table(table, line),
    };
    Node { line: line(value.span().start), data }
}
