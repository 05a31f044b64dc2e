//! [`sentences`]: the embeddings of an encoder, compared with those of another model.

use std::path::Path;

use serde::Serialize;
use tersor_core::{Context, Error, Result, metrics};
use tersor_models::{Checkpoint, Encoder, Tokenizer};

use super::{Options, context, peak_rss};
use crate::calibrate;
use crate::kinds::Kinds;
use crate::text::Text;

/// The agreement of the sentence embeddings of an encoder with those of another model, as [`sentences`] returns it, with size and memory of the
/// encoder.
#[derive(Clone, Debug, Serialize)]
pub struct SentenceEvaluation {
    /// The smallest cosine, over all sentences, between the two embeddings of a sentence.
    pub cosine_min: f64,
    /// The mean of these cosines over all sentences.
    pub cosine_mean: f64,
    /// The number of sentences, which are lines of the text.
    pub sentences: usize,
    /// The stored bits per element over all two-dimensional tensors, embedding tables included.
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables.
    pub body_bits_per_weight: f64,
    /// The total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// The peak resident memory of this process so far in bytes ([`peak_rss`]); None on other systems than Linux.
    pub peak_rss_bytes: Option<u64>,
}

/// Compares the embeddings of the encoder of the model at `model` with those of the model at `against`, for each line of `text` that is not blank.
/// Both are paths of a model directory, a `.gguf` file, or an output directory of [`compress`](crate::compress()). Of `options`,
/// [`ctx`](Options::ctx) (the maximum number of tokens of a line; of a longer line, the first `ctx - 1` tokens and the last are used) and
/// [`windows`](Options::windows) (the number of lines from the beginning) count. `kinds` loads the operators; `cx` has threads, progress and
/// cancellation.
///
/// Errors with [`Error::Param`] if [`Options::ctx`] is out of range. Errors with [`Error::Io`], [`Error::Format`], [`Error::Limit`],
/// [`Error::Missing`] or [`Error::Unsupported`] if a model or the text cannot be read, or a model is no encoder of a known architecture or has no
/// tokenizer. Errors with [`Error::Format`] if the two tokenizers give different tokens for the text, or if there is no line or [`Options::windows`]
/// is 0. Errors with [`Error::Tensor`] around an [`Error::NonFinite`], whose row is the index of the sentence, if a cosine is not finite, and with
/// [`Error::Cancelled`] if the work is cancelled.
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
