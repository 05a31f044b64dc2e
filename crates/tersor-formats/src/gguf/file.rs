//! Reads a GGUF file: header, tensor table, and rows dequantized on demand.

use super::meta::Cursor;
use super::{BlockType, Meta};
use crate::{FileAt, ReadAt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tersor_core::rows::{check_range, rows_and_columns};
use tersor_core::{DType, Error, Limits, Result, RowSource, TensorInfo};

/// Shape, stored type, and byte range in the file of one tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Sizes of the tensor's axes, slowest-varying first (the reverse of the order in the file): `[out_features, in_features]` for a
    /// matrix.
    pub shape: Vec<usize>,
    /// Stored type of the tensor's elements: floats, or quantized blocks.
    pub kind: BlockType,
    /// Offset of the tensor's data from the start of the file, in bytes.
    pub offset: u64,
    /// Length of the tensor's stored data in bytes, without padding.
    pub bytes: u64,
}

/// An open GGUF file of version 2 or 3, little-endian. Its metadata and its tensor table (names, shapes, types, offsets) are in memory;
/// tensor data is read from the file when it is needed.
///
/// ```
/// use tersor_core::{Limits, RowSource};
/// use tersor_formats::gguf::{BlockType, File, MetaWriter, Writer};
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("model.gguf");
/// let mut meta = MetaWriter::new();
/// meta.text("general.architecture", "llama").uint("llama.block_count", 1);
/// let mut out = Writer::create(&path, &meta, &[("w".into(), vec![2, 32], BlockType::Q8_0)]).unwrap();
/// out.write("w", &[1.0; 64]).unwrap();
/// out.finish().unwrap();
///
/// let file = File::open(&path, &Limits::default()).unwrap();
/// assert_eq!(file.meta().uint("llama.block_count"), Some(1));
/// let mut row = [0.0; 32];
/// file.rows("w").unwrap().read_rows(1..2, &mut row).unwrap();
/// assert!(row.iter().all(|v| (v - 1.0).abs() < 1e-3));
/// ```
pub struct File {
    source: Box<dyn ReadAt>,
    meta: Meta,
    spans: BTreeMap<String, Range<u64>>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl File {
    /// Opens the GGUF file at `path` and reads and checks its header, metadata and tensor table. Errors if it is not a regular file that
    /// can be opened, and under the conditions of [`File::new`]: it is no GGUF file of version 2 or 3, is above `limits`, or is
    /// inconsistent.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Box::new(FileAt::open(path)?), limits)
    }

    /// Reads and checks header, metadata and tensor table of a GGUF file from any source of bytes.
    ///
    /// Errors if the source does not begin with `GGUF` and version 2 or 3, ends early, or has a count or length above `limits`. Errors if
    /// the metadata has a value of an unknown type, a boolean other than 0 and 1, a string that is not UTF-8, or the same key twice. Errors
    /// if a tensor has an unknown type, more than 4 axes, rows that are not whole blocks, or the same name as another. Errors if the
    /// alignment (`general.alignment`, 32 bytes if the key is missing) is not a power of two. Errors if a tensor's data does not begin at a
    /// multiple of the alignment, reaches beyond the end of the source, or overlaps the data of another tensor.
    pub fn new(source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let (meta, spans, tensors) = {
            let mut cursor = Cursor::new(&*source, limits);
            let magic = cursor.u32()?;
            if magic != u32::from_le_bytes(*b"GGUF") {
                return Err(Error::format(source.name(), "it does not begin with `GGUF`, so it is not a GGUF file"));
            }
            let version = cursor.u32()?;
            if !(2..=3).contains(&version) {
                let value = format!("{version} (supported: 2 and 3, little-endian)");
                return Err(Error::Unsupported { what: "GGUF version", value });
            }
            let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
            let (meta, spans) = cursor.meta(keys)?;
            let tensors = table(&mut cursor, tensors, &meta, source.len(), limits)?;
            (meta, spans, tensors)
        };
        Ok(Self { source, meta, spans, tensors })
    }

    /// Returns the file's metadata: a map from keys such as `llama.block_count` to typed values.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Returns the value of the metadata key `key` as the file stores it: the number of its type in four bytes, then the value,
    /// little-endian. [`MetaWriter::raw`](super::MetaWriter::raw) writes such bytes to another file. Errors if the file has no such key, or
    /// cannot be read.
    pub fn raw_meta(&self, key: &str) -> Result<Vec<u8>> {
        let missing = || Error::Missing { name: key.into(), place: self.source.name() };
        let span = self.spans.get(key).ok_or_else(missing)?;
        let mut bytes = vec![0u8; (span.end - span.start) as usize];
        self.source.read_at(span.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns shape, stored type and byte range of every tensor, by its name in the file (llama.cpp's naming).
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Returns the length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.source.len()
    }

    /// Returns a source of the rows of the tensor `name` (its name in the file), as a matrix `[rows, cols]` with the rows in the order of
    /// the file. Rows are dequantized to f32 when they are read. `cols` is the size of the last (fastest-varying) axis, `rows` the product
    /// of the sizes of the others; a vector is one row. Errors if the file has no tensor of that name.
    pub fn rows(&self, name: &str) -> Result<GgufRows<'_>> {
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| Error::Missing { name: name.into(), place: self.source.name() })?;
        let shape = rows_and_columns(&tensor.shape).map_err(|e| e.in_tensor(name))?;
        Ok(GgufRows { source: &*self.source, tensor, shape, interleaved: None })
    }
}

