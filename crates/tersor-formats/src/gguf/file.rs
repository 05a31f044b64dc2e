//! The file: header, tensor table, and rows decoded on demand.

use super::meta::Cursor;
use super::{BlockType, Meta};
use crate::{FileAt, ReadAt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tersor_core::rows::{check_range, rows_and_columns};
use tersor_core::{DType, Error, Limits, Result, RowSource, TensorInfo};

/// Where a tensor lies and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Axes, slowest first (a file stores them fastest first).
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: BlockType,
    /// Offset from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// An open GGUF file: metadata and tensor table in memory, data on disk.
pub struct File {
    source: Box<dyn ReadAt>,
    meta: Meta,
    spans: BTreeMap<String, Range<u64>>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl File {
    /// Opens a file and checks everything before its data.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Box::new(FileAt::open(path)?), limits)
    }

    /// Reads from anything. Error when the file ends early, a count is above its limit, a type or version is not
    /// known, a name appears twice, or a tensor leaves the file or overlaps another.
    pub fn new(source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let (meta, spans, tensors) = {
            let mut cursor = Cursor::new(&*source, limits);
            let magic = cursor.u32()?;
            if magic != u32::from_le_bytes(*b"GGUF") {
                return Err(Error::format(source.name(), "does not begin with `GGUF`"));
            }
            let version = cursor.u32()?;
            if !(2..=3).contains(&version) {
                let value = format!("{version} (2 and 3 are; big-endian files are not)");
                return Err(Error::Unsupported { what: "GGUF version", value });
            }
            let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
            let (meta, spans) = cursor.meta(keys)?;
            let tensors = table(&mut cursor, tensors, &meta, source.len(), limits)?;
            (meta, spans, tensors)
        };
        Ok(Self { source, meta, spans, tensors })
    }

    /// The typed keys.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Type and value of a key as they stand in the file, for [`MetaWriter::raw`](super::MetaWriter::raw). Error when there is no such key, or the
    /// file cannot be read.
    pub fn raw_meta(&self, key: &str) -> Result<Vec<u8>> {
        let missing = || Error::Missing { name: key.into(), place: self.source.name() };
        let span = self.spans.get(key).ok_or_else(missing)?;
        let mut bytes = vec![0u8; (span.end - span.start) as usize];
        self.source.read_at(span.start, &mut bytes)?;
        Ok(bytes)
    }

    /// The tensors by the names of the file.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.source.len()
    }

    /// The rows of a tensor; a vector is one, and of more than two axes the last is the row. Error when there is no
    /// such tensor.
    pub fn rows(&self, name: &str) -> Result<GgufRows<'_>> {
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| Error::Missing { name: name.into(), place: self.source.name() })?;
        let shape = rows_and_columns(&tensor.shape).map_err(|e| e.in_tensor(name))?;
        Ok(GgufRows { source: &*self.source, tensor, shape, interleaved: None })
    }
}

fn table(
    cursor: &mut Cursor<'_>,
    count: u64,
    meta: &Meta,
    len: u64,
    limits: &Limits,
) -> Result<BTreeMap<String, GgufTensor>> {
    Limits::check("number of tensors", count, limits.tensors)?;
    let alignment = match meta.0.get("general.alignment") {
        None => 32,
        Some(_) => meta.uint("general.alignment").unwrap_or(0),
    };
    if !alignment.is_power_of_two() {
        return Err(cursor.bad(format!("the alignment {alignment} is not a power of two")));
    }
    Limits::check("alignment of a GGUF file", alignment, limits.alignment)?;
    let mut found = Vec::new();
    for _ in 0..count {
        let name = cursor.string()?;
        let axes = cursor.u32()?;
        Limits::check("axes of a GGUF tensor", u64::from(axes), limits.axes.min(4)).map_err(|e| e.in_tensor(&name))?;
        let mut shape = Vec::new();
        for _ in 0..axes {
            let d = cursor.u64()?;
            shape.push(usize::try_from(d).map_err(|_| Error::Overflow { what: format!("an axis of {d}") })?);
        }
        let kind = BlockType::from_id(cursor.u32()?).map_err(|e| e.in_tensor(&name))?;
        let offset = cursor.u64()?;
        let columns = shape.first().copied().unwrap_or(1);
        if !columns.is_multiple_of(kind.elements()) {
            let what = format!("{columns} columns do not fill blocks of {}", kind.elements());
            return Err(cursor.bad(format!("tensor `{name}`: {what}")));
        }
        shape.reverse();
        // Checked as if nothing were empty, and at the four bytes a value that decoding takes at most.
        let full = TensorInfo { dtype: DType::F32, shape: shape.clone() };
        let elements = full.bytes().map_err(|e| e.in_tensor(&name))? / 4;
        let bytes = (elements / kind.elements() * kind.bytes()) as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(cursor.bad(format!("tensor `{name}` begins at {offset}, not at a multiple of {alignment}")));
        }
        found.push((name, GgufTensor { shape, kind, offset, bytes }));
    }
    let start = cursor.position().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let mut spans = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, mut tensor) in found {
        let first = start.checked_add(tensor.offset);
        let end = first.and_then(|f| f.checked_add(tensor.bytes)).filter(|&e| e <= len);
        let (Some(first), Some(end)) = (first, end) else {
            return Err(cursor.bad(format!("tensor `{name}` leaves the file of {len} bytes")));
        };
        tensor.offset = first;
        spans.push((first, end, name.clone()));
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(cursor.bad(format!("tensor `{name}` appears twice")));
        }
    }
    spans.sort();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(cursor.bad(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2)));
        }
    }
    Ok(tensors)
}

