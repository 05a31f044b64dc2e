//! [`OpSpec`]: what an operator is, without its tensors.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// A parameter of an operator, as it is written to JSON.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// A text.
    Text(String),
}

/// The description of an operator without its tensors: kind, shape, parameters, and the operators inside.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OpSpec {
    /// The name that its loader is registered under.
    pub kind: String,
    /// `[out_features, in_features]` of the whole matrix.
    pub shape: [usize; 2],
    /// Parameters by name.
    pub params: BTreeMap<String, Value>,
    /// Specifications of the operators inside; their tensors lie under `prefix.name`.
    pub parts: BTreeMap<String, OpSpec>,
}

impl OpSpec {
    /// Returns a specification without parameters and parts.
    pub fn new(kind: &str, shape: [usize; 2]) -> Self {
        Self { kind: kind.to_string(), shape, ..Self::default() }
    }

    /// Adds a whole number.
    pub fn int(mut self, name: &str, value: impl Into<i64>) -> Self {
        self.params.insert(name.to_string(), Value::Int(value.into()));
        self
    }

    /// Adds a size. Sizes above `i64::MAX`, which no tensor can have, are stored as that.
    pub fn size(self, name: &str, value: usize) -> Self {
        self.int(name, i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// Adds a number.
    pub fn float(mut self, name: &str, value: impl Into<f64>) -> Self {
        self.params.insert(name.to_string(), Value::Float(value.into()));
        self
    }

    /// Adds a text.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.params.insert(name.to_string(), Value::Text(value.to_string()));
        self
    }

    /// Adds an operator inside.
    pub fn part(mut self, name: &str, spec: OpSpec) -> Self {
        self.parts.insert(name.to_string(), spec);
        self
    }

    /// Returns a whole number. Errors if it is missing or something else.
    pub fn get_int(&self, name: &str) -> Result<i64> {
        match self.params.get(name) {
            Some(Value::Int(v)) => Ok(*v),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns a number; whole ones count. Errors if it is missing, something else, or not finite.
    pub fn get_float(&self, name: &str) -> Result<f64> {
        match self.params.get(name) {
            Some(Value::Float(v)) if v.is_finite() => Ok(*v),
            Some(Value::Int(v)) => Ok(*v as f64),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns a whole number that is a size. Errors if it is missing or negative.
    pub fn get_size(&self, name: &str) -> Result<usize> {
        usize::try_from(self.get_int(name)?).map_err(|_| self.missing(name))
    }

    /// Returns a text. Errors if it is missing or something else.
    pub fn get_text(&self, name: &str) -> Result<&str> {
        match self.params.get(name) {
            Some(Value::Text(v)) => Ok(v),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns the specification of an operator inside. Errors if it is missing.
    pub fn get_part(&self, name: &str) -> Result<&OpSpec> {
        self.parts.get(name).ok_or_else(|| self.missing(name))
    }

    /// Returns the number of levels of nested operators, this one included.
    pub fn depth(&self) -> usize {
        1 + self.parts.values().map(OpSpec::depth).max().unwrap_or(0)
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing { name: name.to_string(), place: format!("the specification of a `{}`", self.kind) }
    }
}
