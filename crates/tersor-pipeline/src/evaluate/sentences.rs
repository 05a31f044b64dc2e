//! The embeddings of an encoder, compared with those of another model.

use std::path::Path;

use serde::Serialize;
use tersor_core::{Context, Error, Result, metrics};
use tersor_models::{Checkpoint, Encoder, Tokenizer};

use super::{Options, context, peak_rss};
use crate::calibrate;
use crate::kinds::Kinds;
use crate::text::Text;

/// The figures of an encoder on sentences.
#[derive(Clone, Debug, Serialize)]
pub struct SentenceEvaluation {
    /// Smallest cosine between the embedding of a sentence and that of the other model.
    pub cosine_min: f64,
    /// Mean of these cosines.
    pub cosine_mean: f64,
    /// Number of sentences.
    pub sentences: usize,
    /// Stored bits per weight of all matrices, embeddings included.
    pub bits_per_weight: f64,
    /// The same without embeddings.
    pub body_bits_per_weight: f64,
    /// Total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// Peak resident memory of the process in bytes, on Linux.
    pub peak_rss_bytes: Option<u64>,
}

/// Compares the embeddings of an encoder with those of the model `against`, for each line of a text. Of `options`, `ctx` and `windows` are used. Errors
/// if a model cannot be opened or is no encoder, if their tokenizers differ, if the text has no line, if an embedding is not finite,
/// or if the work is cancelled.
pub fn sentences(
    model: &Path,
    text: &Text,
    against: &Path,
    options: &Options,
    kinds: &Kinds,
    cx: &Context,
) -> Result<SentenceEvaluation> {
    let checkpoint = Checkpoint::open(model, &kinds.operators)?;
    let original = Checkpoint::open(against, &kinds.operators)?;
    let ctx = context(options.ctx, &checkpoint)?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let content = text.read()?;
    let tokens = calibrate::sentences(&tokenizer, &content, options.windows, ctx)?;
    if tokens != calibrate::sentences(&Tokenizer::of(&original)?, &content, options.windows, ctx)? {
        let what = "it has another tokenizer, so embeddings cannot be compared";
        return Err(Error::format(against.display().to_string(), what));
    }
    if tokens.is_empty() {
        return Err(Error::format(text.name(), "it has no sentence; put one on each line"));
    }
    let (bits_per_weight, body_bits_per_weight) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let (encoder, original) = (Encoder::load(&checkpoint)?, Encoder::load(&original)?);
    cx.progress.begin("evaluate", tokens.len() as u64);
    let exec = &cx.exec;
    let (mut sum, mut min) = (0f64, f64::INFINITY);
    for (i, sentence) in tokens.iter().enumerate() {
        cx.cancel.check()?;
        let cosine = metrics::cosine(&encoder.embed(sentence, exec)?, &original.embed(sentence, exec)?);
        if !cosine.is_finite() {
            return Err(Error::NonFinite { row: i, col: 0, value: cosine as f32 }.in_tensor("embedding of a sentence"));
        }
        sum += cosine;
        min = min.min(cosine);
        cx.progress.advance(1, "");
    }
    cx.progress.end();
    Ok(SentenceEvaluation {
        cosine_min: min,
        cosine_mean: sum / tokens.len() as f64,
        sentences: tokens.len(),
        bits_per_weight,
        body_bits_per_weight,
        weight_bytes,
        peak_rss_bytes: peak_rss(),
    })
}
