//! GPTQ checkpoints of both versions of the format, for gptqmodel and transformers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value as Json, json};
use tersor_core::{Context, DType, Error, LinearOp, Result, TensorInfo, TensorSink, read_finite};
use tersor_formats::json as files;
use tersor_formats::safetensors::Writer;
use tersor_models::is_embedding_or_head;
use tersor_operators::{Grid, GroupedLinear};

use super::plain::RECORD;
use super::{Source, Tensor};
use crate::output::{self, Output, Share};

/// The version of the GPTQ format. It determines how zeros (the codes that stand for the value 0) are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Zeros are stored less one, so that a matrix with a zero of code 0 cannot be stored.
    V1,
    /// Zeros are stored as they are.
    V2,
}

impl Version {
    /// Returns the version of the name `gptq` ([`V1`](Self::V1)) or `gptq-v2` ([`V2`](Self::V2)); None for any other name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "gptq" => Some(Version::V1),
            "gptq-v2" => Some(Version::V2),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Version::V1 => "gptq",
            Version::V2 => "gptq_v2",
        }
    }
}

/// Numbers of bits that the format supports.
const BITS: [u32; 4] = [2, 3, 4, 8];

/// Bits, group size (-1 for one group per row) and symmetry of a matrix, as in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    bits: u32,
    group: i64,
    symmetric: bool,
}

/// A directory in the GPTQ format, as [`export`](super::export) wrote it.
#[derive(Clone, Debug, Serialize)]
pub struct GptqExport {
    /// The directory, as it was given.
    pub out: PathBuf,
    /// The name of the version, as in the configuration: `gptq` or `gptq_v2`.
    pub to: &'static str,
    /// The number of matrices that are stored as codes; all other tensors are stored in f16 or, if they are no floats, in their own type.
    pub matrices: usize,
    /// The total length of all tensors in bytes, without headers.
    pub bytes: u64,
}

/// Writes the compressed model `source` in the GPTQ format to the directory `out`. Errors, naming the matrix, if its stored form is no uniform grid
/// of 2, 3, 4 or 8 bits in groups with scales in f16 or its shape does not fit, and otherwise as [`export`](super::export) does.
pub(crate) fn run(source: &Source, version: Version, out: &Path, cx: &Context) -> Result<GptqExport> {
    let config = source.model.config().cloned().ok_or_else(|| Error::Missing {
        name: "config.json".into(),
        place: source.model.path().display().to_string(),
    })?;
    let (mut kinds, mut layout, mut plain) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for t in source.tensors() {
        match kind(source, &t).map_err(|e| e.in_tensor(&t.name))? {
            Some((kind, shape)) => {
                layout.extend(tensors(module(&t.name), kind, shape));
                kinds.insert(t.name, kind);
            }
            None => {
                let dtype = t.non_float.unwrap_or(DType::F16);
                layout.insert(t.name.clone(), TensorInfo { dtype, shape: t.shape.clone() });
                plain.push(t);
            }
        }
    }
    let total: u64 = layout.values().map(|t| t.bytes().unwrap_or(0) as u64).sum();
    let inputs = source.inputs(version.name())?;
    if let Output::Open(work) = output::open(out, &inputs, &Json::Null, RECORD, Share::Alone)? {
        const FILE: &str = "model.safetensors";
        let names = layout.keys().cloned().collect();
        let mut writer = Writer::create(&work.pending(FILE), layout)?;
        cx.progress.begin("convert", (kinds.len() + plain.len()) as u64);
        for (name, kind) in &kinds {
            cx.cancel.check()?;
            if let Some(op) = source.grouped(name)? {
                write(&op, *kind, version, module(name), &mut writer).map_err(|e| e.in_tensor(name))?;
            }
            cx.progress.advance(1, name);
        }
        for t in &plain {
            cx.cancel.check()?;
            write_plain(source, t, &mut writer).map_err(|e| e.in_tensor(&t.name))?;
            cx.progress.advance(1, &t.name);
        }
        cx.progress.end();
        writer.finish()?;
        let quantization = quantization(&kinds, version);
        let mut config = config;
        config["torch_dtype"] = "float16".into();
        config["quantization_config"] = quantization.clone();
        let mut beside = output::companions(&source.model, Some(config), &[(FILE.into(), names)], total)?;
        beside.push(("quantize_config.json".into(), files::to_bytes(&quantization)));
        work.finish(&[FILE.into()], &beside, (RECORD, files::to_bytes(&json!({"inputs": inputs}))), &*cx.progress)?;
    }
    Ok(GptqExport { out: out.to_path_buf(), to: version.name(), matrices: kinds.len(), bytes: total })
}

fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Returns kind and shape of a matrix that is stored in the format; None for a tensor that is stored in f16 or in its own type. Errors if the format
/// does not support the matrix.
fn kind(source: &Source, t: &Tensor) -> Result<Option<(Kind, [usize; 2])>> {
    let Some(spec) = source.spec(&t.name).filter(|_| !is_embedding_or_head(&t.name)) else { return Ok(None) };
    if spec.kind == tersor_operators::Dense::KIND {
        return Ok(None);
    }
    let refuse = |value: String| Err(Error::Unsupported { what: "GPTQ format", value });
    let Some(op) = source.grouped(&t.name)? else {
        return refuse(format!("a matrix of kind `{}`; only grids over groups are", spec.kind));
    };
    let (grid, [rows, cols]) = (op.group_spec(), op.shape());
    let (bits, width) = (grid.bits().get(), grid.group().width(cols));
    if !BITS.contains(&bits) {
        return refuse(format!("{bits} bits; only 2, 3, 4 and 8 are"));
    }
    if !rows.is_multiple_of(32) || !cols.is_multiple_of(32) || !cols.is_multiple_of(width.max(1)) {
        return refuse(format!(
            "[{rows}, {cols}] in groups of {width}; rows and columns must be multiples of 32, and groups must divide the columns"
        ));
    }
    if grid.scale_dtype() != DType::F16 {
        return refuse(format!("scales in {}; only f16 is", grid.scale_dtype().name()));
    }
    let group = if width == cols { -1 } else { width as i64 };
    Ok(Some((Kind { bits, group, symmetric: grid.grid() != Grid::Asym }, [rows, cols])))
}

/// Returns name, type and shape of the four tensors of a matrix.
fn tensors(module: &str, kind: Kind, [rows, cols]: [usize; 2]) -> [(String, TensorInfo); 4] {
    let groups = if kind.group < 0 { 1 } else { cols / kind.group as usize };
    let packed = |n: usize| n * kind.bits as usize / 32;
    let tensor =
        |name: &str, dtype, shape: &[usize]| (format!("{module}.{name}"), TensorInfo { dtype, shape: shape.to_vec() });
    [
        tensor("qweight", DType::I32, &[packed(cols), rows]),
        tensor("qzeros", DType::I32, &[groups, packed(rows)]),
        tensor("scales", DType::F16, &[groups, rows]),
        tensor("g_idx", DType::I32, &[cols]),
    ]
}

