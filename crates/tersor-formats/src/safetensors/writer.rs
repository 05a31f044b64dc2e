//! Writes one canonical file.

use super::Header;
use crate::AtomicFile;
use std::collections::BTreeMap;
use std::path::Path;
use tersor_core::tensors::rows_span;
use tersor_core::{Error, Result, TensorInfo, TensorSink, TensorSource};

/// Writes every tensor of `source` (a `MemTensors`, say) into one file. Error as of the source or the file; there is no file then.
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

/// A file being written, its tensors in any order and by blocks of rows. It appears under its name only when
/// [`Writer::finish`] has seen every byte of every tensor.
pub struct Writer {
    file: AtomicFile,
    header: Header,
    /// Ranges written so far, merged, by tensor.
    written: BTreeMap<String, Vec<(u64, u64)>>,
}

impl Writer {
    /// Lays the file out for exactly these tensors. Equal content gives equal bytes.
    pub fn create(path: &Path, tensors: BTreeMap<String, TensorInfo>) -> Result<Self> {
        let (header, bytes) = Header::canonical(&tensors)?;
        let mut file = AtomicFile::create(path)?;
        file.write(&bytes)?;
        file.set_len(header.file_len())?;
        Ok(Self { file, header, written: BTreeMap::new() })
    }

    fn place(&self, name: &str, info: &TensorInfo) -> Result<u64> {
        let entry = self.header.tensors.get(name);
        let entry =
            entry.ok_or_else(|| Error::Missing { name: name.into(), place: "the layout of the file".into() })?;
        if entry.info != *info {
            return Err(Error::shape("tensor against the layout of the file", &entry.info, info).in_tensor(name));
        }
        Ok(entry.offset)
    }

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

    /// Syncs and renames. Error, and no file, when a byte was never written.
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
                return Err(Error::format("safetensors", "blocks disagree on what they share").in_tensor(name));
            }
            return Ok(());
        }
        self.put(name, offset, 0, bytes)
    }
}
