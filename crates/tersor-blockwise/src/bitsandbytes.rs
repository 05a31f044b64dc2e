//! Reading and writing the state dictionaries of bitsandbytes' modules `Linear4bit` and `Linear8bitLt`.
//!
//! A 4-bit matrix is saved in this form by [`LinearOp::save`]; [`write_int8`] writes 8-bit ones.
//!
//! ```
//! use tersor_blockwise::{Blockwise, bitsandbytes};
//! use tersor_core::{LinearOp, MatView, MemTensors};
//! # fn main() -> tersor_core::Result<()> {
//! let weights: Vec<f32> = (0..64 * 32).map(|i| (i as f32 * 0.1).cos()).collect();
//! let (op, _) = Blockwise::nf4().nested(true).quantize(&MatView::new(&weights, [64, 32])?)?;
//! let mut file = MemTensors::new();
//! op.save("layer.weight", &mut file)?;
//! assert!(file.get("layer.weight.quant_state.bitsandbytes__nf4").is_some());
//! let again = bitsandbytes::read_linear("layer", &file)?;
//! assert_eq!(again.shape(), [64, 32]);
//! # Ok(())
//! # }
//! ```

use serde::Deserialize;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::{DType, Error, Isa, LinearOp, Result, RowSlot, TensorInfo, TensorSink, TensorSource, rows};
use tersor_operators::{BlockwiseLinear, Map, MapKind, NESTED_BLOCK, Quantized, RowwiseInt8, Scales};

/// Largest number of bytes of a `quant_state` tensor.
const MAX_STATE_BYTES: usize = 1 << 16;

/// The JSON of a `quant_state` tensor.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Reads the 4-bit weight (NF4 or FP4) that bitsandbytes' `Linear4bit` stored in `source` under the tensor name `name`, for example
/// `layer.weight`. Returns the codes with their block scales, and the shape of the weight. The shape may have any number of axes; for a
/// linear layer it is `[out_features, in_features]`. Values are in row-major order.
///
/// Double-quantized scales stay double-quantized if they use bitsandbytes' default, the dynamic map in blocks of 256. With another codebook
/// or block size they are dequantized to f32.
///
/// Errors if the weight, a tensor of its scales or codebooks, or its JSON description is missing. The description is the tensor
/// `name.quant_state.bitsandbytes__nf4` or `name.quant_state.bitsandbytes__fp4`. Errors also if the description is malformed, a size or
/// type contradicts it, a codebook is not one that [`Map::custom`] accepts, or a scale is not finite.
pub fn read_4bit(name: &str, source: &dyn TensorSource) -> Result<(Quantized, Vec<usize>)> {
    for kind in [MapKind::Nf4, MapKind::Fp4] {
        if source.info(&join(name, &format!("quant_state.bitsandbytes__{}", kind.name()))).is_ok() {
            return read_named(name, kind.name(), source);
        }
    }
    let name = join(name, "quant_state.bitsandbytes__nf4");
    Err(Error::Missing { name, place: "the state dictionary, and no quant_state of `fp4` either".into() })
}

/// Reads the weight of the module `module`, for example `model.layers.0.mlp.up_proj`, as a matrix `[out_features, in_features]`. The weight
/// is taken as 8-bit if `source` has the tensor `module.SCB`, and is then read by [`read_int8`]; otherwise the tensor `module.weight` is
/// read by [`read_4bit`]. Errors if a tensor is missing, malformed or of another size, or in any other case in which that function errors.
/// Errors also if the weight does not have two axes.
pub fn read_linear(module: &str, source: &dyn TensorSource) -> Result<Box<dyn LinearOp>> {
    if source.info(&join(module, "SCB")).is_ok() {
        return Ok(Box::new(read_int8(module, source)?));
    }
    let name = join(module, "weight");
    let (values, shape) = read_4bit(&name, source)?;
    let shape = <[usize; 2]>::try_from(shape)
        .map_err(|s| Error::shape("axes of the weight of a layer", 2, s.len()).in_tensor(&name))?;
    Ok(Box::new(BlockwiseLinear::new(values, shape)?))
}