/// Writes the tensors of a matrix. Codes are packed along the input features, zeros along the output features.
fn write(op: &GroupedLinear, kind: Kind, version: Version, module: &str, sink: &mut Writer) -> Result<()> {
    let (bits, [rows, cols]) = (kind.bits, op.shape());
    let width = op.group_spec().group().width(cols).max(1);
    let layout = tensors(module, kind, [rows, cols]);
    let groups = cols / width;
    let mut weight = vec![0u32; cols * bits as usize / 32 * rows];
    let mut zeros = vec![0u32; groups * rows * bits as usize / 32];
    let mut scales = vec![0f32; groups * rows];
    let all: Vec<u8> = op.zeros().collect();
    for r in 0..rows {
        for (k, code) in op.row_codes(r)?.into_iter().enumerate() {
            put(&mut weight, k, bits, rows, r, code);
        }
        for g in 0..groups {
            let zero = all[r * groups + g];
            let stored = match version {
                Version::V2 => zero,
                Version::V1 => zero.checked_sub(1).ok_or_else(|| Error::Unsupported {
                    what: "GPTQ format, version 1",
                    value: format!("the zero of row {r}, group {g} is code 0, which it cannot store; choose gptq-v2"),
                })?,
            };
            put(&mut zeros[g * rows * bits as usize / 32..], r, bits, 1, 0, stored);
            scales[g * rows + r] = op.scales()[r * groups + g];
        }
    }
    let mut halves = vec![0u8; scales.len() * 2];
    DType::F16.narrow_bytes(&scales, &mut halves)?;
    let words = |w: &[u32]| w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let index: Vec<u32> = (0..cols).map(|k| (k / width) as u32).collect();
    for ((name, info), bytes) in layout.iter().zip([words(&weight), words(&zeros), halves, words(&index)]) {
        sink.write_shared(name, info, &bytes)?;
    }
    Ok(())
}

/// Packs code `index` of a sequence into 32-bit words that are `stride` apart, from the low bits up. A code may span two words.
fn put(words: &mut [u32], index: usize, bits: u32, stride: usize, column: usize, code: u8) {
    let at = index * bits as usize;
    let shifted = u64::from(code) << (at % 32);
    words[at / 32 * stride + column] |= shifted as u32;
    if shifted >> 32 != 0 {
        words[(at / 32 + 1) * stride + column] |= (shifted >> 32) as u32;
    }
}

/// Writes a tensor in f16, or in its own type if that is no float.
fn write_plain(source: &Source, t: &Tensor, sink: &mut Writer) -> Result<()> {
    let info = TensorInfo { dtype: t.non_float.unwrap_or(DType::F16), shape: t.shape.clone() };
    let mut bytes = vec![0u8; info.bytes()?];
    match (t.non_float, source.model.stored()) {
        (Some(_), Some(stored)) => stored.read_at(&t.name, 0, &mut bytes)?,
        _ => {
            let rows = source.rows(&t.name)?;
            let values = read_finite(&*rows, 0..rows.shape()[0])?;
            DType::F16.narrow_bytes(&values, &mut bytes)?;
            let mut back = vec![0f32; values.len()];
            DType::F16.widen_bytes(&bytes, &mut back)?;
            tersor_core::check_finite(&back, rows.shape()[1], 0)?;
        }
    }
    sink.write_shared(&t.name, &info, &bytes)
}

/// Returns the quantization configuration: the most frequent kind, and under `dynamic` the matrices of other kinds.
fn quantization(kinds: &BTreeMap<String, Kind>, version: Version) -> Json {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    kinds.values().for_each(|k| *counts.entry(*k).or_default() += 1);
    let main = counts.into_iter().max_by_key(|c| c.1).map_or(Kind { bits: 4, group: 128, symmetric: true }, |c| c.0);
    let own = |k: Kind| json!({"bits": k.bits, "group_size": k.group, "sym": k.symmetric, "desc_act": false});
    let mut all = own(main);
    all["quant_method"] = "gptq".into();
    all["checkpoint_format"] = version.name().into();
    all["lm_head"] = false.into();
    all["meta"] = json!({"quantizer": [concat!("tersor:", env!("CARGO_PKG_VERSION"))]});
    let others = kinds.iter().filter(|(_, k)| **k != main);
    let dynamic: serde_json::Map<String, Json> =
        others.map(|(n, k)| (format!("+:^{}$", module(n).replace('.', "\\.")), own(*k))).collect();
    if !dynamic.is_empty() {
        all["dynamic"] = dynamic.into();
    }
    all
}
