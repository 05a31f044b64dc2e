//! Writes a GGUF file: metadata, tensor table, and tensor data in any order of tensors.

use std::collections::BTreeMap;
use std::path::Path;

use tersor_core::{Error, Result};

use super::BlockType;
use crate::AtomicFile;

/// Alignment in bytes of the start of the data and of each tensor.
const ALIGNMENT: u64 = 32;

/// The metadata of a GGUF file that is to be written: typed values by key. Setting a key again replaces its value; no setter fails.
///
/// ```
/// let mut meta = tersor_formats::gguf::MetaWriter::new();
/// meta.text("general.architecture", "llama").uint("llama.block_count", 2);
/// assert!(meta.has("llama.block_count"));
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MetaWriter(BTreeMap<String, Vec<u8>>);

impl MetaWriter {
    /// Returns metadata without any key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the key `key` to the stored bytes of a type and value, as [`File::raw_meta`](super::File::raw_meta) returns them, in place of
    /// an earlier value, and returns the metadata for further calls. The bytes are not checked: if they are wrong, the written file cannot
    /// be read.
    pub fn raw(&mut self, key: &str, bytes: &[u8]) -> &mut Self {
        self.0.insert(key.into(), bytes.to_vec());
        self
    }

    /// Sets the key `key` to the 32-bit unsigned integer `v`, in place of an earlier value, and returns the metadata for further calls.
    pub fn uint(&mut self, key: &str, v: u32) -> &mut Self {
        self.raw(key, &[4u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// Sets the key `key` to the 32-bit float `v`, in place of an earlier value, and returns the metadata for further calls.
    pub fn float(&mut self, key: &str, v: f32) -> &mut Self {
        self.raw(key, &[6u32.to_le_bytes(), v.to_le_bytes()].concat())
    }

    /// Sets the key `key` to the boolean `v`, in place of an earlier value, and returns the metadata for further calls.
    pub fn bool(&mut self, key: &str, v: bool) -> &mut Self {
        self.raw(key, &[&7u32.to_le_bytes()[..], &[u8::from(v)]].concat())
    }

    /// Sets the key `key` to the string `v`, in place of an earlier value, and returns the metadata for further calls.
    pub fn text(&mut self, key: &str, v: &str) -> &mut Self {
        self.raw(key, &[&8u32.to_le_bytes()[..], &string(v)].concat())
    }

    /// Sets the key `key` to the list of the strings that `v` yields, in place of an earlier value, and returns the metadata for further
    /// calls.
    pub fn texts<'a>(&mut self, key: &str, v: impl ExactSizeIterator<Item = &'a str>) -> &mut Self {
        let mut bytes = array(8, v.len());
        v.for_each(|v| bytes.extend(string(v)));
        self.raw(key, &bytes)
    }

    /// Sets the key `key` to a list of 32-bit signed integers, in place of an earlier value, and returns the metadata for further calls.
    pub fn ints(&mut self, key: &str, v: &[i32]) -> &mut Self {
        let mut bytes = array(5, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Sets the key `key` to a list of 32-bit floats, in place of an earlier value, and returns the metadata for further calls.
    pub fn floats(&mut self, key: &str, v: &[f32]) -> &mut Self {
        let mut bytes = array(6, v.len());
        bytes.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, &bytes)
    }

    /// Returns whether the key `key` has been set.
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

/// Writes a GGUF file of version 3: first metadata and tensor table, then the data of the tensors, in any order of tensors, each from its
/// first row to its last. The file appears under its name when [`Writer::finish`] succeeds, which needs the data of every tensor to be
/// complete.
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
    /// Starts a file at `path`, under a temporary name, and writes metadata and tensor table. The metadata is `meta`, with
    /// `general.architecture` first and the other keys sorted. Each entry of `tensors` is a tensor's name in the file, its shape with the
    /// slowest-varying axis first (`[out_features, in_features]`), and its stored type. An empty shape is that of a single element; an axis
    /// of size 0 makes an empty tensor. The data of the tensors is laid out in the given order, each at a multiple of 32 bytes.
    ///
    /// Errors if `meta` sets another `general.alignment` than 32, a type is Q2_K or Q3_K, the size of the last axis is not a multiple of
    /// the type's [`BlockType::elements`], a name appears twice, a size overflows, or the file cannot be created.
    pub fn create(path: &Path, meta: &MetaWriter, tensors: &[(String, Vec<usize>, BlockType)]) -> Result<Self> {
        let mut aligned = MetaWriter::new();
        aligned.uint("general.alignment", ALIGNMENT as u32);
        if meta.0.get("general.alignment").is_some_and(|v| Some(v) != aligned.0.get("general.alignment")) {
            let what = format!("`general.alignment` must be {ALIGNMENT}, at which the tensors are placed, or absent");
            return Err(Error::format(path.display().to_string(), what));
        }
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
        let length =
            start.checked_add(offset).ok_or_else(|| Error::Overflow { what: "the length of a file".into() })?;
        placed.values_mut().for_each(|t| t.2 += start);
        let mut file = AtomicFile::create(path)?;
        file.write(&head)?;
        file.set_len(length)?;
        Ok(Self { file, tensors: placed })
    }

    /// Encodes `values`, the elements of the tensor `name` that follow those of earlier calls in row-major order, and appends them to its
    /// data. Errors if the tensor table has no such tensor, `values` is not a whole number of blocks, a value cannot be encoded (see
    /// [`BlockType::encode`]), the tensor would get more elements than its shape has, or the system cannot write.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let missing = || Error::Missing { name: name.into(), place: "the layout of the file".into() };
        let kind = self.tensors.get(name).ok_or_else(missing)?.0;
        let mut bytes = vec![0u8; values.len() / kind.elements() * kind.bytes()];
        kind.encode(values, &mut bytes).map_err(|e| e.in_tensor(name))?;
        self.write_blocks(name, &bytes)
    }

    /// Appends `bytes`, blocks that are already encoded, to the data of the tensor `name`; a block may be divided between two calls. Errors
    /// if the tensor table has no such tensor, it would get more data than its shape has, or the system cannot write.
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

    /// Completes the file: syncs it to disk, renames it to its final name in place of an older file, and syncs the directory. Errors if the
    /// data of a tensor is incomplete, or the system cannot sync or rename the file: the temporary file is deleted then, and an older file
    /// stays. Errors also if only the directory cannot be synced: the new file has its final name then.
    pub fn finish(self) -> Result<()> {
        for (name, (_, _, _, all, done)) in &self.tensors {
            if all != done {
                return Err(Error::shape("bytes of a tensor", all, done).in_tensor(name));
            }
        }
        self.file.finish()
    }
}
