//! Cuts a calibration text into tokens: windows for a decoder, sentences for an encoder.

use tersor_core::{Error, Progress, Result};
use tersor_formats::Model;
use tersor_models::{Architecture, Tokenizer};

use crate::plan::hash;
use crate::text::{Text, Tokens};

/// Returns the first `wanted` calibration windows of a text as tokens: `ctx` tokens each for a decoder, the tokens of a line (at most `ctx`) for an
/// encoder. Warns if there are fewer. Errors if there are none, the model has no valid tokenizer, or the text cannot be read. The tokens are kept with
/// the text, so that it is tokenized once for the same model and windows.
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

/// Returns the tokens of each line that is not blank, with special tokens, at most `ctx` of them; of the first `count` lines, or of all.
pub fn sentences(tokenizer: &Tokenizer, text: &str, count: Option<usize>, ctx: usize) -> Result<Vec<Vec<u32>>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.take(count.unwrap_or(usize::MAX)).map(|line| tokenizer.encode_with_special_tokens(line, ctx)).collect()
}
