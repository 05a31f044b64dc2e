//! `tersor convert`: writes a model in formats that other programs load.

use tersor::core::{ParamError, Result};
use tersor::pipeline::export::{Exported, Format, GgufExport, export, gguf_types};
use tersor::pipeline::megabytes;

use crate::{args, context, print_json};

pub fn run(a: &args::Convert, json: bool) -> Result<()> {
    let kinds = tersor::kinds();
    if a.dry_run && !a.to.starts_with("gguf:") {
        return Err(ParamError::new("dry-run", "given", "it is for gguf only, whose types differ by tensor").into());
    }
    let found = match Format::from_name(&a.to)? {
        Format::Gguf(target) if a.dry_run => {
            let found = gguf_types(&a.model, target, kinds)?;
            Exported::Gguf(GgufExport { out: a.out.clone(), ..found })
        }
        format => export(&a.model, format, &a.out, kinds, &context(0, None))?,
    };
    if json {
        return print_json(&found);
    }
    let out = a.out.display();
    match found {
        Exported::Plain(f) => outln!("{out}: {} tensors, {} in {}", f.tensors, megabytes(f.bytes), f.to),
        Exported::Gptq(f) => outln!("{out}: {} matrices as {}, {}", f.matrices, f.to, megabytes(f.bytes)),
        Exported::Peft(f) => {
            let base = f.base.file_name().unwrap_or_default().to_string_lossy();
            outln!("{out}: an adapter of {} modules, with its base model in {base}", f.modules);
        }
        Exported::Gguf(f) => {
            for n in &f.fallbacks {
                outln!("{}: {} ({})", n.tensor, n.kind, n.why);
            }
            for r in &f.rounded_again {
                let error = r.relative_error;
                outln!("{}: quantized again, to {} (relative error {error:.5})", r.tensor, r.kind);
            }
            let would = if f.written { "" } else { "dry run: " };
            outln!("{out}: {would}{} tensors, {}", f.tensors.len(), megabytes(f.bytes as u64));
        }
    }
    Ok(())
}
