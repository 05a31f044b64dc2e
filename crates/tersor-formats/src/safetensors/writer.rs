//! Writes one canonical safetensors file.

use super::Header;
use crate::AtomicFile;
use std::collections::BTreeMap;
use std::path::Path;
use tersor_core::tensors::rows_span;
use tersor_core::{Error, Result, TensorInfo, TensorSink, TensorSource};

/// Writes every tensor of `source` into one safetensors file at `path`, in the canonical layout of [`Header::canonical`], and replaces an
/// older file. Errors if a tensor cannot be read or is called `__metadata__`, a size overflows, or the file cannot be written or synced. If
/// a tensor cannot be read or written, an older file at `path` stays and no new one appears.
///
/// ```
/// use tersor_core::{DType, Limits, MemTensors, TensorInfo, TensorSink, TensorSource};
/// use tersor_formats::safetensors::{File, write};
/// let mut tensors = MemTensors::default();
/// tensors.write_rows("w", &TensorInfo { dtype: DType::U8, shape: vec![2, 2] }, 0, &[1, 2, 3, 4]).unwrap();
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("model.safetensors");
/// write(&path, &tensors).unwrap();
/// assert_eq!(File::open(&path, &Limits::default()).unwrap().info("w").unwrap().shape, [2, 2]);
/// ```
pub fn write(path: &Path, source: &dyn TensorSource) -> Result<()> {
    let names = source.names();
    let infos = names.iter().map(|n| Ok((n.clone(), source.info(n)?))).collect::<Result<BTreeMap<_, _>>>()?;
    let mut file = Writer::create(path, infos.clone())?;
    for (name, info) in &infos {
        let mut bytes = vec![0u8; info.bytes()?];
        source.read_at(name, 0, &mut bytes)?;
        file.write_rows(name, info, 0, &bytes)?;
    }
    file.finish()
}

/// Writes a safetensors file in the canonical layout of [`Header::canonical`]. The tensors come through [`TensorSink`], in any order, whole
/// or a few rows at a time. The file appears under its name when [`Writer::finish`] succeeds, which needs every row of every tensor to have
/// been written.
///
/// ```
/// use tersor_core::{DType, TensorInfo, TensorSink};
/// use tersor_formats::safetensors::Writer;
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("model.safetensors");
/// let info = TensorInfo { dtype: DType::U8, shape: vec![2, 3] };
/// let mut file = Writer::create(&path, [("w".to_string(), info.clone())].into()).unwrap();
/// file.write_rows("w", &info, 1, &[4, 5, 6]).unwrap();
/// file.write_rows("w", &info, 0, &[1, 2, 3]).unwrap();
/// file.finish().unwrap();
/// assert!(path.is_file());
/// ```
pub struct Writer {
    file: AtomicFile,
    header: Header,
    /// Byte ranges written so far, merged, by tensor.
    written: BTreeMap<String, Vec<(u64, u64)>>,
}

impl Writer {
    /// Starts a file at `path`, under a temporary name, for the tensors `tensors` (type and shape by name), and writes its header. Equal
    /// tensors give an equal file, in whichever order they are written. Errors if a size overflows, a tensor is called `__metadata__`, or
    /// the file cannot be created.
    pub fn create(path: &Path, tensors: BTreeMap<String, TensorInfo>) -> Result<Self> {
        let (header, bytes) = Header::canonical(&tensors)?;
        let mut file = AtomicFile::create(path)?;
        file.write(&bytes)?;
        file.set_len(header.file_len())?;
        Ok(Self { file, header, written: BTreeMap::new() })
    }

    /// Returns the offset of a tensor's data in the file. Errors if the layout has no such tensor, or another type or shape.
    fn place(&self, name: &str, info: &TensorInfo) -> Result<u64> {
        let entry = self.header.tensors.get(name);
        let entry =
            entry.ok_or_else(|| Error::Missing { name: name.into(), place: "the layout of the file".into() })?;
        if entry.info != *info {
            return Err(Error::shape("tensor against the layout of the file", &entry.info, info).in_tensor(name));
        }
        Ok(entry.offset)
    }

    /// Writes bytes at `start` within the tensor whose data begins at `offset`, and records the range.
    fn put(&mut self, name: &str, offset: u64, start: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(offset + start, bytes)?;
        let ranges = self.written.entry(name.to_string()).or_default();
        ranges.push((start, start + bytes.len() as u64));
        ranges.sort();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for &(a, b) in ranges.iter() {
            match merged.last_mut() {
                Some(last) if a <= last.1 => last.1 = last.1.max(b),
                _ => merged.push((a, b)),
            }
        }
        *ranges = merged;
        Ok(())
    }

    /// Completes the file: syncs it to disk, renames it to its final name in place of an older file, and syncs the directory. Errors if a
    /// row of a tensor was not written, or the system cannot sync or rename the file: the temporary file is deleted then, and an older file
    /// stays. Errors also if only the directory cannot be synced: the new file has its final name then.
    pub fn finish(self) -> Result<()> {
        for (name, entry) in &self.header.tensors {
            let whole = entry.bytes == 0 || self.written.get(name).is_some_and(|r| r[..] == [(0, entry.bytes)]);
            if !whole {
                return Err(Error::format("safetensors", "not every row was written").in_tensor(name));
            }
        }
        self.file.finish()
    }
}

impl TensorSink for Writer {
    fn write_rows(&mut self, name: &str, info: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()> {
        let offset = self.place(name, info)?;
        let span = rows_span(info, first, bytes.len()).map_err(|e| e.in_tensor(name))?;
        self.put(name, offset, span.start as u64, bytes)
    }
    fn write_shared(&mut self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        let offset = self.place(name, info)?;
        if info.bytes()? != bytes.len() {
            return Err(Error::shape("bytes of a tensor", info.bytes()?, bytes.len()).in_tensor(name));
        }
        if self.written.contains_key(name) {
            let mut before = vec![0u8; bytes.len()];
            self.file.read_at(offset, &mut before)?;
            if before != bytes {
                return Err(Error::format(
                    "safetensors",
                    "two blocks of rows wrote different values of this shared tensor",
                )
                .in_tensor(name));
            }
            return Ok(());
        }
        self.put(name, offset, 0, bytes)
    }
}
