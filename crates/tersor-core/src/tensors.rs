//! Where operators put their tensors and get them back from: files, or memory.

use crate::{DType, Error, Result};
use std::collections::BTreeMap;

/// Type and shape of a stored tensor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Axes, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of the whole. Error when that overflows, be it in a part of a tensor that is empty.
    pub fn bytes(&self) -> Result<usize> {
        let full = self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d.max(1)));
        match full.filter(|&n| n <= isize::MAX as usize) {
            Some(_) if self.shape.contains(&0) => Ok(0),
            Some(n) => Ok(n),
            None => Err(Error::Overflow { what: format!("a tensor of shape {:?}", self.shape) }),
        }
    }
}

/// Which rows of the whole a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowSlot {
    /// Number of the block's first row.
    pub first: usize,
    /// Rows of the whole matrix.
    pub total: usize,
}

impl RowSlot {
    /// A block that is the whole.
    pub fn whole(rows: usize) -> Self {
        Self { first: 0, total: rows }
    }
}

/// Takes the tensors of a result. Names are data, never paths.
pub trait TensorSink {
    /// Writes leading-axis entries `first ..` of a tensor whose whole is `info`; `bytes` are little-endian
    /// and row-major. Every entry is written once. Error when they do not fit, or `info` differs from an earlier write.
    fn write_rows(&mut self, name: &str, info: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()>;
    /// Writes a whole tensor that every block shares. Writing equal bytes again is allowed, other bytes are an error.
    fn write_shared(&mut self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<()>;
}

/// Gives stored tensors back, by positioned reads from any thread.
pub trait TensorSource: Send + Sync {
    /// Every name, sorted.
    fn names(&self) -> Vec<String>;
    /// Type and shape; [`Error::Missing`] when there is no such tensor.
    fn info(&self, name: &str) -> Result<TensorInfo>;
    /// Fills `out` with the bytes from `offset` on. Error when they leave the tensor.
    fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Reads a tensor whole. Error unless it has the type and shape that the reader expects.
pub fn read_expected(source: &dyn TensorSource, name: &str, dtype: DType, shape: &[usize]) -> Result<Vec<u8>> {
    let info = source.info(name)?;
    if info.dtype != dtype || info.shape != shape {
        let found = format!("{} {:?}", info.dtype.name(), info.shape);
        let expected = format!("{} {shape:?}", dtype.name());
        return Err(Error::Shape { what: "stored tensor", expected, found }.in_tensor(name));
    }
    let mut bytes = vec![0u8; info.bytes()?];
    source.read_at(name, 0, &mut bytes)?;
    Ok(bytes)
}

/// Reads a tensor of f32 whole. Error unless it is one of that shape; values are as they are, finite or not.
pub fn read_floats(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let bytes = read_expected(source, name, DType::F32, shape)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Writes a whole tensor of f32 that every block shares. Error as for [`TensorSink::write_shared`].
pub fn write_floats(sink: &mut dyn TensorSink, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    sink.write_shared(name, &TensorInfo { dtype: DType::F32, shape: shape.to_vec() }, &bytes)
}

/// Joins the name of an operator and of one of its tensors; an empty suffix is the operator's own name.
pub fn join(prefix: &str, suffix: &str) -> String {
    if suffix.is_empty() { prefix.to_string() } else { format!("{prefix}.{suffix}") }
}

/// Tensors in memory: a sink and a source.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct MemTensors(BTreeMap<String, (TensorInfo, Vec<u8>)>);

impl MemTensors {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|(_, b)| b.len()).sum()
    }

    /// Adds the tensors of another; those of the same name are replaced.
    pub fn extend(&mut self, other: MemTensors) {
        self.0.extend(other.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of one tensor.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|(_, b)| &b[..])
    }

    fn entry(&mut self, name: &str, info: &TensorInfo) -> Result<&mut Vec<u8>> {
        let size = info.bytes()?;
        let entry = self.0.entry(name.to_string()).or_insert_with(|| (info.clone(), vec![0u8; size]));
        if entry.0 != *info {
            return Err(Error::shape("tensor written before", &entry.0, info).in_tensor(name));
        }
        Ok(&mut entry.1)
    }
}

/// Where the leading-axis entries `first ..` of a tensor lie in its bytes, checked against the length given.
pub fn rows_span(info: &TensorInfo, first: usize, bytes: usize) -> Result<std::ops::Range<usize>> {
    let total = info.bytes()?;
    let rows = info.shape.first().copied().unwrap_or(1);
    let width = total.checked_div(rows).unwrap_or(0);
    let start = first.checked_mul(width).filter(|s| s.checked_add(bytes).is_some_and(|e| e <= total));
    match start {
        Some(s) if width == 0 || bytes.is_multiple_of(width) => Ok(s..s + bytes),
        _ => Err(Error::shape("rows written", format!("whole rows inside {:?}", info.shape), (first, bytes))),
    }
}

impl TensorSink for MemTensors {
    fn write_rows(&mut self, name: &str, info: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()> {
        let span = rows_span(info, first, bytes.len()).map_err(|e| e.in_tensor(name))?;
        self.entry(name, info)?[span].copy_from_slice(bytes);
        Ok(())
    }
    fn write_shared(&mut self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        if info.bytes()? != bytes.len() {
            return Err(Error::shape("bytes of a tensor", info.bytes()?, bytes.len()).in_tensor(name));
        }
        let new = !self.0.contains_key(name);
        let entry = self.entry(name, info)?;
        if !new && entry != bytes {
            return Err(Error::format(name, "blocks of one matrix disagree on a tensor that they share"));
        }
        entry.copy_from_slice(bytes);
        Ok(())
    }
}

impl TensorSource for MemTensors {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    fn info(&self, name: &str) -> Result<TensorInfo> {
        let found = self.0.get(name).map(|(i, _)| i.clone());
        found.ok_or_else(|| Error::Missing { name: name.to_string(), place: "memory".into() })
    }
    fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let bytes = self.get(name).ok_or_else(|| Error::Missing { name: name.to_string(), place: "memory".into() })?;
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|s| bytes.get(s..s.checked_add(out.len())?));
        let part = part.ok_or_else(|| Error::shape("bytes read", bytes.len(), (offset, out.len())).in_tensor(name))?;
        out.copy_from_slice(part);
        Ok(())
    }
}
