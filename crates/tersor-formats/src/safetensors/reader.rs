//! Reads one safetensors file.

use super::{Entry, Header};
use crate::{FileAt, ReadAt};
use std::path::Path;
use tersor_core::{Error, Limits, Result, TensorInfo, TensorSource};

/// An open safetensors file. Its header is in memory; tensor data is read when it is needed, through [`TensorSource`] (bytes of a tensor at
/// an offset).
///
/// ```
/// use tersor_core::{DType, Limits, TensorInfo, TensorSource};
/// use tersor_formats::safetensors::{File, Header};
/// let info = TensorInfo { dtype: DType::U8, shape: vec![3] };
/// let (_, mut bytes) = Header::canonical(&[("w".to_string(), info)].into()).unwrap();
/// bytes.extend([7, 8, 9]);
/// let file = File::new(Box::new(bytes), &Limits::default()).unwrap();
/// let mut out = [0u8; 2];
/// file.read_at("w", 1, &mut out).unwrap();
/// assert_eq!(out, [8, 9]);
/// ```
pub struct File {
    source: Box<dyn ReadAt>,
    header: Header,
}

impl File {
    /// Opens the safetensors file at `path` and reads and checks its header. Errors if it is not a regular file that can be opened, and
    /// under the conditions of [`Header::read`]: the header is above `limits`, is invalid, or does not agree with the length of the file.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Box::new(FileAt::open(path)?), limits)
    }

    /// Reads and checks the header of a safetensors file from any source of bytes, a file or memory. Errors under the conditions of
    /// [`Header::read`]: the header is above `limits`, is invalid, or does not agree with the length of the source.
    pub fn new(source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let header = Header::read(&*source, limits)?;
        Ok(Self { source, header })
    }

    /// Returns the header of the file (type, shape and byte range of every tensor), which was checked when the file was opened.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the length of the whole file in bytes, header included.
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
