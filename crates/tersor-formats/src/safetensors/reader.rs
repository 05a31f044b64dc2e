//! One file.

use super::{Entry, Header};
use crate::{FileAt, ReadAt};
use std::path::Path;
use tersor_core::{Error, Limits, Result, TensorInfo, TensorSource};

/// An open safetensors file: the header in memory, the data on disk.
pub struct File {
    source: Box<dyn ReadAt>,
    header: Header,
}

impl File {
    /// Opens a file and checks its header.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Box::new(FileAt::open(path)?), limits)
    }

    /// Reads from anything.
    pub fn new(source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let header = Header::read(&*source, limits)?;
        Ok(Self { source, header })
    }

    /// What is in it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.source.len()
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.header.tensors.get(name);
        found.ok_or_else(|| Error::Missing { name: name.to_string(), place: self.source.name() })
    }
}

impl TensorSource for File {
    fn names(&self) -> Vec<String> {
        self.header.tensors.keys().cloned().collect()
    }
    fn info(&self, name: &str) -> Result<TensorInfo> {
        self.entry(name).map(|e| e.info.clone())
    }
    fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let entry = self.entry(name)?;
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > entry.bytes) {
            return Err(Error::shape("bytes read", entry.bytes, (offset, out.len())).in_tensor(name));
        }
        self.source.read_at(entry.offset + offset, out)
    }
}
