//! Writes a file: keys, tensor table, data in any order.

use std::collections::BTreeMap;
use std::path::Path;

use tersor_core::{Error, Result};

use super::BlockType;
use crate::AtomicFile;

/// Where data begins and tensors are aligned to.
const ALIGNMENT: u64 = 32;

/// Keys to be written, with the types that readers insist on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MetaWriter(BTreeMap<String, Vec<u8>>);

impl MetaWriter {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a key's type and value as they stand in another file.
    pub fn raw(&mut self, key: &str, bytes: &[u8]) -> &mut Self {
        self.0.insert(key.into(), bytes.to_vec());
        self
    }

    /// A number of 32 bits.
    pub fn uint(&mut self, key: &str, v: u32) -> &mut Self {
        self.raw(key, &[4u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// A float of 32 bits.
    pub fn float(&mut self, key: &str, v: f32) -> &mut Self {
        self.raw(key, &[6u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// A truth value.
    pub fn bool(&mut self, key: &str, v: bool) -> &mut Self {
        self.raw(key, &[&7u32.to_le_bytes()[..], &[u8::from(v)]].concat())
    }

    /// A text.
    pub fn text(&mut self, key: &str, v: &str) -> &mut Self {
        self.raw(key, &[&8u32.to_le_bytes()[..], &string(v)].concat())
    }

    /// Texts.
    pub fn texts<'a>(&mut self, key: &str, v: impl ExactSizeIterator<Item = &'a str>) -> &mut Self {
        let mut bytes = array(8, v.len());
        v.for_each(|v| bytes.extend(string(v)));
        self.raw(key, &bytes)
    }

    /// Numbers of 32 bits.
    pub fn ints(&mut self, key: &str, v: &[i32]) -> &mut Self {
        let mut bytes = array(5, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Floats of 32 bits.
    pub fn floats(&mut self, key: &str, v: &[f32]) -> &mut Self {
        let mut bytes = array(6, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Whether there is a key.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

fn string(v: &str) -> Vec<u8> {
    [&(v.len() as u64).to_le_bytes()[..], v.as_bytes()].concat()
}

fn array(kind: u32, len: usize) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(len as u64).to_le_bytes()].concat()
}

/// A file being written. It appears under its name only when [`Writer::finish`] has seen all of every tensor.
pub struct Writer {
    file: AtomicFile,
    /// Kind, columns, offset in the file, bytes, bytes written.
    tensors: BTreeMap<String, (BlockType, usize, u64, u64, u64)>,
}

impl Writer {
    /// Lays a file out: tensors with their axes (slowest first) and types, in this order. `general.architecture` comes first, other keys by name.
    /// Error on a type that is not written, columns that do not fill its blocks, or two tensors of one name.
    pub fn create(path: &Path, meta: &MetaWriter, tensors: &[(String, Vec<usize>, BlockType)]) -> Result<Self> {
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((meta.0.len() as u64).to_le_bytes());
        let first = "general.architecture";
        let (one, others): (Vec<_>, Vec<_>) = meta.0.iter().partition(|(k, _)| *k == first);
        for (key, value) in one.into_iter().chain(others) {
            head.extend(string(key));
            head.extend(value);
        }
        let (mut placed, mut offset) = (BTreeMap::new(), 0u64);
        for (name, shape, kind) in tensors {
            let bad = |what: String| Error::format(path.display().to_string(), what).in_tensor(name);
            let columns = shape.last().copied().unwrap_or(1);
            if !kind.is_written() || !columns.is_multiple_of(kind.elements()) {
                return Err(bad(format!(
                    "{columns} columns cannot be written as {} (blocks of {})",
                    kind.name(),
                    kind.elements()
                )));
            }
            let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let bytes = elements.and_then(|n| (n / kind.elements()).checked_mul(kind.bytes()));
            let bytes = bytes.ok_or_else(|| Error::Overflow { what: format!("the size of {name}") })? as u64;
            head.extend(string(name));
            head.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|d| head.extend((*d as u64).to_le_bytes()));
            head.extend(kind.id().to_le_bytes());
            head.extend(offset.to_le_bytes());
            if placed.insert(name.clone(), (*kind, columns, offset, bytes, 0)).is_some() {
                return Err(bad("appears twice".into()));
            }
            offset = offset.checked_add(bytes).and_then(|o| o.checked_next_multiple_of(ALIGNMENT)).unwrap_or(u64::MAX);
        }
        let start = (head.len() as u64).next_multiple_of(ALIGNMENT);
        placed.values_mut().for_each(|t| t.2 += start);
        let mut file = AtomicFile::create(path)?;
        file.write(&head)?;
        file.set_len(
            start.checked_add(offset).ok_or_else(|| Error::Overflow { what: "the length of a file".into() })?,
        )?;
        Ok(Self { file, tensors: placed })
    }

    /// Encodes the next values of a tensor: whole rows.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let missing = || Error::Missing { name: name.into(), place: "the layout of the file".into() };
        let kind = self.tensors.get(name).ok_or_else(missing)?.0;
        let mut bytes = vec![0u8; values.len() / kind.elements() * kind.bytes()];
        kind.encode(values, &mut bytes).map_err(|e| e.in_tensor(name))?;
        self.write_blocks(name, &bytes)
    }

    /// Writes the next blocks of a tensor as they are. Error when there are too many.
    pub fn write_blocks(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let missing = || Error::Missing { name: name.into(), place: "the layout of the file".into() };
        let (_, _, offset, all, done) = self.tensors.get_mut(name).ok_or_else(missing)?;
        let end = *done + bytes.len() as u64;
        if end > *all {
            return Err(Error::shape("bytes of a tensor", *all, end).in_tensor(name));
        }
        self.file.write_at(*offset + *done, bytes)?;
        *done = end;
        Ok(())
    }

    /// Syncs and renames. Error, and no file, when a tensor is not complete.
    pub fn finish(self) -> Result<()> {
        for (name, (_, _, _, all, done)) in &self.tensors {
            if all != done {
                return Err(Error::shape("bytes of a tensor", all, done).in_tensor(name));
            }
        }
        self.file.finish()
    }
}
