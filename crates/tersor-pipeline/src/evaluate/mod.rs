//! Evaluation: perplexity, agreement with another model, size and speed.

mod sentences;

pub use sentences::{SentenceEvaluation, sentences};

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};
use tersor_core::{Context, Error, Exec, ParamError, Result};
use tersor_llm::{Checkpoint, Decoder, Tokenizer, evaluate, windows};

use crate::caches::Caches;
use crate::kinds::Kinds;
use crate::text::Text;

/// Number of tokens in the test of decoding speed.
const DECODED: usize = 128;

/// How a model is evaluated.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// Tokens per window (a piece of the text that is predicted on its own); none for the smaller of 512 and the model's maximum.
    pub ctx: Option<usize>,
    /// Number of windows, or of sentences; none for all of the text.
    pub windows: Option<usize>,
    /// Form of the key-value cache ([`CacheRule::parse`](crate::recipe::CacheRule::parse)); none for that which the recipe of the model records, or f32.
    pub kv: Option<String>,
    /// Whether speed is measured.
    pub speed: bool,
    /// Whether each layer is read when it runs, so that only one layer is in memory at a time.
    pub stream: bool,
}

/// The figures of a decoder on a text. Numbers that are not finite are `null` in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// Perplexity per token.
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
    /// Number of scored tokens: every token but a window's first.
    pub tokens: u64,
    /// Stored bits per weight of all matrices, embedding and head included.
    #[serde(deserialize_with = "number")]
    pub bits_per_weight: f64,
    /// The same without embedding and head.
    #[serde(deserialize_with = "number")]
    pub body_bits_per_weight: f64,
    /// Total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// Bytes of the key-value caches of all layers per token.
    pub kv_bytes_per_token: usize,
    /// Peak resident memory of the process in bytes, on Linux.
    pub peak_rss_bytes: Option<u64>,
    /// Tokens per second of prefill: one window, logits of its last token; the median of three. None unless speed is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// Tokens per second of decoding 128 tokens after an empty context; the median of three. None unless speed is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f64>,
    /// Mean Kullback-Leibler divergence of the predictions from those of the other model, in nats. None unless there is one.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_mean: Option<f64>,
    /// Share of tokens whose most likely successor is that of the other model. None unless there is one.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Relative difference of the inputs of each site (one input and the matrices that read it) from those in the other model, by the name of the
    /// site. None unless there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_errors: Option<BTreeMap<String, Option<f64>>>,
}

/// Reads a number; `null`, which stands for one that is not finite, is NaN.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// Reads a number that is there; `null` is NaN.
fn number_of<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    number(from).map(Some)
}

/// Returns the window length: the one given, else the smaller of 512 and the model's maximum. Errors if it is below 2 or above the maximum.
fn context(given: Option<usize>, checkpoint: &Checkpoint) -> Result<usize> {
    let max = checkpoint.architecture().max_positions();
    match given {
        None => Ok(max.min(512)),
        Some(n) if (2..=max).contains(&n) => Ok(n),
        Some(n) => Err(ParamError::new("ctx", n, format!("must be 2 to {max}, the model's maximum")).into()),
    }
}

/// Evaluates the decoder of a model file or directory on a text, and compares its predictions with those of the model `against`, if there is one.
/// Errors if a model cannot be opened or is no decoder, if their tokenizers differ, if the text has no window, or if the work is cancelled.
pub fn decoder(
    model: &Path,
    text: &Text,
    against: Option<&Path>,
    options: &Options,
    kinds: &Kinds,
    cx: &Context,
) -> Result<Evaluation> {
    let checkpoint = Checkpoint::open(model, &kinds.operators)?;
    let ctx = context(options.ctx, &checkpoint)?;
    if options.windows == Some(0) {
        return Err(ParamError::new("windows", 0, "must be at least 1").into());
    }
    checkpoint.architecture().decoder()?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let tokens = tokenizer.encode(&text.read()?)?;
    let cut = windows(&tokens, ctx, options.windows)?;
    if let Some(wanted) = options.windows
        && cut.len() < wanted
    {
        let what = format!("the text has {} windows of {ctx} tokens, fewer than {wanted}", cut.len());
        cx.progress.warn(&what);
    }
    let (bits_per_weight, body_bits_per_weight) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let caches = Caches::of(options.kv.as_deref(), &checkpoint, kinds)?;
    let kv_bytes_per_token = caches.bytes_per_token;
    let load = |c: Checkpoint| if options.stream { Decoder::load_streamed(c) } else { Decoder::load(&c) };
    let decoder = caches.attach(load(checkpoint)?);
    let original = match against {
        Some(path) => {
            let other = Checkpoint::open(path, &kinds.operators)?;
            let probe = "The quick brown fox, 1234.";
            if Tokenizer::of(&other)?.encode(probe)? != tokenizer.encode(probe)? {
                let what = "it has another tokenizer, so predictions cannot be compared";
                return Err(Error::format(path.display().to_string(), what));
            }
            Some(load(other)?)
        }
        None => None,
    };
    let found = evaluate(&decoder, original.as_ref(), &cut, &cx.exec, &*cx.progress, &cx.cancel)?;
    drop(original);
    let speed = if options.speed { Some(speed(&decoder, cut[0], &cx.exec)?) } else { None };
    let against = found.against.as_ref();
    let errors = |a: &tersor_llm::Agreement| a.sites.iter().map(|(name, e)| (name.clone(), Some(*e))).collect();
    Ok(Evaluation {
        perplexity: found.perplexity,
        tokens: found.tokens,
        bits_per_weight,
        body_bits_per_weight,
        weight_bytes,
        kv_bytes_per_token,
        peak_rss_bytes: peak_rss(),
        prefill_tokens_per_s: speed.map(|s| s.0),
        decode_tokens_per_s: speed.map(|s| s.1),
        kl_mean: against.map(|a| a.kl_mean),
        top1_agreement: against.map(|a| a.top1),
        site_errors: against.map(errors),
    })
}

/// Returns tokens per second of prefill (one window, logits of its last token) and of decoding from an empty context; medians of three.
fn speed(decoder: &Decoder, window: &[u32], exec: &Exec) -> Result<(f64, f64)> {
    let median = |mut v: [f64; 3]| {
        v.sort_by(f64::total_cmp);
        v[1]
    };
    let (mut prefill, mut decode) = ([0.0; 3], [0.0; 3]);
    let count = DECODED.min(decoder.config().max_positions);
    for i in 0..3 {
        let (mut state, start) = (decoder.state()?, Instant::now());
        decoder.next_logits(window, &mut state, exec)?;
        prefill[i] = window.len() as f64 / start.elapsed().as_secs_f64();
        let (mut state, start) = (decoder.state()?, Instant::now());
        for &token in window.iter().cycle().take(count) {
            decoder.next_logits(&[token], &mut state, exec)?;
        }
        decode[i] = count as f64 / start.elapsed().as_secs_f64();
    }
    Ok((median(prefill), median(decode)))
}

/// Returns the peak resident memory of this process in bytes, on Linux.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