/// Reads a 4-bit weight as [`read_4bit`], with the map of the name `map`: `nf4` or `fp4`.
fn read_named(name: &str, map: &str, source: &dyn TensorSource) -> Result<(Quantized, Vec<usize>)> {
    let state_name = join(name, &format!("quant_state.bitsandbytes__{map}"));
    let state = read_state(&state_name, source)?;
    let wrong = |what: String| Error::format(&state_name, what);
    if state.quant_type != map {
        return Err(wrong(format!("quant_type is `{}`, but the name of the tensor says `{map}`", state.quant_type)));
    }
    let dtype = match state.dtype.as_str() {
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        other => return Err(Error::Unsupported { what: "type of a weight", value: other.into() }.in_tensor(name)),
    };
    let [rows, cols] = rows::rows_and_columns(&state.shape).map_err(|e| e.in_tensor(name))?;
    let (len, block) = (rows * cols, state.blocksize);
    if block == 0 || block > 1 << 30 {
        return Err(wrong(format!("blocksize is {block}, must be 1 to 2^30")));
    }
    let blocks = len.div_ceil(block);
    let values = read_vector(&join(name, "quant_map"), None, source)?;
    let map = Map::known(&values).map_err(|e| Error::from(e).in_tensor(&join(name, "quant_map")))?;
    let absmax = join(name, "absmax");
    let scales = match state.nested_blocksize {
        None => Scales::Plain(read_vector(&absmax, Some(blocks), source)?),
        Some(0) => return Err(wrong("nested_blocksize is 0, must be at least 1".into())),
        Some(nested) => {
            let offset = state.nested_offset.ok_or_else(|| wrong("nested_offset is missing".into()))? as f32;
            let codes = read_expected(source, &absmax, DType::U8, &[blocks])?;
            let outer = read_vector(&join(name, "nested_absmax"), Some(blocks.div_ceil(nested)), source)?;
            let inner = read_vector(&join(name, "nested_quant_map"), Some(256), source)?;
            if nested == NESTED_BLOCK && inner == Map::dynamic(true).values() {
                Scales::Nested { codes, absmax: outer, offset }
            } else {
                // `Scales::Nested` has a fixed map and block size: other ones are dequantized.
                let inner = Map::custom(&inner).map_err(|e| Error::from(e).in_tensor(name))?;
                let mut scales = vec![0f32; blocks];
                for ((codes, out), max) in codes.chunks(nested).zip(scales.chunks_mut(nested)).zip(&outer) {
                    inner.decode(Isa::SCALAR, codes, *max, out);
                }
                scales.iter_mut().for_each(|s| *s += offset);
                Scales::Plain(scales)
            }
        }
    };
    // The bytes of codes may be stored as another type (`quant_storage`).
    let info = source.info(name)?;
    let bytes = if map.bits() == 4 { len.div_ceil(2) } else { len };
    if info.bytes()? != bytes {
        return Err(Error::shape("bytes of codes", bytes, info.bytes()?).in_tensor(name));
    }
    let mut codes = vec![0u8; bytes];
    source.read_at(name, 0, &mut codes)?;
    let q = Quantized::from_parts(map, block, len, dtype, codes, scales).map_err(|e| e.in_tensor(name))?;
    Ok((q, state.shape))
}

/// Reads the description of a 4-bit weight. Errors if it is not a u8 tensor of at most [`MAX_STATE_BYTES`], or not the expected JSON.
fn read_state(name: &str, source: &dyn TensorSource) -> Result<State> {
    let info = source.info(name)?;
    if info.dtype != DType::U8 || info.bytes()? > MAX_STATE_BYTES {
        let value = format!("{} {:?} (U8 of at most {MAX_STATE_BYTES})", info.dtype.name(), info.shape);
        return Err(Error::Unsupported { what: "description of codes", value }.in_tensor(name));
    }
    let mut bytes = vec![0u8; info.bytes()?];
    source.read_at(name, 0, &mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format(name, e.to_string()))
}

/// Reads a vector of f32 with `len` values; with `None`, of at most 256 values, by the tensor's own shape.
fn read_vector(name: &str, len: Option<usize>, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let len = match len {
        Some(len) => len,
        None => source.info(name)?.shape.first().copied().unwrap_or(0).min(256),
    };
    read_floats(source, name, &[len])
}

/// Writes `w`, `[out_features, in_features]`, as the module `module` of LLM.int8 (bitsandbytes' `Linear8bitLt`), for example
/// `model.layers.0.mlp.up_proj`. Three tensors are written: `module.weight` (i8, `[out_features, in_features]`), `module.SCB` (f32,
/// `[out_features]`, the largest magnitude of each row) and `module.weight_format` (u8, a scalar with the value 0, which stands for
/// row-major). Errors only if `sink` errors.
pub fn write_int8(w: &RowwiseInt8, module: &str, sink: &mut dyn TensorSink) -> Result<()> {
    w.save_as([&join(module, "weight"), &join(module, "SCB")], RowSlot::whole(w.shape()[0]), sink)?;
    let info = TensorInfo { dtype: DType::U8, shape: Vec::new() };
    // 0: row-major, not one of the tiled GPU orders.
    sink.write_shared(&join(module, "weight_format"), &info, &[0])
}

/// Reads the matrix `[out_features, in_features]` of the module `module` of LLM.int8 from the tensors that [`write_int8`] writes:
/// `module.weight` (i8), `module.SCB` (f32, the largest magnitude of each row) and `module.weight_format` (0 for row-major, which is
/// assumed if the tensor is missing). Errors if `weight` or `SCB` is missing or has another type or shape, a value of `SCB` is negative or
/// not finite, or `weight_format` is not 0.
pub fn read_int8(module: &str, source: &dyn TensorSource) -> Result<RowwiseInt8> {
    let format = join(module, "weight_format");
    if let Ok(info) = source.info(&format) {
        let mut code = vec![0u8; info.bytes()?.min(8)];
        source.read_at(&format, 0, &mut code)?;
        if code.iter().any(|b| *b != 0) {
            let value = format!("{code:?}; only 0 (row-major) is read: save the model from a CPU");
            return Err(Error::Unsupported { what: "order of int8 weights", value }.in_tensor(&format));
        }
    }
    let name = join(module, "weight");
    let shape = source.info(&name)?.shape;
    let shape =
        <[usize; 2]>::try_from(shape).map_err(|s| Error::shape("axes of a weight", 2, s.len()).in_tensor(&name))?;
    RowwiseInt8::load_as([&name, &join(module, "SCB")], shape, source)
}
