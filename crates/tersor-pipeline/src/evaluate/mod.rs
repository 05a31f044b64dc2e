//! Evaluation: perplexity, agreement with another model, answers to prompts, size and speed.

mod figures;
mod reference;
mod sentences;
mod task;
mod weights;

pub use figures::save;
pub use reference::Reference;
pub use sentences::{SentenceEvaluation, sentences};
pub use task::{Question, TaskEvaluation, questions, task};
pub use weights::{WeightEvaluation, weights};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};
use tersor_core::{Context, Error, ParamError, Result};
use tersor_models::{
    Bucket, Checkpoint, Decoder, KeepPredictions, Original, Request, Tokenizer, evaluate_with, windows,
};

use crate::caches::Caches;
use crate::kinds::Kinds;
use crate::output::{FileKind, check_file};
use crate::text::Text;
use reference::Recorder;

/// Number of tokens in the test of decoding speed.
const DECODED: usize = 128;

/// How a model is evaluated.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// Tokens per window (a piece of the text that is predicted on its own); none for the smaller of 512 and the model's maximum.
    pub ctx: Option<usize>,
    /// Number of windows, of sentences, or of prompts; none for all of the text.
    pub windows: Option<usize>,
    /// Form of the key-value cache ([`CacheRule::parse`](crate::recipe::CacheRule::parse)); none for that which the recipe of the model records, or f32.
    pub kv: Option<String>,
    /// Whether speed is measured.
    pub speed: bool,
    /// Whether each layer is read when it runs, so that only one layer is in memory at a time.
    pub stream: bool,
    /// Whether to measure what bf16 activations alone make of the original's predictions ([`Evaluation::kl_noise_floor`]).
    pub noise_floor: bool,
    /// File for the predictions of the original, or of the model itself if there is no other: written if it does not exist, and read otherwise, in
    /// place of a pass of the text through the original. See [`Reference`].
    pub reference: Option<PathBuf>,
    /// Largest size in bytes of the logits in a new file of predictions. If they would take more, none are stored, and every evaluation that reads
    /// the file computes them again from the hidden states. 0 by default.
    pub reference_logits: u64,
}

/// The tokens for which the other model's largest probability is in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// Lower end of the interval, which belongs to it.
    pub from: f64,
    /// Upper end of the interval, which belongs to it only if it is 1.
    pub to: f64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Mean divergence of these tokens in nats. None if there is no token, or if it is not finite.
    pub kl_mean: Option<f64>,
}

impl From<Bucket> for Confidence {
    fn from(b: Bucket) -> Self {
        Self { from: b.from, to: b.to, tokens: b.tokens, kl_mean: b.kl_mean }
    }
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
    /// Median of these divergences in nats: the nearest rank of 0.5, the lower one of two middle values. None unless there is another model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_median: Option<f64>,
    /// The divergence in nats that 9 of 10 tokens do not exceed: the nearest rank of 0.9. None unless there is another model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_p90: Option<f64>,
    /// The divergences by the other model's largest probability, in five intervals of equal width. None unless there is another model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_by_confidence: Option<Vec<Confidence>>,
    /// Mean divergence in nats of the original from itself with the inputs of all matrices rounded to bf16, on the first windows that have 2048 tokens
    /// together. A smaller divergence cannot be told from rounding. The original is the other model, or this one if there is no other. None unless
    /// it was asked for.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_noise_floor: Option<f64>,
    /// Share of tokens whose most likely successor is that of the other model. None unless there is one.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Relative difference of the inputs of each site (one input and the matrices that read it) from those in the other model, by the name of the
    /// site. None unless there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_errors: Option<BTreeMap<String, Option<f64>>>,
    /// Share of prompts that the model continues with the answer ([`task`]). None unless they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_accuracy: Option<f64>,
    /// Number of prompts. None unless they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_total: Option<u64>,
}

impl Evaluation {
    /// Returns whether the divergence is below a noise floor: it cannot be told from the rounding of activations to bf16. False if there is no
    /// divergence or no floor.
    pub fn below_noise(&self, floor: Option<f64>) -> bool {
        self.kl_mean.zip(floor).is_some_and(|(kl, floor)| kl < floor)
    }
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
    let max = checkpoint.architecture()?.max_positions();
    match given {
        None => Ok(max.min(512)),
        Some(n) if (2..=max).contains(&n) => Ok(n),
        Some(n) => Err(ParamError::new("ctx", n, format!("must be 2 to {max}, the model's maximum")).into()),
    }
}

/// Returns the window length, and the tokens of the windows that `options` cuts from a text. Warns if there are fewer than wanted. Errors if the model is
/// no decoder, if `ctx` or `windows` is out of range, or if the text has no window.
fn cut(checkpoint: &Checkpoint, text: &Text, options: &Options, cx: &Context) -> Result<(usize, Vec<Vec<u32>>)> {
    checkpoint.architecture()?.decoder()?;
    let ctx = context(options.ctx, checkpoint)?;
    if options.windows == Some(0) {
        return Err(ParamError::new("windows", 0, "must be at least 1").into());
    }
    let tokens = Tokenizer::of(checkpoint)?.encode(&text.read()?)?;
    let cut = windows(&tokens, ctx, options.windows)?;
    if let Some(wanted) = options.windows
        && cut.len() < wanted
    {
        let what = format!("the text has {} windows of {ctx} tokens, fewer than {wanted}", cut.len());
        cx.progress.warn(&what);
    }
    Ok((ctx, cut.into_iter().map(<[u32]>::to_vec).collect()))
}