/// Rows of a GGUF tensor, decoded as they are read.
pub struct GgufRows<'a> {
    source: &'a dyn ReadAt,
    tensor: &'a GgufTensor,
    shape: [usize; 2],
    /// Rows of a head that are stored in pairs for interleaved rotary embeddings.
    interleaved: Option<usize>,
}

impl GgufRows<'_> {
    /// Reads the rows (of a vector: the elements) in the order of Hugging Face: of each head of `head_dim` rows first
    /// those of the first halves of the rotary pairs, then those of the second; the file has the pairs side by side.
    /// Error when `head_dim` is odd or does not divide the rows.
    pub fn unpermuted(mut self, head_dim: usize) -> Result<Self> {
        let rows = self.tensor.shape.first().copied().unwrap_or(0);
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
            return Err(Error::shape("rows in heads", format!("a multiple of {head_dim}, which is even"), rows));
        }
        self.interleaved = Some(head_dim);
        Ok(self)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = self.shape[1] / self.tensor.kind.elements() * self.tensor.kind.bytes();
        let mut bytes = vec![0u8; rows.len() * width];
        self.source.read_at(self.tensor.offset + (rows.start * width) as u64, &mut bytes)?;
        self.tensor.kind.decode(&bytes, out)
    }
}

/// Rows in the order of a Llama file: the reverse of [`GgufRows::unpermuted`].
pub struct Interleaved<'a> {
    source: &'a dyn RowSource,
    head_dim: usize,
}

impl<'a> Interleaved<'a> {
    /// Error when `head_dim` is odd or does not divide the rows (of a vector, which is one row: its elements).
    pub fn new(source: &'a dyn RowSource, head_dim: usize) -> Result<Self> {
        let n = source.shape()[usize::from(source.shape()[0] == 1)];
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !n.is_multiple_of(head_dim) {
            return Err(Error::shape("rows in heads", format!("a multiple of {head_dim}, which is even"), n));
        }
        Ok(Self { source, head_dim })
    }

    /// Where Hugging Face has what the file has at `index`.
    pub fn source_of(index: usize, head_dim: usize) -> usize {
        let (head, within) = (index / head_dim, index % head_dim);
        head * head_dim + within % 2 * (head_dim / 2) + within / 2
    }
}

impl RowSource for Interleaved<'_> {
    fn shape(&self) -> [usize; 2] {
        self.source.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [all, cols] = self.shape();
        check_range([all, cols], &rows, out.len())?;
        if all == 1 {
            let mut whole = vec![0f32; cols];
            self.source.read_rows(0..1, &mut whole)?;
            out.iter_mut().enumerate().for_each(|(i, v)| *v = whole[Self::source_of(i, self.head_dim)]);
            return Ok(());
        }
        for (r, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let from = Self::source_of(r, self.head_dim);
            self.source.read_rows(from..from + 1, out)?;
        }
        Ok(())
    }
}

/// Where the file has what Hugging Face has at `index`.
fn interleave(index: usize, head_dim: usize) -> usize {
    let (head, within) = (index / head_dim, index % head_dim);
    let (side, pair) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * pair + side
}

impl RowSource for GgufRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let Some(head_dim) = self.interleaved else {
            return self.read(rows, out);
        };
        let cols = self.shape[1];
        if self.tensor.shape.len() == 1 {
            let mut whole = vec![0f32; cols];
            self.read(0..1, &mut whole)?;
            out.iter_mut().enumerate().for_each(|(i, v)| *v = whole[interleave(i, head_dim)]);
            return Ok(());
        }
        // Of no rows, a head has any size.
        if rows.is_empty() {
            return Ok(());
        }
        // Whole heads at once: a permuted row never leaves its head.
        let heads = rows.start / head_dim..rows.end.div_ceil(head_dim);
        let mut whole = vec![0f32; head_dim * cols];
        for head in heads {
            let first = head * head_dim;
            self.read(first..first + head_dim, &mut whole)?;
            for r in rows.start.max(first)..rows.end.min(first + head_dim) {
                let from = interleave(r, head_dim) - first;
                out[(r - rows.start) * cols..][..cols].copy_from_slice(&whole[from * cols..][..cols]);
            }
        }
        Ok(())
    }
}
