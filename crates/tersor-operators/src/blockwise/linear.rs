//! [`BlockwiseLinear`]: a matrix in blocks under a codebook.

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::view::elements;
use tersor_core::{DType, Error, Exec, Layout, LinearOp, Loading, OpSpec, Result, RowSlot, TensorInfo, TensorSink};

use super::{Map, MapKind, NESTED_BLOCK, Quantized, Scales};

/// Characters of any number of 64 bits in JSON, at most.
const LONGEST_NUMBER: usize = 24;

/// A matrix `[out_features, in_features]` whose values, row after row, are cut into blocks.
///
/// Stored as bitsandbytes stores a 4-bit weight: codes under the name of the matrix (u8, `[bytes, 1]`), `absmax` (f32, or u8 where scales are
/// quantized, `[blocks]`), `quant_map` (f32, `[values]`), with quantized scales `nested_absmax` (f32) and `nested_quant_map` (f32, `[256]`), and
/// `quant_state.bitsandbytes__<map>`, JSON with the rest.
#[derive(Clone, PartialEq, Debug)]
pub struct BlockwiseLinear {
    values: Quantized,
    shape: [usize; 2],
}

impl BlockwiseLinear {
    /// The kind in specifications.
    pub const KIND: &'static str = "blockwise";

    /// Takes quantized values, row by row. Errors unless there are as many as the shape has.
    pub fn new(values: Quantized, shape: [usize; 2]) -> Result<Self> {
        if elements(shape)? != values.len() {
            return Err(Error::shape("values of a matrix", elements(shape)?, values.len()));
        }
        Ok(Self { values, shape })
    }

    /// Returns codes and scales.
    pub fn quantized(&self) -> &Quantized {
        &self.values
    }

    /// Returns the exact stored bits over the number of weights, codebook and description included; 0 for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        if self.values.is_empty() { 0.0 } else { self.storage_bits() as f64 / self.values.len() as f64 }
    }

    fn stored(&self, rows: usize) -> BlockwiseForm<'_> {
        let q = &self.values;
        BlockwiseForm {
            map: q.map(),
            block: q.block(),
            nested: q.is_nested(),
            dtype: q.dtype(),
            shape: [rows, self.shape[1]],
        }
    }
}

impl LinearOp for BlockwiseLinear {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn storage_bits(&self) -> u64 {
        self.stored(self.shape[0]).layout().bits().unwrap_or(u64::MAX)
    }

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let cols = self.shape[1];
        self.values.read(rows.start * cols..rows.end * cols, out, exec.isa())
    }

    fn spec_block(&self, at: RowSlot) -> OpSpec {
        let q = &self.values;
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape[1]]).text("map", q.map().kind().name());
        let spec = spec.size("block", q.block()).text("dtype", q.dtype().name());
        match q.scales() {
            Scales::Plain(_) => spec,
            Scales::Nested { offset, .. } => spec.float("offset", *offset),
        }
    }

    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.stored(at.total).save(&self.values, at.first, prefix, sink)
    }
}

/// Loads a matrix. Errors if its tensors do not fit each other or the specification.
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let source = loading.source();
    let unknown = |what: &'static str, value: &str| Error::Unsupported { what, value: value.to_string() };
    let dtype = spec.get_text("dtype")?;
    let dtype = DType::from_name(dtype).filter(|d| d.is_weight()).ok_or_else(|| unknown("type of a weight", dtype))?;
    let (len, block) = (elements(spec.shape)?, spec.get_size("block")?);
    if block == 0 || block > 1 << 30 {
        return Err(Error::range("values of a block", "1 to 2^30", block));
    }
    let name = join(prefix, "quant_map");
    let count = source.info(&name)?.shape.first().copied().unwrap_or(0).min(256);
    let map = Map::known(&read_floats(source, &name, &[count])?).map_err(|e| Error::from(e).in_tensor(&name))?;
    if spec.get_text("map")? != map.kind().name() && map.kind() != MapKind::Custom {
        return Err(Error::format(name, format!("holds the map `{}`", map.kind().name())));
    }
    let (blocks, absmax) = (len.div_ceil(block), join(prefix, "absmax"));
    let scales = if spec.params.contains_key("offset") {
        let inner = join(prefix, "nested_quant_map");
        if read_floats(source, &inner, &[256])? != Map::dynamic(true).values() {
            return Err(Error::format(inner, "is not the signed dynamic map"));
        }
        Scales::Nested {
            codes: read_expected(source, &absmax, DType::U8, &[blocks])?,
            absmax: read_floats(source, &join(prefix, "nested_absmax"), &[blocks.div_ceil(NESTED_BLOCK)])?,
            offset: spec.get_float("offset")? as f32,
        }
    } else {
        Scales::Plain(read_floats(source, &absmax, &[blocks])?)
    };
    let bytes = if map.bits() == 4 { len.div_ceil(2) } else { len };
    let codes = read_expected(source, prefix, DType::U8, &[bytes, 1])?;
    let values = Quantized::from_parts(map, block, len, dtype, codes, scales)?;
    Ok(Box::new(BlockwiseLinear::new(values, spec.shape)?))
}

/// The stored form of a matrix in blocks, known before there are codes.
#[derive(Clone, Copy, Debug)]
pub struct BlockwiseForm<'a> {
    /// The codebook.
    pub map: &'a Map,
    /// Values of a block, at least 1.
    pub block: usize,
    /// Whether scales are quantized.
    pub nested: bool,
    /// The type that the values came in.
    pub dtype: DType,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
}

