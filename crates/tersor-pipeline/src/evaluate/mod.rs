//! Evaluation: perplexity and agreement of a decoder with its original ([`decoder`]), answers to prompts ([`task`]), agreement of the embeddings of
//! an encoder ([`sentences`]), errors of matrices ([`weights`]), size and speed.
//!
//! A *window* is a run of tokens of a text that a decoder predicts on its own; windows do not overlap. A *scored token* is any token of a window but
//! the first: it is predicted from the tokens in front of it.

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

/// How [`decoder`], [`sentences`] and [`task`] evaluate a model; each says which of the fields it uses. By default all of a text is used, and only
/// the figures of predictions are measured.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// The number of tokens of a window (a run of tokens that is predicted on its own), from 2 to the model's maximum; for an encoder, the maximum
    /// per line. None for the smaller of 512 and the model's maximum.
    pub ctx: Option<usize>,
    /// The number of windows to take from the beginning of the text, at least 1; for [`sentences`] the number of lines, for [`task`] the number of
    /// prompts. None for all.
    pub windows: Option<usize>,
    /// The form in which key-value caches are stored, as a name such as `int4-hadamard` ([`CacheRule::parse`](crate::recipe::CacheRule::parse)). None
    /// for the form that the recipe of a compressed model records, and f32 if it records none.
    pub kv: Option<String>,
    /// Whether the speeds of prefill and decoding are measured ([`Evaluation::prefill_tokens_per_s`], [`Evaluation::decode_tokens_per_s`]).
    pub speed: bool,
    /// Whether each layer is read when it runs, so that only the weights of one layer at a time are in memory. The figures are the same.
    pub stream: bool,
    /// Whether to measure the divergence that the rounding of activations to bf16 causes in the original ([`Evaluation::kl_noise_floor`]).
    pub noise_floor: bool,
    /// The path of a file of the original's predictions ([`Reference`]); None for no file. It is written if it does not exist. If it exists, the
    /// original does not run again: its predictions are read from the file. The original is the model to compare with. If there is none, it is the
    /// evaluated model itself, which then runs in any case, and an existing file is only checked.
    pub reference: Option<PathBuf>,
    /// The largest total size in bytes of the logits that a new file of predictions may have. If all logits would take more, none are stored, and
    /// each evaluation that reads the file computes them from the hidden states. 0 by default, so that none are stored.
    pub reference_logits: u64,
}

/// The scored tokens (all but the first of each window, a run of tokens) whose confidence is in an interval. The confidence of a token is the largest
/// next-token probability of the other model, which the predictions are compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// The lower end of the interval, which belongs to it.
    pub from: f64,
    /// The upper end of the interval, which belongs to it only if it is 1.
    pub to: f64,
    /// The number of these tokens.
    pub tokens: u64,
    /// The mean Kullback-Leibler divergence of the predictions of these tokens, in nats. None if there is no such token; if the figures were read
    /// from JSON, also if it was not finite.
    pub kl_mean: Option<f64>,
}

impl From<Bucket> for Confidence {
    fn from(b: Bucket) -> Self {
        Self { from: b.from, to: b.to, tokens: b.tokens, kl_mean: b.kl_mean }
    }
}

