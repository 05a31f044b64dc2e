//! PEFT: the low-rank corrections of a quantized network as a LoRA adapter, and its base model as safetensors.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value as Json, json};
use tersor_core::tensors::join;
use tersor_core::{Context, DType, Error, OpSpec, Result};
use tersor_formats::peft::{Adapter, CONFIG, WEIGHTS};
use tersor_formats::{json as files, safetensors};
use tersor_operators::{Factored, QuantizedInputs, Residual};

use super::plain::{self, RECORD};
use super::{Source, at};
use crate::output::{self, Output, Share};

/// Name of the directory with the base model, beside the adapter.
const BASE: &str = "base";

/// A LoRA adapter with its base model, as [`export`](super::export) wrote them.
#[derive(Clone, Debug, Serialize)]
pub struct PeftExport {
    /// The directory of the adapter, as it was given.
    pub out: PathBuf,
    /// The name of the format: `peft`.
    pub to: &'static str,
    /// The number of modules of the adapter: one for each matrix with a low-rank correction.
    pub modules: usize,
    /// The directory of the base model in f32, the folder `base` of `out`.
    pub base: PathBuf,
    /// The total length of the tensors of the base model in bytes, without headers.
    pub base_bytes: u64,
}

/// Writes the low-rank corrections of `source` as a LoRA adapter to the directory `out`, and the base model without them to its folder `base`. Errors
/// as [`export`](super::export) does.
pub(crate) fn run(mut source: Source, out: &Path, cx: &Context) -> Result<PeftExport> {
    let inputs = source.inputs("peft")?;
    let mut adapter = Adapter::new();
    for t in source.tensors() {
        let Some((spec, prefix)) = source.spec(&t.name).and_then(|s| corrected(s, &t.name)) else { continue };
        let low = spec.get_part("low_rank")?;
        if low.kind != Factored::KIND {
            let value = format!("the correction is of kind `{}`, not low-rank factors", low.kind);
            return Err(Error::Unsupported { what: "LoRA adapter", value }.in_tensor(&t.name));
        }
        let prefix = join(&prefix, "low_rank");
        let part = |name: &str| source.load(low.get_part(name)?, &join(&prefix, name));
        let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
        adapter.add(module, &*part("up")?, &*part("down")?)?;
    }
    if adapter.modules() == 0 {
        let value = "no matrix has a low-rank correction (compress with -lqer or -l2qer)".to_string();
        return Err(Error::Unsupported { what: "LoRA adapter", value });
    }
    if let Output::Open(work) = output::open(out, &inputs, &Json::Null, RECORD, Share::Alone)? {
        safetensors::write(&work.pending(WEIGHTS), adapter.tensors())?;
        let base = out.join(BASE).display().to_string();
        let beside = [(CONFIG.to_string(), files::to_bytes(&adapter.config(&base)))];
        work.finish(&[WEIGHTS.into()], &beside, (RECORD, files::to_bytes(&json!({"inputs": inputs}))), &*cx.progress)?;
    }
    source.base_only = true;
    let base = out.join(BASE);
    let base_bytes = plain::write_out(&source, DType::F32, &base, cx)?;
    Ok(PeftExport { out: out.to_path_buf(), to: "peft", modules: adapter.modules(), base, base_bytes })
}

/// Returns the specification of a matrix with a low-rank correction, without the quantization of its inputs, and the prefix of its tensor names; None
/// for a matrix without correction.
pub(crate) fn corrected<'s>(spec: &'s OpSpec, name: &str) -> Option<(&'s OpSpec, String)> {
    let (spec, prefix) = at(spec, name, QuantizedInputs::KIND);
    (spec.kind == Residual::KIND).then_some((spec, prefix))
}
