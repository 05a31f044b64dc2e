//! [`task`]: prompts with known answers, which a decoder continues.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tersor_core::{Context, Error, ParamError, Result};
use tersor_models::{Checkpoint, Decoder, Sampling, Tokenizer, generate};

use super::{Options, peak_rss};
use crate::caches::Caches;
use crate::kinds::Kinds;
use crate::text::Text;

/// Number of new tokens beyond those of the answer, for white space in front of it.
const SPARE: usize = 2;

/// The figures of a decoder on prompts with known answers, as [`task`] returns them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskEvaluation {
    /// The share, 0 to 1, of the prompts whose continuation is the answer.
    pub task_accuracy: f64,
    /// The number of prompts.
    pub task_total: u64,
    /// The stored bits per element over all two-dimensional tensors, embedding tables and output head included.
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables and output head.
    pub body_bits_per_weight: f64,
    /// The total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// The peak resident memory of this process so far in bytes ([`peak_rss`]); None on other systems than Linux.
    pub peak_rss_bytes: Option<u64>,
}

/// A prompt and the answer with which a decoder should continue it, as [`questions`] reads them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The text that the decoder continues, unchanged, with white space at its ends.
    pub prompt: String,
    /// The expected continuation, without white space at its ends.
    pub answer: String,
}

/// Reads the prompts and answers of `text`, which is in JSON lines: each line is an object with the strings `prompt` and `answer`. Other keys and
/// blank lines are ignored. Returns each question with the number of its line, counted from 1.
///
/// Errors with [`Error::Format`], with `NAME:LINE` (name of the text, number of the line), if a line is no JSON, or if one of the two strings is
/// missing, no string, or blank. Errors with [`Error::Format`], with the name of the text, if all lines are blank. Errors as [`Text::read`] does if
/// the text cannot be read.
///
/// ```
/// use tersor_pipeline::{Text, evaluate::questions};
/// let text = Text::new("sums", "{\"prompt\": \"1 + 1 =\", \"answer\": \" 2\"}\n");
/// assert_eq!(questions(&text).unwrap()[0].1.answer, "2");
/// assert!(questions(&Text::new("sums", "{\"prompt\": 1}")).unwrap_err().to_string().starts_with("sums:1"));
/// ```
pub fn questions(text: &Text) -> Result<Vec<(usize, Question)>> {
    let mut all = Vec::new();
    for (i, line) in text.read()?.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |what: String| Error::format(place(text, i + 1), what);
        let json: Json = serde_json::from_str(line).map_err(|e| bad(format!("it is no JSON: {e}")))?;
        let field = |key: &str| match json[key].as_str() {
            Some(value) if value.trim().is_empty() => Err(bad(format!("`{key}` is empty"))),
            Some(value) => Ok(value.to_string()),
            None => Err(bad(format!("`{key}` is missing or no text"))),
        };
        all.push((i + 1, Question { prompt: field("prompt")?, answer: field("answer")?.trim().to_string() }));
    }
    if all.is_empty() {
        return Err(Error::format(text.name(), "it has no line with a prompt and an answer"));
    }
    Ok(all)
}

/// Returns the name of a line, counted from 1.
fn place(text: &Text, line: usize) -> String {
    format!("{}:{line}", text.name())
}

/// Continues the prompts of `text`, which has the form that [`questions`] describes, with the decoder of the model at `model`, and counts the
/// continuations that are the answer. `model` is the path of a model directory, a `.gguf` file, or an output directory of
/// [`compress`](crate::compress()). At each step the most probable token follows. A continuation ends at an end-of-text token, as soon as its text is
/// as long as the answer (both without white space at the ends), or two tokens after the number that the answer has. It must then equal the answer,
/// white space at its ends apart; text that the model would add after the answer does not count.
///
/// Of `options`, [`windows`](Options::windows) (the number of prompts from the beginning), [`kv`](Options::kv) and [`stream`](Options::stream) count.
/// `kinds` loads operators and caches; `cx` has threads, progress and cancellation.
///
/// Errors as [`questions`] does. Errors with [`Error::Format`], with `NAME:LINE`, if a prompt has no token, or if prompt, answer and two more tokens
/// exceed the model's maximum. Errors with [`Error::Param`] if [`Options::kv`] is unknown or [`Options::windows`] is 0. Errors with [`Error::Io`],
/// [`Error::Format`], [`Error::Limit`], [`Error::Missing`] or [`Error::Unsupported`] if the model cannot be read, is no decoder of a known
/// architecture, or has no tokenizer. Errors if a value in the network is not finite, and with [`Error::Cancelled`] if the work is cancelled.
pub fn task(model: &Path, text: &Text, options: &Options, kinds: &Kinds, cx: &Context) -> Result<TaskEvaluation> {
    if options.windows == Some(0) {
        return Err(ParamError::new("windows", 0, "must be at least 1").into());
    }
    let checkpoint = Checkpoint::open(model, &kinds.operators)?;
    let max = checkpoint.architecture()?.decoder()?.max_positions;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let mut all = Vec::new();
    for (line, question) in questions(text)?.into_iter().take(options.windows.unwrap_or(usize::MAX)) {
        let prompt = tokenizer.encode(&question.prompt)?;
        let limit = tokenizer.encode(&question.answer)?.len() + SPARE;
        if prompt.is_empty() {
            return Err(Error::format(place(text, line), "its prompt has no token"));
        }
        if prompt.len() + limit > max {
            let what =
                format!("prompt and answer have {} tokens, more than the {max} of the model", prompt.len() + limit);
            return Err(Error::format(place(text, line), what));
        }
        all.push((prompt, limit, question.answer));
    }
    let (bits_per_weight, body_bits_per_weight) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let caches = Caches::of(options.kv.as_deref(), &checkpoint, kinds)?;
    let loaded = if options.stream { Decoder::load_streamed(checkpoint) } else { Decoder::load(&checkpoint) };
    let decoder = caches.attach(loaded?);
    let mut right = 0u64;
    cx.progress.begin("task", all.len() as u64);
    for (prompt, limit, answer) in &all {
        cx.cancel.check()?;
        let mut seen = Vec::new();
        let more = |token| {
            seen.push(token);
            tokenizer.decode(&seen).is_ok_and(|said| said.trim().len() < answer.len())
        };
        let tokens = generate(&decoder, prompt, *limit, Sampling::Greedy, &cx.exec, more)?;
        right += u64::from(tokenizer.decode(&tokens)?.trim() == answer);
        cx.progress.advance(1, "");
    }
    cx.progress.end();
    Ok(TaskEvaluation {
        task_accuracy: right as f64 / all.len() as f64,
        task_total: all.len() as u64,
        bits_per_weight,
        body_bits_per_weight,
        weight_bytes,
        peak_rss_bytes: peak_rss(),
    })
}
