//! Writes the logits of a model for the first windows of a text, one safetensors file per window (`tokens`, `logits`), for
//! comparison with other implementations.
//!
//! `logits MODEL TEXT CTX WINDOWS OUT_DIR`

use std::collections::BTreeMap;
use std::path::Path;

use tersor::core::{DType, Exec, Result, TensorInfo, TensorSink};
use tersor::formats::safetensors::Writer;
use tersor::models::{Checkpoint, Decoder, Tokenizer, windows};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, ctx, count, out] = &args[..] else {
        return Err("usage: logits MODEL TEXT CTX WINDOWS OUT_DIR".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model), &tersor::registry())?;
    let (decoder, tokenizer) = (Decoder::load(&checkpoint)?, Tokenizer::of(&checkpoint)?);
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    std::fs::create_dir_all(out)?;
    let (ctx, vocab) = (ctx.parse()?, decoder.config().vocab);
    for (i, window) in windows(&tokens, ctx, Some(count.parse()?))?.into_iter().enumerate() {
        let exec = Exec::new();
        let hidden = decoder.forward(window, &mut decoder.state()?, &exec)?;
        let logits = decoder.logits(&hidden, &exec)?;
        let info = |dtype, shape| TensorInfo { dtype, shape };
        let tensors = BTreeMap::from([
            ("tokens".to_string(), info(DType::U32, vec![ctx])),
            ("logits".to_string(), info(DType::F32, vec![ctx, vocab])),
        ]);
        let mut writer = Writer::create(&Path::new(out).join(format!("{i}.safetensors")), tensors.clone())?;
        let ids: Vec<u8> = window.iter().flat_map(|t| t.to_le_bytes()).collect();
        let values: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write_shared("tokens", &tensors["tokens"], &ids)?;
        writer.write_shared("logits", &tensors["logits"], &values)?;
        writer.finish()?;
    }
    Ok(())
}