/// Reads and checks the tensor table of `count` entries; `len` is the length of the file.
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
            let what = format!("{columns} columns are not a whole number of blocks of {}", kind.elements());
            return Err(cursor.bad(format!("tensor `{name}`: {what}")));
        }
        shape.reverse();
        // Sizes are checked for f32, the largest form that decoding gives, with empty axes counted as 1.
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
            return Err(cursor.bad(format!("tensor `{name}` reaches beyond the end of the file of {len} bytes")));
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

/// The rows of one GGUF tensor as a [`RowSource`], a matrix `[rows, cols]` that is read a range of rows at a time. Rows are read from the
/// file and dequantized to f32 on each call. [`File::rows`] makes it.
pub struct GgufRows<'a> {
    source: &'a dyn ReadAt,
    tensor: &'a GgufTensor,
    shape: [usize; 2],
    /// Rows per head, if the rows are stored in the order of interleaved rotary embedding and are to be un-permuted.
    interleaved: Option<usize>,
}

impl GgufRows<'_> {
    /// Returns this source with its rows (for a vector: its elements) in Hugging Face's order instead of llama.cpp's, for the query and key
    /// weights of a Llama model. llama.cpp stores the two rows of each rotary pair side by side; Hugging Face stores, within each head of
    /// `head_dim` rows, the first rows of all pairs, then the second ones. Errors if `head_dim` is 0 or odd, or does not divide the number
    /// of rows (for a vector: of elements).
    pub fn unpermuted(mut self, head_dim: usize) -> Result<Self> {
        let rows = self.tensor.shape.first().copied().unwrap_or(0);
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
            return Err(Error::shape("rows in heads", format!("a multiple of {head_dim}, which is even"), rows));
        }
        self.interleaved = Some(head_dim);
        Ok(self)
    }

    /// Reads rows in the order of the file.
    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = self.shape[1] / self.tensor.kind.elements() * self.tensor.kind.bytes();
        let mut bytes = vec![0u8; rows.len() * width];
        self.source.read_at(self.tensor.offset + (rows.start * width) as u64, &mut bytes)?;
        self.tensor.kind.decode(&bytes, out)
    }
}

/// A source of rows ([`RowSource`]) that reads another source with its rows permuted from Hugging Face's order to that of a Llama GGUF
/// file, for writing query and key weights. It is the inverse of [`GgufRows::unpermuted`].
///
/// ```
/// use tersor_core::{MatView, RowSource};
/// use tersor_formats::gguf::InterleavedRows;
/// let source = MatView::new(&[0.0f32, 1.0, 2.0, 3.0], [4, 1]).unwrap();
/// let mut out = [0.0; 4];
/// InterleavedRows::new(&source, 4).unwrap().read_rows(0..4, &mut out).unwrap();
/// assert_eq!(out, [0.0, 2.0, 1.0, 3.0]);
/// ```
pub struct InterleavedRows<'a> {
    source: &'a dyn RowSource,
    head_dim: usize,
}

impl<'a> InterleavedRows<'a> {
    /// Returns the rows of `source`, which form heads of `head_dim` consecutive rows in Hugging Face's order, in the order of a Llama GGUF
    /// file. Row `i` of the first half of a head becomes row `2 i` of that head, row `i` of the second half becomes row `2 i + 1`. If
    /// `source` has one row (a vector), its elements are reordered like this instead. Errors if `head_dim` is 0 or odd, or does not divide
    /// the number of rows (for a vector: of elements).
    pub fn new(source: &'a dyn RowSource, head_dim: usize) -> Result<Self> {
        let n = source.shape()[usize::from(source.shape()[0] == 1)];
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !n.is_multiple_of(head_dim) {
            return Err(Error::shape("rows in heads", format!("a multiple of {head_dim}, which is even"), n));
        }
        Ok(Self { source, head_dim })
    }

    /// Returns the index, in Hugging Face's order, of the row that a Llama GGUF file stores at `index`. Both indices count the rows of the
    /// whole matrix from 0. `head_dim` is the number of rows of a head and must be even: an odd number gives a meaningless index. Panics if
    /// `head_dim` is 0.
    pub fn hf_index(index: usize, head_dim: usize) -> usize {
        let (head, within) = (index / head_dim, index % head_dim);
        head * head_dim + within % 2 * (head_dim / 2) + within / 2
    }
}

impl RowSource for InterleavedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.source.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [all, cols] = self.shape();
        check_range([all, cols], &rows, out.len())?;
        if all == 1 {
            let mut whole = vec![0f32; cols];
            self.source.read_rows(0..1, &mut whole)?;
            out.iter_mut().enumerate().for_each(|(i, v)| *v = whole[Self::hf_index(i, self.head_dim)]);
            return Ok(());
        }
        for (r, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let from = Self::hf_index(r, self.head_dim);
            self.source.read_rows(from..from + 1, out)?;
        }
        Ok(())
    }
}

/// Returns the index in a Llama GGUF file of the row that Hugging Face stores at `index`: the inverse of [`InterleavedRows::hf_index`].
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
        // A matrix without rows may have heads of any size: nothing is allocated for it.
        if rows.is_empty() {
            return Ok(());
        }
        // Reads whole heads, since rows are permuted only within a head.
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
