//! [`Fields`]: the visitor to which a stage shows its parameters.

use std::fmt;
use std::ops::RangeInclusive;

use super::{Slot, StageSpec};
use crate::{ParamError, Result, Value};

/// The description of a parameter of a stage (a step of compression, such as quantization), or of a parameter of an element of a list in a stage.
#[derive(Clone, Debug)]
pub struct Field {
    /// The name of the parameter, by which recipes set it, such as `bits`.
    pub name: &'static str,
    /// What the parameter means, in one sentence.
    pub help: &'static str,
    /// The values that the parameter may have: a type with a range, or words.
    pub kind: FieldKind,
}

/// The values that a parameter of a stage (a step of compression) may have; see [`Field`]. It is shown as a phrase such as `an integer of 2 to 8`.
#[derive(Clone, PartialEq, Debug)]
pub enum FieldKind {
    /// An integer of this range.
    Int(RangeInclusive<i64>),
    /// A finite number of this range.
    Float(RangeInclusive<f64>),
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Word(Vec<&'static str>),
    /// An integer of this range, or one of these words.
    IntOrWord(RangeInclusive<i64>, Vec<&'static str>),
    /// A finite number of this range, or one of these words.
    FloatOrWord(RangeInclusive<f64>, Vec<&'static str>),
    /// A list of finite numbers of this range.
    Floats(RangeInclusive<f64>),
    /// A list of stages (steps of compression), each of one of these slots ([`Slot`]: what a stage works on).
    Stages(Vec<Slot>),
    /// A list of tables. A table is an element with parameters of its own.
    List,
}

impl Field {
    /// Checks that `value` is of the type of this parameter and in its range, or one of its words. An integer in the range is valid for a parameter
    /// that is a floating-point number. Errors with the name of the parameter, the value and what is valid if not, and for any value if the parameter
    /// is a list.
    pub fn check(&self, value: &Value) -> Result<(), ParamError> {
        let int = |range: &RangeInclusive<i64>| matches!(value, Value::Int(n) if range.contains(n));
        let float = |range: &RangeInclusive<f64>| match value {
            Value::Float(x) => x.is_finite() && range.contains(x),
            Value::Int(n) => range.contains(&(*n as f64)),
            _ => false,
        };
        let word = |words: &[&str]| matches!(value, Value::Text(t) if words.contains(&t.as_str()));
        let valid = match &self.kind {
            FieldKind::Int(range) => int(range),
            FieldKind::Float(range) => float(range),
            FieldKind::Flag => matches!(value, Value::Bool(_)),
            FieldKind::Word(words) => word(words),
            FieldKind::IntOrWord(range, words) => int(range) || word(words),
            FieldKind::FloatOrWord(range, words) => float(range) || word(words),
            FieldKind::Floats(_) | FieldKind::Stages(_) | FieldKind::List => false,
        };
        let shown = match value {
            Value::Bool(v) => v.to_string(),
            Value::Int(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Text(v) => format!("`{v}`"),
        };
        if valid { Ok(()) } else { Err(ParamError::new(self.name, shown, format!("must be {}", self.kind))) }
    }
}

/// Shows which values are valid, as a phrase such as `an integer of 2 to 8`.
impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let int = |r: &RangeInclusive<i64>| match *r.end() {
            i64::MAX => format!("an integer of at least {}", r.start()),
            max if max == *r.start() => format!("{max}"),
            max => format!("an integer of {} to {max}", r.start()),
        };
        let float = |r: &RangeInclusive<f64>| match (*r.start(), *r.end()) {
            (f64::MIN_POSITIVE, f64::MAX) => "a number above 0".to_string(),
            (f64::MIN_POSITIVE, max) => format!("a number above 0 and at most {max}"),
            (min, f64::MAX) => format!("a number of at least {min}"),
            (min, max) => format!("a number of {min} to {max}"),
        };
        match self {
            FieldKind::Int(r) => f.write_str(&int(r)),
            FieldKind::Float(r) => f.write_str(&float(r)),
            FieldKind::Flag => f.write_str("true or false"),
            FieldKind::Word(words) => write!(f, "one of {}", words.join(", ")),
            FieldKind::IntOrWord(r, words) => write!(f, "{} or one of {}", int(r), words.join(", ")),
            FieldKind::FloatOrWord(r, words) => write!(f, "{} or one of {}", float(r), words.join(", ")),
            FieldKind::Floats(r) => write!(f, "a list of numbers, each {}", float(r)),
            FieldKind::Stages(_) => f.write_str("a list of stages"),
            FieldKind::List => f.write_str("a list of tables"),
        }
    }
}

/// A type with parameters that it shows to a visitor ([`Fields`], a parser or printer of parameters), such as an element of a list that is a
/// parameter of a stage.
pub trait HasFields {
    /// Shows every parameter to the visitor `f`, in the order in which they are printed; `f` reads the value of a parameter or replaces it. Errors as
    /// `f` does, which refuses values that are out of range.
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()>;
}

/// A parameter of a stage (a step of compression) that is a list of tables, which are elements with parameters of their own. A visitor ([`Fields`])
/// sets the length and visits the parameters of each element. `Vec<T>` implements it if `T` implements [`HasFields`] and `Default`.
pub trait List {
    /// Returns the number of elements.
    fn len(&self) -> usize;
    /// Makes the list `len` elements long: removes elements at the end, or adds elements with default parameters there. It cannot fail.
    fn resize(&mut self, len: usize);
    /// Shows the parameters of the element of index `index`, counted from 0, to the visitor `f`. Errors as `f` does. The index must be below the
    /// length: the list may panic otherwise, as `Vec` does.
    fn fields(&mut self, index: usize, f: &mut dyn Fields) -> Result<()>;
    /// Returns whether the list has no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: HasFields + Default> List for Vec<T> {
    fn len(&self) -> usize {
        self.len()
    }
    fn resize(&mut self, len: usize) {
        self.resize_with(len, T::default);
    }
    fn fields(&mut self, index: usize, f: &mut dyn Fields) -> Result<()> {
        self[index].fields(f)
    }
}

/// A visitor of the parameters of a stage (a step of compression): a parser, which replaces their values, or a printer, which reads them. A stage
/// shows its parameters to it in [`StageSpec::fields`] by the typed methods of `dyn Fields`, such as `int`. A visitor implements the methods of this
/// trait, which the typed methods call.
pub trait Fields {
    /// Visits a parameter that is a truth value, a number or a word, which `field` describes. `value` is its value, which the visitor may replace;
    /// None if it has none, which is so for optional parameters, and for a value that has no word or exceeds `i64`. Errors if the visitor refuses the
    /// parameter, for example because the value in a file is out of range.
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()>;

    /// Visits a parameter that is a list of numbers, which `_field` describes. `_value` is the list, which the visitor may replace. By default it
    /// stays as it is. Errors if the visitor refuses the list; the default cannot fail.
    fn numbers(&mut self, _field: &Field, _value: &mut Vec<f64>) -> Result<()> {
        Ok(())
    }

    /// Visits a parameter that is a list of stages (steps of compression), which `_field` describes. `_value` is the list, which the visitor may
    /// replace. By default it stays as it is. Errors if the visitor refuses the list; the default cannot fail.
    fn nested(&mut self, _field: &Field, _value: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
        Ok(())
    }

    /// Visits a parameter that is a list of tables (elements with parameters of their own), which `_field` describes. The visitor may change the
    /// length of the list `_value`, and visit the parameters of its elements. By default the list stays as it is. Errors if the visitor refuses the
    /// list or a parameter of an element; the default cannot fail.
    fn tables(&mut self, _field: &Field, _value: &mut dyn List) -> Result<()> {
        Ok(())
    }
}

impl dyn Fields + '_ {
    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is an integer. The visitor may read its value
    /// `v` or replace it. `help` says what the parameter means, in one sentence. `within` is the range of valid values, which the visitor is to
    /// check.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it leaves no value, or one
    /// that is not an integer or does not fit into `T`. A `v` that exceeds `i64` is shown as no value, so that the call errors unless the visitor
    /// sets one.
    pub fn int<T>(
        &mut self,
        name: &'static str,
        help: &'static str,
        within: RangeInclusive<i64>,
        v: &mut T,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let mut own = Some(*v);
        self.optional_int(name, help, within, &mut own)?;
        *v = own.ok_or_else(|| needed(name))?;
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is an integer or has no value (None). The
    /// visitor may read, replace or remove its value `v`. `help` says what the parameter means, in one sentence. `within` is the range of valid
    /// values, which the visitor is to check. A `v` that exceeds `i64` is shown as None, and becomes None unless the visitor sets a value.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it replaces the value by
    /// one that is not an integer or does not fit into `T`.
    pub fn optional_int<T>(
        &mut self,
        name: &'static str,
        help: &'static str,
        within: RangeInclusive<i64>,
        v: &mut Option<T>,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let mut value = v.and_then(|v| v.try_into().ok()).map(Value::Int);
        self.value(&Field { name, help, kind: FieldKind::Int(within) }, &mut value)?;
        *v = match value {
            Some(Value::Int(n)) => Some(T::try_from(n).map_err(|_| wrong(name, "a representable integer"))?),
            Some(_) => return Err(wrong(name, "an integer")),
            None => None,
        };
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a finite number. The visitor may read its
    /// value `v` or replace it. `help` says what the parameter means, in one sentence. `within` is the range of valid values, which the visitor is to
    /// check.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it removes the value, or
    /// replaces it by one that is not a number; an integer is a number.
    pub fn float(
        &mut self,
        name: &'static str,
        help: &'static str,
        within: RangeInclusive<f64>,
        v: &mut f64,
    ) -> Result<()> {
        let mut own = Some(*v);
        self.optional_float(name, help, within, &mut own)?;
        *v = own.ok_or_else(|| needed(name))?;
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a finite number or has no value (None). The
    /// visitor may read, replace or remove its value `v`. `help` says what the parameter means, in one sentence. `within` is the range of valid
    /// values, which the visitor is to check.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it replaces the value by
    /// one that is not a number; an integer is a number.
    pub fn optional_float(
        &mut self,
        name: &'static str,
        help: &'static str,
        within: RangeInclusive<f64>,
        v: &mut Option<f64>,
    ) -> Result<()> {
        let mut value = v.map(Value::Float);
        self.value(&Field { name, help, kind: FieldKind::Float(within) }, &mut value)?;
        *v = match value {
            Some(Value::Float(x)) => Some(x),
            Some(Value::Int(n)) => Some(n as f64),
            Some(_) => return Err(wrong(name, "a number")),
            None => None,
        };
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is true or false. The visitor may read its value
    /// `v` or replace it. `help` says what the parameter means, in one sentence. Errors, with `v` unchanged, if the visitor refuses the value. Errors
    /// with [`Error::Param`](crate::Error::Param) if it removes the value, or replaces it by one that is not a truth value.
    pub fn flag(&mut self, name: &'static str, help: &'static str, v: &mut bool) -> Result<()> {
        let mut value = Some(Value::Bool(*v));
        self.value(&Field { name, help, kind: FieldKind::Flag }, &mut value)?;
        match value {
            Some(Value::Bool(b)) => *v = b,
            _ => return Err(wrong(name, "true or false")),
        }
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a word in recipes. The visitor may read its
    /// value `v` or replace it. `help` says what the parameter means, in one sentence. `words` has each word with its value. If no word has the value
    /// `v`, the visitor gets no value. If the visitor leaves no value, `v` stays as it is.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it replaces the value by
    /// one that is not among the words.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        help: &'static str,
        words: &[(&'static str, T)],
        v: &mut T,
    ) -> Result<()> {
        let mut value = text_of(words, *v);
        self.value(&Field { name, help, kind: FieldKind::Word(texts(words)) }, &mut value)?;
        if let Some(value) = value {
            *v = word(name, words, &value)?;
        }
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is an integer or a word in recipes. The visitor
    /// may read its value `v` or replace it. `help` says what the parameter means, in one sentence. `within` is the range of valid integers, which
    /// the visitor is to check. `words` has each word with its value. `from` returns the value for an integer, or None if the integer is not valid;
    /// `to` returns the integer for a value, or None for a value that has a word. If the visitor leaves no value, `v` stays as it is.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it replaces the value by an
    /// integer that `from` takes for invalid, or by anything else that is not among the words.
    pub fn int_or_word<T: Copy + PartialEq>(
        &mut self,
        (name, help): (&'static str, &'static str),
        within: RangeInclusive<i64>,
        words: &[(&'static str, T)],
        (from, to): (impl Fn(i64) -> Option<T>, impl Fn(T) -> Option<i64>),
        v: &mut T,
    ) -> Result<()> {
        let mut value = text_of(words, *v).or_else(|| to(*v).map(Value::Int));
        self.value(&Field { name, help, kind: FieldKind::IntOrWord(within, texts(words)) }, &mut value)?;
        *v = match value {
            Some(Value::Int(n)) => from(n).ok_or_else(|| wrong(name, "a valid integer"))?,
            Some(value) => word(name, words, &value)?,
            None => return Ok(()),
        };
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a finite number or a word in recipes. The
    /// visitor may read its value `v` or replace it. `help` says what the parameter means, in one sentence. `within` is the range of valid numbers,
    /// which the visitor is to check. `words` has each word with its value. `from` returns the value for a number; `to` returns the number for a
    /// value, or None for a value that has a word. If the visitor leaves no value, `v` stays as it is.
    ///
    /// Errors, with `v` unchanged, if the visitor refuses the value. Errors with [`Error::Param`](crate::Error::Param) if it replaces the value by
    /// one that is neither a number nor among the words.
    pub fn float_or_word<T: Copy + PartialEq>(
        &mut self,
        (name, help): (&'static str, &'static str),
        within: RangeInclusive<f64>,
        words: &[(&'static str, T)],
        (from, to): (impl Fn(f64) -> T, impl Fn(T) -> Option<f64>),
        v: &mut T,
    ) -> Result<()> {
        let mut value = text_of(words, *v).or_else(|| to(*v).map(Value::Float));
        self.value(&Field { name, help, kind: FieldKind::FloatOrWord(within, texts(words)) }, &mut value)?;
        *v = match value {
            Some(Value::Int(n)) => from(n as f64),
            Some(Value::Float(x)) => from(x),
            Some(value) => word(name, words, &value)?,
            None => return Ok(()),
        };
        Ok(())
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a list of finite numbers. The visitor may
    /// read the list `v` or replace it. `help` says what the parameter means, in one sentence. `within` is the range of each number, which the
    /// visitor is to check. Errors if the visitor refuses the list.
    pub fn floats(
        &mut self,
        name: &'static str,
        help: &'static str,
        within: RangeInclusive<f64>,
        v: &mut Vec<f64>,
    ) -> Result<()> {
        self.numbers(&Field { name, help, kind: FieldKind::Floats(within) }, v)
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a list of other stages (steps of
    /// compression). The visitor may read the list `v` or replace it. `help` says what the parameter means, in one sentence. `slots` has the slots
    /// that these stages may have ([`Slot`]: what a stage works on), which the visitor is to check. Errors if the visitor refuses the list.
    pub fn stages(
        &mut self,
        name: &'static str,
        help: &'static str,
        slots: &[Slot],
        v: &mut Vec<Box<dyn StageSpec>>,
    ) -> Result<()> {
        self.nested(&Field { name, help, kind: FieldKind::Stages(slots.to_vec()) }, v)
    }

    /// Shows this visitor (a parser or printer of parameters) the parameter `name` of a stage, which is a list of tables (elements with parameters of
    /// their own). The visitor may read the list `v`, or change its length and its elements. `help` says what the parameter means, in one sentence.
    /// Errors if the visitor refuses the list or a parameter of an element.
    pub fn list(&mut self, name: &'static str, help: &'static str, v: &mut dyn List) -> Result<()> {
        self.tables(&Field { name, help, kind: FieldKind::List }, v)
    }
}

/// Returns the words of a parameter without their values.
fn texts<T>(words: &[(&'static str, T)]) -> Vec<&'static str> {
    words.iter().map(|(w, _)| *w).collect()
}

/// Returns the first word of the value `v`; None if no word has it.
fn text_of<T: PartialEq>(words: &[(&'static str, T)], v: T) -> Option<Value> {
    words.iter().find(|(_, t)| *t == v).map(|(w, _)| Value::Text(w.to_string()))
}

/// Returns the value of the word `value`. Errors, naming the parameter `name`, if it is not among `words`.
fn word<T: Copy>(name: &'static str, words: &[(&'static str, T)], value: &Value) -> Result<T> {
    let found = words.iter().find(|(w, _)| matches!(value, Value::Text(t) if t == w));
    found.map(|(_, t)| *t).ok_or_else(|| wrong(name, "one of its words"))
}

fn needed(name: &'static str) -> crate::Error {
    ParamError::new(name, "missing", "it must have a value").into()
}

fn wrong(name: &'static str, expected: &str) -> crate::Error {
    ParamError::new(name, "of another type", format!("it must be {expected}")).into()
}
