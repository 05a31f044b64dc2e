//! Writes a GGUF file: metadata, tensor table, and tensor data in any order of tensors.

use std::collections::BTreeMap;
use std::path::Path;

use tersor_core::{Error, Result};

use super::BlockType;
use crate::AtomicFile;

/// Alignment in bytes of the start of the data and of each tensor.
const ALIGNMENT: u64 = 32;

/// The metadata of a GGUF file to be written: typed values by key. Setting a key again replaces its value.
///
/// ```
/// let mut meta = tersor_formats::gguf::MetaWriter::new();
/// meta.text("general.architecture", "llama").uint("llama.block_count", 2);
/// assert!(meta.has("llama.block_count"));
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MetaWriter(BTreeMap<String, Vec<u8>>);

impl MetaWriter {
    /// Returns metadata without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key to the stored bytes of a type and value, as [`File::raw_meta`](super::File::raw_meta) returns them. The bytes are not checked.
    pub fn raw(&mut self, key: &str, bytes: &[u8]) -> &mut Self {
        self.0.insert(key.into(), bytes.to_vec());
        self
    }

    /// Sets a key to a 32-bit unsigned integer. Like the other setters, returns the metadata for chaining.
    pub fn uint(&mut self, key: &str, v: u32) -> &mut Self {
        self.raw(key, &[4u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// Sets a key to a 32-bit float.
    pub fn float(&mut self, key: &str, v: f32) -> &mut Self {
        self.raw(key, &[6u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// Sets a key to a boolean.
    pub fn bool(&mut self, key: &str, v: bool) -> &mut Self {
        self.raw(key, &[&7u32.to_le_bytes()[..], &[u8::from(v)]].concat())
    }

    /// Sets a key to a string.
    pub fn text(&mut self, key: &str, v: &str) -> &mut Self {
        self.raw(key, &[&8u32.to_le_bytes()[..], &string(v)].concat())
    }

    /// Sets a key to a list of strings.
    pub fn texts<'a>(&mut self, key: &str, v: impl ExactSizeIterator<Item = &'a str>) -> &mut Self {
        let mut bytes = array(8, v.len());
        v.for_each(|v| bytes.extend(string(v)));
        self.raw(key, &bytes)
    }

    /// Sets a key to a list of 32-bit signed integers.
    pub fn ints(&mut self, key: &str, v: &[i32]) -> &mut Self {
        let mut bytes = array(5, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Sets a key to a list of 32-bit floats.
    pub fn floats(&mut self, key: &str, v: &[f32]) -> &mut Self {
        let mut bytes = array(6, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Returns whether a key is set.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

/// Returns a string as GGUF stores it: length, then bytes.
fn string(v: &str) -> Vec<u8> {
    [&(v.len() as u64).to_le_bytes()[..], v.as_bytes()].concat()
}

/// Returns the head of a list of `len` values of type number `kind`.
fn array(kind: u32, len: usize) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(len as u64).to_le_bytes()].concat()
}

/// Writes a GGUF file of version 3. The file appears under its name when [`Writer::finish`] succeeds, which needs every tensor to be complete.
///
/// ```
/// use tersor_formats::gguf::{BlockType, MetaWriter, Writer};
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("model.gguf");
/// let tensors = [("w".to_string(), vec![1, 32], BlockType::Q4_0)];
/// let mut file = Writer::create(&path, &MetaWriter::new(), &tensors).unwrap();
/// file.write("w", &[0.5; 32]).unwrap();
/// file.finish().unwrap();
/// assert!(path.is_file());
/// ```
pub struct Writer {
    file: AtomicFile,
    /// By name: type, columns, offset in the file, length in bytes, bytes written so far.
    tensors: BTreeMap<String, (BlockType, usize, u64, u64, u64)>,
}

impl Writer {
    /// Starts a file at `path` with this metadata (`general.architecture` first, other keys sorted) and lays out `tensors` in the given order; each
    /// is a name, a shape (slowest-varying axis first) and a stored type. Errors if a type cannot be encoded, the last axis is not a whole number
    /// of its blocks, a name appears twice, or the file cannot be created.
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
            if !kind.can_encode() || !columns.is_multiple_of(kind.elements()) {
                return Err(bad(format!(
                    "{columns} columns cannot be written as {}, whose blocks have {} elements",
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
                return Err(bad("it is listed twice".into()));
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

    /// Encodes the next values of a tensor, row-major, and appends them. Errors if the layout has no such tensor, `values` is not a whole number of
    /// blocks, a value cannot be encoded (see [`BlockType::encode`]), the tensor would get more data than its shape allows, or the system cannot
    /// write.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let missing = || Error::Missing { name: name.into(), place: "the layout of the file".into() };
        let kind = self.tensors.get(name).ok_or_else(missing)?.0;
        let mut bytes = vec![0u8; values.len() / kind.elements() * kind.bytes()];
        kind.encode(values, &mut bytes).map_err(|e| e.in_tensor(name))?;
        self.write_blocks(name, &bytes)
    }

    /// Appends bytes of encoded blocks to the data of a tensor; one call may end within a block. Errors if the layout has no such tensor, it would
    /// get more data than its shape allows, or the system cannot write.
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

    /// Completes the file: syncs it and renames it to its final name. Errors, and leaves no file, if a tensor is incomplete.
    pub fn finish(self) -> Result<()> {
        for (name, (_, _, _, all, done)) in &self.tensors {
            if all != done {
                return Err(Error::shape("bytes of a tensor", all, done).in_tensor(name));
            }
        }
        self.file.finish()
    }
}
