//! `tersor eval --sentences`: compares the embeddings of an encoder with those of the original.

use std::path::Path;

use serde_json::json;
use tersor::core::{Error, Exec, ParamError, Progress, Result, metrics};
use tersor::llm::{Checkpoint, Encoder, Tokenizer};

use super::{context, peak_rss, read_text};
use crate::{args, megabytes, print_json, progress, windows};

pub fn run(a: &args::Eval, path: &Path, json: bool) -> Result<()> {
    let registry = tersor::registry();
    let checkpoint = Checkpoint::open(&a.model, &registry)?;
    let against = a.against.as_ref();
    let against = against.ok_or_else(|| ParamError::new("against", "missing", "must be given with --sentences"))?;
    let original = Checkpoint::open(against, &registry)?;
    let ctx = context(a.ctx, &checkpoint)?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let text = read_text(path)?;
    let tokens = windows::sentences(&tokenizer, &text, a.windows, ctx)?;
    if tokens != windows::sentences(&Tokenizer::of(&original)?, &text, a.windows, ctx)? {
        return Err(Error::format(
            against.display().to_string(),
            "it has another tokenizer, so embeddings cannot be compared",
        ));
    }
    if tokens.is_empty() {
        return Err(Error::format(path.display().to_string(), "it has no sentence; put one on each line"));
    }
    let (bits, body) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let (encoder, original) = (Encoder::load(&checkpoint)?, Encoder::load(&original)?);
    let bars = progress::bars();
    bars.begin("evaluate", tokens.len() as u64);
    let exec = Exec::new();
    let (mut sum, mut min) = (0f64, f64::INFINITY);
    for (i, sentence) in tokens.iter().enumerate() {
        let cosine = metrics::cosine(&encoder.embed(sentence, &exec)?, &original.embed(sentence, &exec)?);
        if !cosine.is_finite() {
            return Err(Error::NonFinite { row: i, col: 0, value: cosine as f32 }.in_tensor("embedding of a sentence"));
        }
        sum += cosine;
        min = min.min(cosine);
        bars.advance(1, "");
    }
    bars.end();
    let mean = sum / tokens.len() as f64;
    if json {
        print_json(&json!({
            "cosine_min": min, "cosine_mean": mean, "sentences": tokens.len(), "bits_per_weight": bits,
            "body_bits_per_weight": body, "weight_bytes": weight_bytes, "peak_rss_bytes": peak_rss(),
        }));
        return Ok(());
    }
    crate::outln!("cosine         mean {mean:.5}, minimum {min:.5} over {} sentences", tokens.len());
    crate::outln!("bits/weight    {bits:.3} ({body:.3} without embeddings)");
    crate::outln!("weights        {}", megabytes(weight_bytes));
    Ok(())
}
