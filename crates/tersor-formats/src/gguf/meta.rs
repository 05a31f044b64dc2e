//! GGUF metadata: typed values by key, read within limits.

use crate::ReadAt;
use std::collections::BTreeMap;
use std::ops::Range;
use tersor_core::{Error, Limits, Result};

/// One value of GGUF metadata: an unsigned integer, a signed integer, a float, a boolean, a string, or a list of values, which may be lists
/// again. Integers and floats are widened to 64 bits, whatever their stored width. There is no default.
#[derive(Clone, PartialEq, Debug)]
pub enum MetaValue {
    /// An unsigned integer of 8 to 64 bits.
    UInt(u64),
    /// A signed integer of 8 to 64 bits.
    Int(i64),
    /// A float of 32 or 64 bits.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A UTF-8 string.
    Text(String),
    /// A list of values of one type.
    Array(Vec<MetaValue>),
}

/// The metadata of a GGUF file: its values by key. The methods read the value of one key as one type.
///
/// ```
/// use tersor_formats::gguf::{Meta, MetaValue};
/// let meta = Meta([("llama.block_count".to_string(), MetaValue::UInt(2))].into());
/// assert_eq!(meta.uint("llama.block_count"), Some(2));
/// assert_eq!(meta.text("llama.block_count"), None);
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Meta(pub BTreeMap<String, MetaValue>);

impl Meta {
    /// Returns the value of `key` as an unsigned integer; a signed integer is converted. None if the key is missing, its value is no
    /// integer, or it is negative.
    pub fn uint(&self, key: &str) -> Option<u64> {
        match self.0.get(key)? {
            MetaValue::UInt(v) => Some(*v),
            MetaValue::Int(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    /// Returns the value of `key` as a float; an integer is converted, rounded if it has more than 53 bits. None if the key is missing or
    /// its value is no number.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            MetaValue::Float(v) => Some(*v),
            MetaValue::UInt(v) => Some(*v as f64),
            MetaValue::Int(v) => Some(*v as f64),
            _ => None,
        }
    }

    /// Returns the value of `key` as a string. None if the key is missing or its value is no string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            MetaValue::Text(v) => Some(v),
            _ => None,
        }
    }

    /// Returns the value of `key` as a boolean. None if the key is missing or its value is no boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.0.get(key)? {
            MetaValue::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// Returns the elements of the list that is the value of `key`. None if the key is missing or its value is no list.
    pub fn array(&self, key: &str) -> Option<&[MetaValue]> {
        match self.0.get(key)? {
            MetaValue::Array(v) => Some(v),
            _ => None,
        }
    }
}

/// Reads forward through a file, a buffer at a time.
pub(super) struct Cursor<'a> {
    file: &'a dyn ReadAt,
    limits: &'a Limits,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    start: u64,
    /// Index in the buffer of the next byte.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a dyn ReadAt, limits: &'a Limits) -> Self {
        Self { file, limits, buffer: Vec::new(), start: 0, at: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    pub(super) fn bad(&self, what: impl Into<String>) -> Error {
        Error::format(self.file.name(), format!("{} (at byte {})", what.into(), self.position()))
    }

    fn remaining(&self) -> u64 {
        self.file.len() - self.position()
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.at < n {
            if n as u64 > self.remaining() {
                return Err(self.bad(format!("the file ends where {n} more bytes are needed")));
            }
            self.start = self.position();
            self.at = 0;
            let want = (self.file.len() - self.start).min(n.max(1 << 16) as u64) as usize;
            self.buffer.resize(want, 0);
            self.file.read_at(self.start, &mut self.buffer)?;
        }
        self.at += n;
        Ok(&self.buffer[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn string(&mut self) -> Result<String> {
        let n = self.u64()?;
        Limits::check("length of a GGUF string", n, self.limits.string_bytes)?;
        if n > self.remaining() {
            return Err(self.bad(format!("a string of {n} bytes reaches beyond the end of the file")));
        }
        let bytes = self.take(n as usize)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.bad("a string is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: u64) -> Result<MetaValue> {
        Ok(match kind {
            0 => MetaValue::UInt(u64::from(self.array::<1>()?[0])),
            1 => MetaValue::Int(i64::from(self.array::<1>()?[0] as i8)),
            2 => MetaValue::UInt(u64::from(u16::from_le_bytes(self.array()?))),
            3 => MetaValue::Int(i64::from(i16::from_le_bytes(self.array()?))),
            4 => MetaValue::UInt(u64::from(self.u32()?)),
            5 => MetaValue::Int(i64::from(i32::from_le_bytes(self.array()?))),
            6 => MetaValue::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()?[0] {
                0 => MetaValue::Bool(false),
                1 => MetaValue::Bool(true),
                other => return Err(self.bad(format!("a boolean is stored as {other}, not as 0 or 1"))),
            },
            8 => MetaValue::Text(self.string()?),
            9 => {
                Limits::check("nesting of GGUF arrays", depth + 1, self.limits.nesting)?;
                let (kind, n) = (self.u32()?, self.u64()?);
                Limits::check("entries of a GGUF array", n, self.limits.array_entries)?;
                // Every entry takes at least one byte, so the count is checked against the file before anything is allocated.
                if n > self.remaining() {
                    return Err(self.bad(format!("an array of {n} entries reaches beyond the end of the file")));
                }
                let mut items = Vec::new();
                for _ in 0..n {
                    items.push(self.value(kind, depth + 1)?);
                }
                MetaValue::Array(items)
            }
            10 => MetaValue::UInt(self.u64()?),
            11 => MetaValue::Int(i64::from_le_bytes(self.array()?)),
            12 => MetaValue::Float(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(Error::Unsupported { what: "GGUF metadata type", value: format!("number {other}") });
            }
        })
    }

    /// Reads `count` keys; returns them, and for each the byte range of its type and value in the file.
    pub(super) fn meta(&mut self, count: u64) -> Result<(Meta, BTreeMap<String, Range<u64>>)> {
        Limits::check("number of GGUF keys", count, self.limits.keys)?;
        let (mut meta, mut spans) = (Meta::default(), BTreeMap::new());
        for _ in 0..count {
            let key = self.string()?;
            let start = self.position();
            let kind = self.u32()?;
            let value = self.value(kind, 0)?;
            if meta.0.contains_key(&key) {
                return Err(self.bad(format!("key `{key}` appears twice")));
            }
            spans.insert(key.clone(), start..self.position());
            meta.0.insert(key, value);
        }
        Ok((meta, spans))
    }
}