/// Errors if the caches of a model would change its predictions, which are to be stored: other caches are not part of what a file is checked by.
fn check_plain_caches(options: &Options, checkpoint: &Checkpoint) -> Result<()> {
    let recorded =
        checkpoint.manifest().and_then(|m| m.json["recipe"]["cache"].as_array()).is_some_and(|c| !c.is_empty());
    if options.kv.as_deref() == Some("f32") || options.kv.is_none() && !recorded {
        return Ok(());
    }
    let rule =
        "must not be used for a model with other caches than f32, unless it is compared with another (`--against`)";
    Err(ParamError::new("reference", "a file", rule).into())
}

/// Evaluates the decoder of a model file or directory on a text, and compares its predictions with those of the model `against`, if there is one.
/// `options` says what else is measured, and whether the predictions of the original are stored in a file or read from it.
///
/// Errors if a model cannot be opened or is no decoder, if their tokenizers differ, if the text has no window, if the file for predictions has those of
/// other inputs or is none, or if the work is cancelled.
pub fn decoder(
    model: &Path,
    text: &Text,
    against: Option<&Path>,
    options: &Options,
    kinds: &Kinds,
    cx: &Context,
) -> Result<Evaluation> {
    if let Some(path) = &options.reference {
        check_file(path, FileKind::Reference, &[model, Path::new(text.name())])?;
    }
    let checkpoint = Checkpoint::open(model, &kinds.operators)?;
    let (_, cut) = cut(&checkpoint, text, options, cx)?;
    let cut: Vec<&[u32]> = cut.iter().map(Vec::as_slice).collect();
    let (bits_per_weight, body_bits_per_weight) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let caches = Caches::of(options.kv.as_deref(), &checkpoint, kinds)?;
    let kv_bytes_per_token = caches.bytes_per_token;
    let other = against.map(|path| Checkpoint::open(path, &kinds.operators)).transpose()?;
    if let (Some(path), Some(other)) = (against, &other) {
        let (probe, of) = ("The quick brown fox, 1234.", |c: &Checkpoint| Tokenizer::of(c));
        if of(other)?.encode(probe)? != of(&checkpoint)?.encode(probe)? {
            let what = "it has another tokenizer, so predictions cannot be compared";
            return Err(Error::format(path.display().to_string(), what));
        }
    }
    let (mut reference, mut recorder) = (None, None);
    if let Some(path) = &options.reference {
        let source = other.as_ref().unwrap_or(&checkpoint);
        if other.is_none() {
            check_plain_caches(options, source)?;
        }
        if path.is_file() {
            let found = Reference::open(path)?;
            found.check(source, &cut)?;
            reference = Some(found);
        } else {
            recorder = Some(Recorder::create(path, source, &cut, options.reference_logits)?);
        }
    }
    let load = |c: Checkpoint| if options.stream { Decoder::load_streamed(c) } else { Decoder::load(&c) };
    let decoder = caches.attach(load(checkpoint)?);
    // If its states were stored, only its head is needed.
    let stored = reference.is_some();
    let original = other.map(|o| if stored { Decoder::load_streamed(o) } else { load(o) }).transpose()?;
    let request = Request {
        original: match (&original, &mut reference) {
            (Some(network), Some(reference)) => Some(Original::Stored { network, predictions: reference }),
            (Some(network), None) => Some(Original::Network(network)),
            (None, _) => None,
        },
        keep: recorder.as_mut().map(|r| r as &mut dyn KeepPredictions),
        noise_floor: options.noise_floor,
    };
    let found = evaluate_with(&decoder, request, &cut, &cx.exec, &*cx.progress, &cx.cancel)?;
    if let Some(recorder) = recorder {
        recorder.finish()?;
    }
    drop(original);
    let speed = if options.speed { Some(speed(&decoder, cut[0], cx)?) } else { None };
    let against = found.against.as_ref();
    let errors = |a: &tersor_models::Agreement| a.sites.iter().map(|(name, e)| (name.clone(), Some(*e))).collect();
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
        kl_median: against.map(|a| a.kl_median),
        kl_p90: against.map(|a| a.kl_p90),
        kl_by_confidence: against.map(|a| a.by_confidence.iter().copied().map(Confidence::from).collect()),
        kl_noise_floor: found.noise_floor,
        top1_agreement: against.map(|a| a.top1),
        site_errors: against.map(errors),
        task_accuracy: None,
        task_total: None,
    })
}

/// Returns tokens per second of prefill (one window, logits of its last token) and of decoding from an empty context; medians of three.
fn speed(decoder: &Decoder, window: &[u32], cx: &Context) -> Result<(f64, f64)> {
    let exec = &cx.exec;
    let median = |mut v: [f64; 3]| {
        v.sort_by(f64::total_cmp);
        v[1]
    };
    let (mut prefill, mut decode) = ([0.0; 3], [0.0; 3]);
    let count = DECODED.min(decoder.config().max_positions);
    for i in 0..3 {
        cx.cancel.check()?;
        let (mut state, start) = (decoder.state()?, Instant::now());
        decoder.next_logits(window, &mut state, exec)?;
        prefill[i] = window.len() as f64 / start.elapsed().as_secs_f64();
        let (mut state, start) = (decoder.state()?, Instant::now());
        for &token in window.iter().cycle().take(count) {
            cx.cancel.check()?;
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
