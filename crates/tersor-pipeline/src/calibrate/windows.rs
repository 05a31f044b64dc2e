//! Cuts a calibration text into tokens: windows for a decoder, sentences for an encoder.

use tersor_core::{Error, Progress, Result};
use tersor_formats::Model;
use tersor_models::{Architecture, Tokenizer};

use crate::plan::hash;
use crate::text::{Text, Tokens};

/// Tokenizes a calibration text and returns the token numbers of its first `wanted` windows: `ctx` tokens each for a decoder; for an encoder, the
/// tokens of each line that is not blank, with special tokens, at most `ctx`. `model` has the tokenizer, `network` the architecture. If the text has
/// fewer windows, all are returned and `progress` gets a warning. Tokens at the end of a decoder's text that do not fill a window are left out. The
/// tokens are kept with `text`, so that the next call with the same model and numbers does not tokenize again.
///
/// # Errors
///
/// An [`Error::Missing`], [`Error::Io`] or [`Error::Format`] if the model has no valid tokenizer or the text cannot be read. For a decoder, an error
/// if `ctx` is below 2, `wanted` is 0, or the text does not fill one window. For an encoder, an [`Error::Format`] with the name of the text if it has
/// no line that is not blank or `wanted` is 0.
pub fn cut(
    text: &Text,
    [wanted, ctx]: [usize; 2],
    model: &Model,
    network: &Architecture,
    progress: &dyn Progress,
) -> Result<Tokens> {
    let json = Tokenizer::json_of(model)?;
    let encoder = matches!(network, Architecture::Encoder(_));
    let content = text.read()?;
    let key = format!("{} {} {encoder} {wanted} {ctx}", hash(content.as_bytes()), hash(&json));
    text.cut(key, || {
        let tokenizer = Tokenizer::from_json(&json)?;
        tokens((text.name(), &content), [wanted, ctx], &tokenizer, network, progress)
    })
}

fn tokens(
    (name, content): (&str, &str),
    [wanted, ctx]: [usize; 2],
    tokenizer: &Tokenizer,
    network: &Architecture,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    let cut: Vec<Vec<u32>> = match network {
        Architecture::Decoder(_) => {
            let tokens = tokenizer.encode(content)?;
            let cut = tersor_models::windows(&tokens, ctx, Some(wanted)).map_err(|e| e.in_tensor(name))?;
            cut.into_iter().map(<[u32]>::to_vec).collect()
        }
        Architecture::Encoder(_) => sentences(tokenizer, content, Some(wanted), ctx)?,
    };
    if cut.is_empty() {
        return Err(Error::format(name, "it has no sentence; put one on each line"));
    }
    if cut.len() < wanted {
        let n = cut.len();
        let what = match network {
            Architecture::Decoder(_) => format!("windows of {ctx} tokens"),
            Architecture::Encoder(_) => "sentences".into(),
        };
        progress.warn(&format!("{name} has {n} {what}, fewer than {wanted} (--calib-windows); these are used"));
    }
    Ok(cut)
}

/// Returns the token numbers of each line of `text` that is not blank, without white space around the line and with the special tokens of the model.
/// Of a line of more than `ctx` tokens, the first `ctx - 1` and the last remain. `count` is the number of lines to take from the beginning; None for
/// all. The result is empty if there is no such line.
///
/// # Errors
///
/// An error if the tokenizer fails on a line.
pub fn sentences(tokenizer: &Tokenizer, text: &str, count: Option<usize>, ctx: usize) -> Result<Vec<Vec<u32>>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.take(count.unwrap_or(usize::MAX)).map(|line| tokenizer.encode_with_special_tokens(line, ctx)).collect()
}
