//! The header, with the checks of the reference implementation and a check for duplicate names.

use crate::ReadAt;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tersor_core::{DType, Error, Limits, Result, TensorInfo};

/// Type, shape, and byte range in the file of one tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type and shape of the tensor.
    pub info: TensorInfo,
    /// Offset of the tensor's data from the start of the file (not of the data section), in bytes.
    pub offset: u64,
    /// Length of the tensor's data in bytes.
    pub bytes: u64,
}

/// The header of a safetensors file: type, shape and byte range of every tensor, and the file's metadata.
///
/// ```
/// use tersor_core::{DType, Limits, TensorInfo};
/// use tersor_formats::safetensors::Header;
/// let info = TensorInfo { dtype: DType::F32, shape: vec![2] };
/// let (header, mut file) = Header::canonical(&[("w".to_string(), info)].into()).unwrap();
/// file.resize(header.file_len() as usize, 0);
/// assert_eq!(Header::read(&file, &Limits::default()).unwrap(), header);
/// file.pop();
/// assert!(Header::read(&file, &Limits::default()).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Type, shape and byte range of every tensor of the file, by name.
    pub tensors: BTreeMap<String, Entry>,
    /// The key-value pairs of the header's `__metadata__` entry; empty if the header has none.
    pub metadata: BTreeMap<String, String>,
    /// Offset of the tensor data from the start of the file, in bytes: 8 plus the length of the JSON header.
    pub data_start: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Entries in file order, before the check for duplicates, and the metadata.
struct RawHeader(Vec<(String, RawTensor)>, Vec<(String, String)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RawHeader;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a safetensors header")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let (mut tensors, mut metadata, mut seen) = (Vec::new(), Vec::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut seen, true) {
                            return Err(serde::de::Error::custom("`__metadata__` appears twice"));
                        }
                        metadata = map.next_value::<BTreeMap<String, String>>()?.into_iter().collect();
                    } else {
                        tensors.push((name, map.next_value::<RawTensor>()?));
                    }
                }
                Ok(RawHeader(tensors, metadata))
            }
        }
        d.deserialize_map(V)
    }
}

impl Header {
    /// Reads and checks the header of a safetensors file. Errors if the header is longer than `limits.header_bytes` or than the file, is
    /// not valid JSON of the format's form, has more tensors or axes than `limits` allow, names a tensor twice, or has an unknown type; and
    /// if the tensors' byte ranges leave a hole, overlap, disagree with type and shape, or do not end at the end of the file.
    pub fn read(file: &dyn ReadAt, limits: &Limits) -> Result<Self> {
        let bad = |what: String| Error::format(file.name(), what);
        let mut length = [0u8; 8];
        if file.len() < 8 {
            return Err(bad(format!("{} bytes are too few for a safetensors file, which has at least 8", file.len())));
        }
        file.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        Limits::check("length of a safetensors header", length, limits.header_bytes)?;
        if length > file.len() - 8 {
            return Err(bad(format!("a header of {length} bytes does not fit into the file of {} bytes", file.len())));
        }
        let mut json = vec![0u8; length as usize];
        file.read_at(8, &mut json)?;
        if json.first() != Some(&b'{') {
            return Err(bad("the header does not begin with `{`".into()));
        }
        let raw: RawHeader = serde_json::from_slice(&json).map_err(|e| bad(format!("header: {e}")))?;
        Limits::check("number of tensors", raw.0.len() as u64, limits.tensors)?;
        Self::check(raw, 8 + length, file, limits)
    }

