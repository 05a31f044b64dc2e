//! [`TensorSink`] and [`TensorSource`]: where operators and statistics write their tensors and read them back, in files or in memory.

use crate::{DType, Error, Result};
use std::collections::BTreeMap;

/// The element type and the shape of a stored tensor.
///
/// ```
/// use tersor_core::{DType, TensorInfo};
/// let info = TensorInfo { dtype: DType::F16, shape: vec![3, 4] };
/// assert_eq!(info.bytes().unwrap(), 24);
/// assert!(TensorInfo { dtype: DType::F16, shape: vec![usize::MAX, 2] }.bytes().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// The type of the tensor's elements.
    pub dtype: DType,
    /// The lengths of the tensor's axes, in row-major order (the last axis varies fastest): `[rows, cols]` for a matrix.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Returns the size of the tensor in bytes; 0 if an axis has length 0. Errors if the size exceeds the address space; for this check, a
    /// length of 0 counts as 1.
    pub fn bytes(&self) -> Result<usize> {
        let full = self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d.max(1)));
        match full.filter(|&n| n <= isize::MAX as usize) {
            Some(_) if self.shape.contains(&0) => Ok(0),
            Some(n) => Ok(n),
            None => Err(Error::Overflow { what: format!("a tensor of shape {:?}", self.shape) }),
        }
    }
}

/// The position of a block of neighbouring rows in a matrix: its first row, and the number of rows of the whole matrix. The number of rows
/// of the block is not included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowSlot {
    /// The index of the block's first row in the whole matrix, counted from 0.
    pub first: usize,
    /// The number of rows of the whole matrix that the block is part of.
    pub total: usize,
}

impl RowSlot {
    /// Returns the position of the block that is a whole matrix of `rows` rows: its first row is 0.
    pub fn whole(rows: usize) -> Self {
        Self { first: 0, total: rows }
    }
}

/// A destination that named tensors are written to: a file, or [memory](MemTensors). Names are keys; they are not used as paths of files.
pub trait TensorSink {
    /// Writes some rows of the tensor `name` (entries of its first axis), beginning at index `first`, counted from 0. `info` is the type
    /// and shape of the whole tensor; `bytes` are these rows, little-endian and row-major. The caller writes every row once, in any order.
    /// Errors if the rows leave the tensor, or `info` differs from an earlier write.
    fn write_rows(&mut self, name: &str, info: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()>;
    /// Writes the whole tensor `name`, little-endian and row-major, which all blocks of rows of a matrix share: each of them may write it,
    /// with the same bytes. Errors if other bytes or another `info` were written before, or the length does not match `info`.
    fn write_shared(&mut self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<()>;
}

/// A source of named, stored tensors, such as a file or [memory](MemTensors). Any thread can read bytes at any position.
pub trait TensorSource: Send + Sync {
    /// Returns the name of every tensor, sorted.
    fn names(&self) -> Vec<String>;
    /// Returns the element type and shape of the tensor `name`. Errors with [`Error::Missing`] if there is no such tensor.
    fn info(&self, name: &str) -> Result<TensorInfo>;
    /// Fills `out` with the `out.len()` bytes of the tensor `name` that begin at byte `offset`, counted from 0. Errors if there is no such
    /// tensor, the bytes leave it, or they cannot be read.
    fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Returns all bytes of the tensor `name` of `source`, little-endian and row-major. Errors if the tensor is missing, does not have the
/// element type `dtype` and the shape `shape`, or cannot be read.
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

/// Returns all values of the tensor `name` of `source`, row-major. Errors if the tensor is missing, is not F32 with the shape `shape`, or
/// cannot be read. NaN and infinities are returned as they are.
pub fn read_floats(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let bytes = read_expected(source, name, DType::F32, shape)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Writes `values`, row-major, as the whole F32 tensor `name` of the shape `shape`. It is a shared tensor: all blocks of rows of a matrix
/// may write it, with the same values. Errors if the number of values does not match the shape, or the sink has another tensor or other
/// values under this name.
pub fn write_floats(sink: &mut dyn TensorSink, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    sink.write_shared(name, &TensorInfo { dtype: DType::F32, shape: shape.to_vec() }, &bytes)
}

/// Returns the name of a tensor of the operator whose tensors' names begin with `prefix`: `prefix.suffix`, or `prefix` itself if the suffix
/// is empty.
pub fn join(prefix: &str, suffix: &str) -> String {
    if suffix.is_empty() { prefix.to_string() } else { format!("{prefix}.{suffix}") }
}

/// Named tensors in memory, which are written as a [`TensorSink`] and read as a [`TensorSource`]. Bytes of a tensor that were not written
/// are 0.
///
/// ```
/// use tersor_core::{DType, MemTensors, TensorInfo, TensorSink, TensorSource, tensors};
/// # fn main() -> tersor_core::Result<()> {
/// let mut file = MemTensors::new();
/// // A tensor [3, 2] of bytes, written as two blocks of rows.
/// let info = TensorInfo { dtype: DType::U8, shape: vec![3, 2] };
/// file.write_rows("w.codes", &info, 2, &[5, 6])?;
/// file.write_rows("w.codes", &info, 0, &[1, 2, 3, 4])?;
/// tensors::write_floats(&mut file, "w.scale", &[1], &[0.5])?;
/// assert_eq!(file.names(), ["w.codes", "w.scale"]);
/// assert_eq!(tensors::read_expected(&file, "w.codes", DType::U8, &[3, 2])?, [1, 2, 3, 4, 5, 6]);
/// assert_eq!(tensors::read_floats(&file, "w.scale", &[1])?, [0.5]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default, Debug, PartialEq)]
pub struct MemTensors(BTreeMap<String, (TensorInfo, Vec<u8>)>);

impl MemTensors {
    /// Returns a set without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the size of all tensors together in bytes, names not included.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|(_, b)| b.len()).sum()
    }

    /// Adds the tensors of `other`. A tensor of the same name is replaced.
    pub fn extend(&mut self, other: MemTensors) {
        self.0.extend(other.0);
    }

    /// Returns whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all bytes of the tensor `name`, little-endian and row-major; None if there is no such tensor.
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

/// Returns the range of bytes that a block of rows occupies in a tensor of the type and shape `info`. A row is everything at one index of
/// the first axis; a tensor without axes is one row. The block has `bytes` bytes and begins at row `first`, counted from 0. Errors if
/// `bytes` is not a whole number of rows, or if the block leaves the tensor.
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
            return Err(Error::format(name, "blocks of one matrix wrote different bytes to a tensor that they share"));
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