impl BlockwiseForm<'_> {
    fn state_name(&self) -> String {
        format!("quant_state.bitsandbytes__{}", self.map.kind().name())
    }

    /// Returns the JSON description, whose length does not depend on the offset of quantized scales.
    fn state(&self, offset: Option<f32>) -> Vec<u8> {
        let ([rows, cols], kind, dtype) = (self.shape, self.map.kind().name(), torch_name(self.dtype));
        let mut text =
            format!(r#"{{"quant_type":"{kind}","blocksize":{},"dtype":"{dtype}","shape":[{rows},{cols}]"#, self.block);
        let mut length = text.len() + 1;
        if let Some(offset) = offset {
            text.push_str(&format!(r#","nested_blocksize":{NESTED_BLOCK},"nested_dtype":"float32","nested_offset":"#));
            length = text.len() + 1 + LONGEST_NUMBER;
            text.push_str(&json_number(f64::from(offset)));
        }
        text.push('}');
        let mut bytes = text.into_bytes();
        bytes.resize(length, b' ');
        bytes
    }

    /// Returns the tensors.
    pub fn layout(&self) -> Layout {
        // A product that overflows was refused by whoever took the shape.
        let len = self.shape[0].saturating_mul(self.shape[1]);
        let blocks = len.div_ceil(self.block.max(1));
        let bytes = if self.map.bits() == 4 { len.div_ceil(2) } else { len };
        let state = self.state(self.nested.then_some(0.0)).len();
        let mut tensors = vec![
            (String::new(), DType::U8, vec![bytes, 1]),
            ("absmax".into(), if self.nested { DType::U8 } else { DType::F32 }, vec![blocks]),
            ("quant_map".into(), DType::F32, vec![self.map.values().len()]),
        ];
        if self.nested {
            tensors.push(("nested_absmax".into(), DType::F32, vec![blocks.div_ceil(NESTED_BLOCK)]));
            tensors.push(("nested_quant_map".into(), DType::F32, vec![256]));
        }
        tensors.push((self.state_name(), DType::U8, vec![state]));
        let tensors = tensors.into_iter().map(|(n, dtype, shape)| (n, TensorInfo { dtype, shape })).collect();
        Layout { tensors, exact: true }
    }

    /// Writes rows from `first` on, which must begin with a block and at a whole byte.
    fn save(&self, q: &Quantized, first: usize, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let at = first.saturating_mul(self.shape[1]);
        let per_byte = if self.map.bits() == 4 { 2 } else { 1 };
        if first > 0 && (self.nested || !at.is_multiple_of(self.block) || !at.is_multiple_of(per_byte)) {
            return Err(Error::shape("first row of a part", format!("whole blocks of {}", self.block), first));
        }
        let floats = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for (suffix, info) in &self.layout().tensors {
            let name = join(prefix, suffix);
            match (suffix.as_str(), q.scales()) {
                ("", _) => sink.write_rows(&name, info, at / per_byte, q.codes())?,
                ("absmax", Scales::Plain(s)) => sink.write_rows(&name, info, at / self.block, &floats(s))?,
                ("absmax", Scales::Nested { codes, .. }) => sink.write_rows(&name, info, 0, codes)?,
                ("quant_map", _) => sink.write_shared(&name, info, &floats(self.map.values()))?,
                ("nested_absmax", Scales::Nested { absmax, .. }) => sink.write_rows(&name, info, 0, &floats(absmax))?,
                ("nested_quant_map", _) => {
                    sink.write_shared(&name, info, &floats(Map::dynamic(true).values()))?;
                }
                (_, Scales::Nested { offset, .. }) => sink.write_shared(&name, info, &self.state(Some(*offset)))?,
                (_, Scales::Plain(_)) => sink.write_shared(&name, info, &self.state(None))?,
            }
        }
        Ok(())
    }
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// Returns a finite number as JSON writers do: the shortest digits that read back the same, the even one of two as near, with an exponent
/// outside of 1e-5 to 1e16.
fn json_number(v: f64) -> String {
    let scientific = v != 0.0 && !(1e-5..1e16).contains(&v.abs());
    let shortest = if scientific { format!("{v:e}") } else { format!("{v}") };
    let mantissa = shortest.split('e').next().unwrap_or_default();
    let places = mantissa.split_once('.').map_or(0, |(_, digits)| digits.len());
    // As many digits of the exact value, where a tie goes to the even digit.
    let exact = if scientific { format!("{v:.places$e}") } else { format!("{v:.places$}") };
    let digits = if exact.parse() == Ok(v) { exact } else { shortest };
    if scientific || digits.contains('.') { digits } else { digits + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_compact_json_of_one_length() {
        let map = Map::nf4();
        let form = BlockwiseForm { map: &map, block: 64, nested: true, dtype: DType::F16, shape: [3, 5] };
        let text = String::from_utf8(form.state(Some(0.0625))).unwrap();
        let want = r#"{"quant_type":"nf4","blocksize":64,"dtype":"float16","shape":[3,5],"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.0625}"#;
        assert_eq!(text.trim_end(), want);
        assert_eq!(text.len(), form.state(Some(-1.234_567_8e-30)).len());
        let plain = BlockwiseForm { nested: false, ..form }.state(None);
        assert_eq!(plain, br#"{"quant_type":"nf4","blocksize":64,"dtype":"float16","shape":[3,5]}"#);
    }

    #[test]
    fn numbers_are_written_as_json_writers_do() {
        for (v, want) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (f64::from(0.066_120_15f32), "0.06612014770507812"),
            (1e-5, "0.00001"),
            (1.5e-6, "1.5e-6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e16"),
            (f64::from(0.1f32), "0.10000000149011612"),
        ] {
            assert_eq!(json_number(v), want);
        }
    }
}
