//! [`OpSpec`]: the description of an operator without its tensors.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// The value of a parameter of an operator, method or configuration, as it is written to JSON: a boolean, an integer, a float or a string.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A finite float.
    Float(f64),
    /// A string.
    Text(String),
}

/// The description of an operator without its tensors: its kind (the name of a stored form), the shape of the matrix, parameters, and the
/// descriptions of the operators inside of it. Together with the tensors it is all that loading needs.
///
/// ```
/// use tersor_core::OpSpec;
/// # fn main() -> tersor_core::Result<()> {
/// let inner = OpSpec::new("dense", [8, 16]).text("dtype", "F16");
/// let spec = OpSpec::new("rotated", [8, 16]).size("power", 16).part("base", inner);
/// assert_eq!((spec.get_size("power")?, spec.depth()), (16, 2));
/// assert_eq!(spec.get_part("base")?.get_text("dtype")?, "F16");
/// assert!(spec.get_int("bits").is_err(), "there is no such parameter");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OpSpec {
    /// The kind of the operator, which is the name of a stored form, such as `grouped`. Its loader is registered under this name.
    pub kind: String,
    /// `[out_features, in_features]` of the whole matrix that the operator stores.
    pub shape: [usize; 2],
    /// The parameters of the operator by name, such as `bits`.
    pub params: BTreeMap<String, Value>,
    /// The specifications of the operators inside of this one, by name. The names of the tensors of the part `x` begin with the operator's
    /// own prefix and `.x`.
    pub parts: BTreeMap<String, OpSpec>,
}

impl OpSpec {
    /// Returns the specification of an operator of the kind `kind` (the name of a stored form) for a matrix of the shape
    /// `[out_features, in_features]`, without parameters and parts.
    pub fn new(kind: &str, shape: [usize; 2]) -> Self {
        Self { kind: kind.to_string(), shape, ..Self::default() }
    }

    /// Returns this specification with the integer parameter `name`; a parameter of the same name is replaced.
    pub fn int(mut self, name: &str, value: impl Into<i64>) -> Self {
        self.params.insert(name.to_string(), Value::Int(value.into()));
        self
    }

    /// Returns this specification with the integer parameter `name` of the value `value`, for sizes; a parameter of the same name is
    /// replaced. Sizes above `i64::MAX`, which no tensor can have, are stored as `i64::MAX`.
    pub fn size(self, name: &str, value: usize) -> Self {
        self.int(name, i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// Returns this specification with the float parameter `name`; a parameter of the same name is replaced. NaN and infinities are not
    /// refused here, but by [`OpSpec::get_float`].
    pub fn float(mut self, name: &str, value: impl Into<f64>) -> Self {
        self.params.insert(name.to_string(), Value::Float(value.into()));
        self
    }

    /// Returns this specification with the string parameter `name`; a parameter of the same name is replaced.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.params.insert(name.to_string(), Value::Text(value.to_string()));
        self
    }

    /// Returns this specification with the part `name`: an operator inside of this one, which has the specification `spec`. A part of the
    /// same name is replaced.
    pub fn part(mut self, name: &str, spec: OpSpec) -> Self {
        self.parts.insert(name.to_string(), spec);
        self
    }

    /// Returns the integer parameter `name`. Errors with [`Error::Missing`] if there is none, or it has another type.
    pub fn get_int(&self, name: &str) -> Result<i64> {
        match self.params.get(name) {
            Some(Value::Int(v)) => Ok(*v),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns the float parameter `name`, or an integer parameter as a float. Errors with [`Error::Missing`] if there is none, or it has
    /// another type or is not finite.
    pub fn get_float(&self, name: &str) -> Result<f64> {
        match self.params.get(name) {
            Some(Value::Float(v)) if v.is_finite() => Ok(*v),
            Some(Value::Int(v)) => Ok(*v as f64),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns the integer parameter `name` as a size. Errors with [`Error::Missing`] if there is none, or it has another type or is
    /// negative.
    pub fn get_size(&self, name: &str) -> Result<usize> {
        usize::try_from(self.get_int(name)?).map_err(|_| self.missing(name))
    }

    /// Returns the string parameter `name`. Errors with [`Error::Missing`] if there is none, or it has another type.
    pub fn get_text(&self, name: &str) -> Result<&str> {
        match self.params.get(name) {
            Some(Value::Text(v)) => Ok(v),
            _ => Err(self.missing(name)),
        }
    }

    /// Returns the specification of the part `name`, an operator inside of this one. Errors with [`Error::Missing`] if there is none.
    pub fn get_part(&self, name: &str) -> Result<&OpSpec> {
        self.parts.get(name).ok_or_else(|| self.missing(name))
    }

    /// Returns the number of levels of operators inside of operators: 1 for an operator without parts, 2 if its parts have none.
    pub fn depth(&self) -> usize {
        1 + self.parts.values().map(OpSpec::depth).max().unwrap_or(0)
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing { name: name.to_string(), place: format!("the specification of a `{}`", self.kind) }
    }
}
