//! `convert --to peft`: the low-rank corrections of a quantized network as a LoRA adapter, and its base model as safetensors.

use std::path::Path;

use serde_json::{Value as Json, json};
use tersor::core::tensors::join;
use tersor::core::{DType, Error, OpSpec, Result};
use tersor::formats::{json as files, safetensors};
use tersor::lowrank::peft::{Adapter, CONFIG, WEIGHTS};
use tersor::operators::{Factored, QuantizedInputs, Residual};

use super::plain::{self, RECORD};
use super::{Source, at};
use crate::output::{self, Output, Share};
use crate::print_json;

/// Name of the directory with the base model, beside the adapter.
const BASE: &str = "base";

pub fn run(mut source: Source, out: &Path, json: bool) -> Result<()> {
    let inputs = source.inputs("peft");
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
        work.finish(&[WEIGHTS.into()], &beside, (RECORD, files::to_bytes(&json!({"inputs": inputs}))))?;
    }
    source.base_only = true;
    let base = plain::write_out(&source, DType::F32, &out.join(BASE))?;
    if json {
        print_json(
            &json!({"out": out, "to": "peft", "modules": adapter.modules(), "base": out.join(BASE), "base_bytes": base}),
        );
    } else {
        crate::outln!("{}: an adapter of {} modules, with its base model in {BASE}", out.display(), adapter.modules());
    }
    Ok(())
}

/// Returns the specification of a corrected matrix, without the quantization of its inputs, and the prefix of its tensor names; none for a matrix
/// without correction.
pub fn corrected<'s>(spec: &'s OpSpec, name: &str) -> Option<(&'s OpSpec, String)> {
    let (spec, prefix) = at(spec, name, QuantizedInputs::KIND);
    (spec.kind == Residual::KIND).then_some((spec, prefix))
}
