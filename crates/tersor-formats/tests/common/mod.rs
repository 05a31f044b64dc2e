//! Small files made in memory, and functions that corrupt them.
#![allow(dead_code)]

use std::collections::BTreeMap;

use tersor_core::{DType, Error, Limits, RowSource, TensorInfo, TensorSource};
use tersor_formats::{gguf, safetensors};

/// A safetensors file with this header and data.
pub fn safetensors_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// A canonical file of three tensors.
pub fn small_safetensors() -> Vec<u8> {
    let info = |dtype, shape: &[usize]| TensorInfo { dtype, shape: shape.to_vec() };
    let tensors = BTreeMap::from([
        ("a.weight".to_string(), info(DType::F32, &[2, 3])),
        ("b.codes".to_string(), info(DType::U8, &[5])),
        ("c".to_string(), info(DType::F16, &[])),
    ]);
    let (header, mut bytes) = safetensors::Header::canonical(&tensors).unwrap();
    bytes.extend((0..header.file_len() as usize - bytes.len()).map(|i| (i * 7 % 60) as u8));
    bytes
}

/// Opens safetensors bytes and reads all tensors.
pub fn read_safetensors(bytes: Vec<u8>) -> Result<usize, Error> {
    let file = safetensors::File::new(Box::new(bytes), &Limits::default())?;
    let mut total = 0;
    for name in file.names() {
        let mut out = vec![0u8; file.info(&name)?.bytes()?];
        file.read_at(&name, 0, &mut out)?;
        total += out.len();
    }
    Ok(total)
}

/// Builds GGUF files field by field.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<GgufEntry>,
    pub data: Vec<u8>,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
}

/// An entry of the tensor table, dimensions fastest-varying first.
#[derive(Clone)]
pub struct GgufEntry {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

pub fn string(s: &[u8]) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s);
    out
}

impl Gguf {
    pub fn new() -> Self {
        let (keys, tensors, data) = Default::default();
        Self { magic: *b"GGUF", version: 3, keys, tensors, data, tensor_count: None, key_count: None }
    }

    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.keys.push((key.into(), 8, string(value.as_bytes())));
        self
    }

    pub fn u32(mut self, key: &str, value: u32) -> Self {
        self.keys.push((key.into(), 4, value.to_le_bytes().to_vec()));
        self
    }

    pub fn f32(mut self, key: &str, value: f32) -> Self {
        self.keys.push((key.into(), 6, value.to_le_bytes().to_vec()));
        self
    }

    /// Adds an array of items of one type, given as bytes.
    pub fn array(mut self, key: &str, kind: u32, items: &[Vec<u8>]) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((items.len() as u64).to_le_bytes());
        value.extend(items.concat());
        self.keys.push((key.into(), 9, value));
        self
    }

    /// Adds a tensor whose data follows that of the previous one, at a multiple of 32.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.tensors.push(GgufEntry { name: name.into(), dims: dims.to_vec(), kind, offset });
        self.data.extend(data);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend(string(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// Keys of every type, an array of arrays, and tensors of four types.
pub fn small_gguf() -> Gguf {
    let mut g = Gguf::new().text("general.architecture", "llama").u32("general.alignment", 32).f32("f", 0.5);
    let scalars: [(u32, usize); 9] = [(0, 1), (1, 1), (2, 2), (3, 2), (5, 4), (7, 1), (10, 8), (11, 8), (12, 8)];
    for (kind, size) in scalars {
        let mut value = vec![0u8; size];
        value[0] = 1;
        g.keys.push((format!("k{kind}"), kind, value));
    }
    let inner = |n: u8| {
        let mut v = 0u32.to_le_bytes().to_vec();
        v.extend(u64::from(n).to_le_bytes());
        v.extend((0..n).collect::<Vec<_>>());
        v
    };
    let texts: Vec<Vec<u8>> = ["a", "bc", ""].iter().map(|s| string(s.as_bytes())).collect();
    let block = |n: usize| -> Vec<u8> { (0..n).map(|i| (i * 5 % 48) as u8).collect() };
    g.array("nested", 9, &[inner(3), inner(0)])
        .array("texts", 8, &texts)
        .tensor("x", &[3, 2], 0, &block(24))
        .tensor("y", &[32], 2, &block(18))
        .tensor("z", &[256, 2], 14, &block(420))
        .tensor("w", &[4, 1], 1, &block(8))
}

/// Opens GGUF bytes and decodes every matrix in them.
pub fn read_gguf(bytes: Vec<u8>) -> Result<usize, Error> {
    let file = gguf::File::new(Box::new(bytes), &Limits::default())?;
    let mut total = 0;
    for name in file.tensors().keys() {
        let rows = file.rows(name)?;
        let [n, cols] = rows.shape();
        let mut out = vec![0f32; n * cols];
        rows.read_rows(0..n, &mut out)?;
        total += out.len();
    }
    let _ = gguf::hf_config(&file);
    Ok(total)
}
