//! Writes and reads weights in the layout of bitsandbytes.
//!
//!     bitsandbytes quantize IN.safetensors OUT.safetensors nf4|fp4|int8 [--nested]
//!     bitsandbytes dequantize IN.safetensors OUT.safetensors
//!
//! The first command quantizes each two-dimensional tensor `NAME.weight` and writes the state of a `Linear4bit` or `Linear8bitLt` module called `NAME`.
//! The second reads such modules and writes their weights in f32. `scripts/check_bitsandbytes.py` compares both with bitsandbytes.

use std::path::Path;

use tersor::blockwise::{Blockwise, LlmInt8, bitsandbytes};
use tersor::core::{DType, Limits, LinearOp, LinearOpExt, MatView, MemTensors, TensorInfo, TensorSink, TensorSource};
use tersor::formats::{Model, safetensors};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["quantize", from, to, kind] => quantize(from.as_ref(), to.as_ref(), kind, false),
        ["quantize", from, to, kind, "--nested"] => quantize(from.as_ref(), to.as_ref(), kind, true),
        ["dequantize", from, to] => dequantize(from.as_ref(), to.as_ref()),
        _ => Err("usage: bitsandbytes quantize IN OUT nf4|fp4|int8 [--nested] | dequantize IN OUT".into()),
    }
}

fn quantize(from: &Path, to: &Path, kind: &str, nested: bool) -> Result<(), AnyError> {
    let (model, mut out) = (Model::open(from, &Limits::default())?, MemTensors::new());
    for tensor in model.tensors() {
        let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
        let rows = model.rows(&tensor.name)?;
        let shape = rows.shape();
        let mut values = vec![0f32; shape[0] * shape[1]];
        rows.read_rows(0..shape[0], &mut values)?;
        let matrix = MatView::new(&values, shape)?;
        let how = match kind {
            "nf4" => Blockwise::nf4(),
            "fp4" => Blockwise::fp4(),
            "int8" => {
                bitsandbytes::write_int8(&LlmInt8::new().quantize(&matrix)?.0, module, &mut out)?;
                continue;
            }
            _ => return Err(format!("`{kind}` must be nf4, fp4 or int8").into()),
        };
        let (op, _) = how.nested(nested).quantize(&matrix)?;
        op.save(&tensor.name, &mut out)?;
    }
    Ok(safetensors::write(to, &out)?)
}

fn dequantize(from: &Path, to: &Path) -> Result<(), AnyError> {
    let (file, mut out) = (safetensors::File::open(from, &Limits::default())?, MemTensors::new());
    for name in file.names() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let op = bitsandbytes::read_linear(module, &file)?;
        let [rows, cols] = op.shape();
        let bytes: Vec<u8> = op.decompress()?.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.write_rows(&name, &TensorInfo { dtype: DType::F32, shape: vec![rows, cols] }, 0, &bytes)?;
    }
    Ok(safetensors::write(to, &out)?)
}