    fn check(raw: RawHeader, data_start: u64, file: &dyn ReadAt, limits: &Limits) -> Result<Self> {
        let bad = |what: String| Error::format(file.name(), what);
        let mut header = Header { data_start, metadata: raw.1.into_iter().collect(), ..Self::default() };
        let mut spans = Vec::with_capacity(raw.0.len());
        for (name, t) in raw.0 {
            let dtype = DType::from_name(&t.dtype).filter(|d| d.name() == t.dtype).ok_or_else(|| {
                Error::Unsupported { what: "type of a tensor", value: t.dtype.clone() }.in_tensor(&name)
            })?;
            Limits::check("axes of a tensor", t.shape.len() as u64, limits.axes).map_err(|e| e.in_tensor(&name))?;
            let shape = t.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
            let shape =
                shape.ok_or_else(|| Error::Overflow { what: format!("shape {:?}", t.shape) }.in_tensor(&name))?;
            let info = TensorInfo { dtype, shape };
            let size = info.bytes().map_err(|e| e.in_tensor(&name))? as u64;
            let [start, end] = t.data_offsets;
            if end.checked_sub(start) != Some(size) {
                let found = format!("offsets {start}..{end}");
                return Err(
                    Error::Shape { what: "bytes of a tensor", expected: size.to_string(), found }.in_tensor(&name)
                );
            }
            spans.push((start, end, name.clone()));
            let offset = data_start.checked_add(start).ok_or_else(|| bad(format!("offset {start} overflows")))?;
            if header.tensors.insert(name.clone(), Entry { info, offset, bytes: size }).is_some() {
                return Err(bad(format!("tensor `{name}` appears twice")));
            }
        }
        spans.sort();
        let mut at = 0;
        for (start, end, name) in spans {
            if start != at {
                let what = if start > at { "a hole" } else { "an overlap" };
                return Err(bad(format!("{what} before tensor `{name}`: its data begins at {start}, not {at}")));
            }
            at = end;
        }
        if data_start.checked_add(at) != Some(file.len()) {
            return Err(bad(format!("the data ends at {}, the file at {}", data_start.saturating_add(at), file.len())));
        }
        Ok(header)
    }

    /// Lays out a file of the tensors `tensors` (type and shape by name). Returns its header, and the first bytes of the file: the header's
    /// length in eight little-endian bytes, then the header in JSON. The layout is canonical: JSON keys are sorted, data is ordered by
    /// element size (largest first), then by name, there is no metadata, and the header is padded with spaces to a multiple of 8 bytes.
    /// Errors if a size overflows or a tensor is called `__metadata__`.
    pub fn canonical(tensors: &BTreeMap<String, TensorInfo>) -> Result<(Self, Vec<u8>)> {
        let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
        order.sort_by_key(|(name, t)| (std::cmp::Reverse(t.dtype.size()), *name));
        let mut raw = BTreeMap::new();
        let mut at = 0u64;
        for (name, t) in &order {
            if *name == "__metadata__" {
                return Err(Error::format("safetensors", "a tensor may not be called `__metadata__`"));
            }
            let size = t.bytes().map_err(|e| e.in_tensor(name))? as u64;
            let end = at.checked_add(size).ok_or_else(|| Error::Overflow { what: "a safetensors file".into() })?;
            let shape = t.shape.iter().map(|&d| d as u64).collect();
            raw.insert(*name, RawTensor { dtype: t.dtype.name().into(), shape, data_offsets: [at, end] });
            at = end;
        }
        let mut json = serde_json::to_vec(&raw).map_err(|e| Error::format("safetensors header", e.to_string()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let data_start = 8 + json.len() as u64;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        let entry = |t: &TensorInfo, r: &RawTensor| Entry {
            info: t.clone(),
            offset: data_start + r.data_offsets[0],
            bytes: r.data_offsets[1] - r.data_offsets[0],
        };
        let entries = order.iter().map(|(n, t)| ((*n).clone(), entry(t, &raw[n]))).collect();
        Ok((Self { tensors: entries, metadata: BTreeMap::new(), data_start }, bytes))
    }

    /// Returns the length of the whole file in bytes, header and tensor data together.
    pub fn file_len(&self) -> u64 {
        self.tensors.values().map(|e| e.offset + e.bytes).max().unwrap_or(self.data_start)
    }
}