/// The figures of a decoder on a text, as [`decoder`] returns them. *The other model* is the one whose predictions they were compared with. A *scored
/// token* is any token of a window (a run of tokens that is predicted on its own) but the first. In JSON, numbers that are not finite are `null`,
/// which is read as NaN.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The perplexity: the exponential of the mean negative log-likelihood of the scored tokens in nats.
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
    /// The number of scored tokens: all but the first of each window.
    pub tokens: u64,
    /// The stored bits per element over all two-dimensional tensors, embedding tables and output head included; 0 if there are none.
    #[serde(deserialize_with = "number")]
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables and output head; 0 if there are none.
    #[serde(deserialize_with = "number")]
    pub body_bits_per_weight: f64,
    /// The total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// The bytes that one token takes in the key-value caches of all layers together.
    pub kv_bytes_per_token: usize,
    /// The peak resident memory of this process so far in bytes ([`peak_rss`]); None on other systems than Linux.
    pub peak_rss_bytes: Option<u64>,
    /// The speed of prefill in tokens per second: the first window at once, with the logits of its last token; the median of three runs. None unless
    /// [`Options::speed`] is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// The speed of decoding in tokens per second: up to 128 tokens, one after the other, from an empty context; the median of three runs. None
    /// unless [`Options::speed`] is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f64>,
    /// The mean over the scored tokens of the Kullback-Leibler divergence `KL(other model ‖ this model)` of next-token distributions, in nats. None
    /// if there is no other model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_mean: Option<f64>,
    /// The median of these divergences in nats: the nearest rank of 0.5, which is the lower one of two middle values. None if there is no other
    /// model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_median: Option<f64>,
    /// The divergence in nats that 9 of 10 scored tokens do not exceed: the nearest rank of 0.9. None if there is no other model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_p90: Option<f64>,
    /// The divergences by the largest next-token probability in the other model, in the five intervals `[0, 0.2)`, `[0.2, 0.4)` to `[0.8, 1]`, in
    /// order. None if there is no other model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_by_confidence: Option<Vec<Confidence>>,
    /// The mean divergence in nats of the original from itself with the inputs of all matrices rounded to bf16, on the first windows that have 2048
    /// tokens together. A divergence below it cannot be told from rounding. The original is the other model, or this one if there is no other. None
    /// unless [`Options::noise_floor`] is set.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub kl_noise_floor: Option<f64>,
    /// The share, 0 to 1, of the scored tokens for which both models predict the same most probable token. None if there is no other model.
    #[serde(default, deserialize_with = "number_of", skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// The relative error `‖x - x₀‖ / ‖x₀‖` of the inputs `x` of each [`Site`](tersor_core::Site) (an input of linear layers with the matrices that
    /// read it) against the inputs `x₀` in the other model, over a sample of the tokens, by the name of the site. A value is None if it was read from
    /// JSON and was not finite. Empty if names or widths of the sites of the two models differ. None if there is no other model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_errors: Option<BTreeMap<String, Option<f64>>>,
    /// The share, 0 to 1, of prompts that the model continues with the answer ([`TaskEvaluation::task_accuracy`]). [`decoder`] leaves it None; a
    /// caller that also runs [`task`] may set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_accuracy: Option<f64>,
    /// The number of these prompts ([`TaskEvaluation::task_total`]). [`decoder`] leaves it None; a caller that also runs [`task`] may set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_total: Option<u64>,
}

impl Evaluation {
    /// Returns whether the mean divergence [`kl_mean`](Self::kl_mean) is below `floor` in nats, so that it cannot be told from the rounding of
    /// activations to bf16. `floor` is the [`kl_noise_floor`](Self::kl_noise_floor) of the original. False if either is None or NaN.
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

/// Returns the window length, and the tokens of the windows that `options` cuts from a text. Warns if there are fewer than wanted. Errors if the
/// model is no decoder, if `ctx` or `windows` is out of range, or if the text has no window.
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

/// Evaluates the decoder of the model at `model` on `text`, and compares its predictions with those of the model at `against`, if there is one. Both
/// are paths of a model directory, a `.gguf` file, or an output directory of [`compress`](crate::compress()). The text is cut into windows (runs of
/// tokens that are predicted on their own) without overlap; tokens at its end that do not fill a window are not used. All fields of `options` count.
/// `kinds` loads operators and caches; `cx` has threads, progress, warnings and cancellation. Warns if the text has fewer windows than asked for.
///
/// Errors with [`Error::Param`] if [`Options::ctx`] or [`Options::windows`] is out of range, [`Options::kv`] is unknown, or [`Options::reference`] is
/// set without `against` for a model whose caches are not f32. Errors with [`Error::Io`], [`Error::Format`], [`Error::Limit`], [`Error::Missing`] or
/// [`Error::Unsupported`] if a model or the text cannot be read, or a model is no decoder of a known architecture or has no tokenizer.
///
/// Errors with [`Error::Format`] if the text does not fill one window; with the path, if the other model tokenizes a short test sentence differently,
/// if the file of predictions has those of another model, text or version, or if a file of another kind is in its place. Errors with [`Error::Shape`]
/// if the vocabularies of the models differ in size. Errors if a token is outside of the vocabulary or a logit is not finite, and with
/// [`Error::Cancelled`] if the work is cancelled.
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

/// Returns the peak resident memory of this process since it began, in bytes (`VmHWM` in Linux's `/proc/self/status`). None on other systems, or if
/// the system does not tell. It cannot fail.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
