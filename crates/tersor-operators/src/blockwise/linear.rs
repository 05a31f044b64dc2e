//! [`BlockwiseLinear`]: a matrix of block-wise quantized values.

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::view::elements;
use tersor_core::{DType, Error, Exec, Layout, LinearOp, Loading, OpSpec, Result, RowSlot, TensorInfo, TensorSink};

use super::{Map, MapKind, NESTED_BLOCK, Quantized, Scales};

/// Largest number of characters of an f64 in JSON.
const MAX_NUMBER_LEN: usize = 24;

/// A matrix `[out_features, in_features]` of block-wise quantized weights. The weights in row-major order are cut into blocks of equal
/// length, which may extend over rows; the last block may be shorter. Each block has a scale, and each weight is the code of a value in a
/// codebook: `weight = scale * codebook[code]`.
///
/// Stored as bitsandbytes stores a 4-bit weight: codes under the operator's own name (u8, `[bytes, 1]`; two codes a byte, the first in the
/// high half, if the codebook has at most 16 values, otherwise one), `absmax` (`[blocks]`, f32, or u8 if scales are quantized), `quant_map`
/// (f32, one value for each code), for quantized scales `nested_absmax` (f32, `[ceil(blocks / 256)]`) and `nested_quant_map` (f32,
/// `[256]`), and `quant_state.bitsandbytes__<map>` (u8), a JSON description. `<map>` is the name of the codebook's kind
/// ([`MapKind::name`]), such as `nf4`.
///
/// ```
/// use tersor_operators::{BlockwiseLinear, DType, Exec, LinearOp, Map, Quantized, Scales};
/// # fn main() -> tersor_operators::Result<()> {
/// // NF4: code 15 is 1, code 7 is 0, code 0 is -1; one block of four values.
/// let q = Quantized::from_parts(Map::nf4(), 64, 4, DType::F32, vec![0xf7, 0x0f], Scales::Plain(vec![2.0]))?;
/// let op = BlockwiseLinear::new(q, [2, 2])?;
/// let mut values = [0f32; 4];
/// op.decompress_rows(0..2, &mut values, &Exec::new())?;
/// assert_eq!(values, [2.0, 0.0, -2.0, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct BlockwiseLinear {
    values: Quantized,
    shape: [usize; 2],
}

impl BlockwiseLinear {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "blockwise";

    /// Returns the matrix of the shape `[out_features, in_features]` whose weights, row-major, are `values`. Errors unless the number of
    /// values is the product of `shape`, or if that overflows.
    pub fn new(values: Quantized, shape: [usize; 2]) -> Result<Self> {
        if elements(shape)? != values.len() {
            return Err(Error::shape("values of a matrix", elements(shape)?, values.len()));
        }
        Ok(Self { values, shape })
    }

    /// Returns the quantized weights, row-major: their codes, the scales of blocks and the codebook.
    pub fn quantized(&self) -> &Quantized {
        &self.values
    }

    /// Returns the stored bits, including those of the codebook and the JSON description, divided by the number of weights; 0 for an empty
    /// matrix.
    pub fn bits_per_weight(&self) -> f64 {
        if self.values.is_empty() { 0.0 } else { self.storage_bits() as f64 / self.values.len() as f64 }
    }

    /// Returns the stored form of a matrix with `rows` rows of this kind.
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

/// Loads a matrix. Errors if a tensor is missing or has another type or shape, or its content contradicts the specification.
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
        return Err(Error::format(
            name,
            format!("holds the map `{}`, the specification says `{}`", map.kind().name(), spec.get_text("map")?),
        ));
    }
    let (blocks, absmax) = (len.div_ceil(block), join(prefix, "absmax"));
    let scales = if spec.params.contains_key("offset") {
        let inner = join(prefix, "nested_quant_map");
        if read_floats(source, &inner, &[256])? != Map::dynamic(true).values() {
            return Err(Error::format(inner, "must hold the signed dynamic map"));
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

/// The parameters of a [`BlockwiseLinear`] (a matrix of block-wise quantized weights) that are known before the weights are quantized:
/// codebook, length of a block, whether scales are quantized too, type of the weights before quantization, and shape. They determine the
/// tensors that the matrix is stored as ([`BlockwiseForm::layout`]).
///
/// ```
/// use tersor_operators::{BlockwiseForm, DType, Map};
/// # fn main() -> tersor_operators::Result<()> {
/// let form = BlockwiseForm { map: &Map::nf4(), block: 64, nested: false, dtype: DType::F16, shape: [64, 64] };
/// assert_eq!(form.layout().tensors[0].1.shape, [64 * 64 / 2, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BlockwiseForm<'a> {
    /// Codebook of the weights: the value of each code. A weight is the value of its code times the scale of its block.
    pub map: &'a Map,
    /// Number of consecutive weights, in row-major order, that share a scale; 0 counts as 1.
    pub block: usize,
    /// Whether the scales of blocks are quantized too, to one byte each (double quantization), instead of f32.
    pub nested: bool,
    /// Type of the weights before quantization. Only its name is stored, in the JSON description: `float16`, `bfloat16`, or `float32` for
    /// all other types.
    pub dtype: DType,
    /// The shape of the matrix, `[out_features, in_features]`.
    pub shape: [usize; 2],
}

impl BlockwiseForm<'_> {
    /// Returns the name of the tensor with the JSON description.
    fn state_name(&self) -> String {
        format!("quant_state.bitsandbytes__{}", self.map.kind().name())
    }

    /// Returns the JSON description, padded so that its length does not depend on the offset of quantized scales.
    fn state(&self, offset: Option<f32>) -> Vec<u8> {
        let ([rows, cols], kind, dtype) = (self.shape, self.map.kind().name(), torch_name(self.dtype));
        let mut text =
            format!(r#"{{"quant_type":"{kind}","blocksize":{},"dtype":"{dtype}","shape":[{rows},{cols}]"#, self.block);
        let mut length = text.len() + 1;
        if let Some(offset) = offset {
            text.push_str(&format!(r#","nested_blocksize":{NESTED_BLOCK},"nested_dtype":"float32","nested_offset":"#));
            length = text.len() + 1 + MAX_NUMBER_LEN;
            text.push_str(&json_number(f64::from(offset)));
        }
        text.push('}');
        let mut bytes = text.into_bytes();
        bytes.resize(length, b' ');
        bytes
    }

    /// Returns the name, type and shape of each stored tensor, as listed at [`BlockwiseLinear`]. Each name is the part that follows the
    /// operator's own name; that of the codes is empty, since they are stored under the operator's own name. Does not fail: a number of
    /// weights above `usize::MAX` counts as `usize::MAX`.
    pub fn layout(&self) -> Layout {
        // Shapes whose product overflows were refused before.
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

    /// Writes the values `q` as the rows from `first` on. Errors unless these begin with a whole block and a whole byte (quantized scales: with row
    /// 0), or if the sink fails.
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

/// Returns the name of a type in bitsandbytes' descriptions.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// Returns a finite number as JSON writers do: the fewest digits that read back as the same number (ties to the even digit), with an exponent
/// outside of 1e-5 to 1e16.
fn json_number(v: f64) -> String {
    let scientific = v != 0.0 && !(1e-5..1e16).contains(&v.abs());
    let shortest = if scientific { format!("{v:e}") } else { format!("{v}") };
    let mantissa = shortest.split('e').next().unwrap_or_default();
    let places = mantissa.split_once('.').map_or(0, |(_, digits)| digits.len());
    // The same number of digits of the exact value, with ties to the even digit.
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
