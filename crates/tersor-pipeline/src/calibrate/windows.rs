//! Cuts a calibration text into tokens: windows for a decoder, sentences for an encoder.

use tersor_core::{Error, Progress, Result};
use tersor_llm::{Architecture, Checkpoint, Tokenizer};

use crate::text::Text;

/// Returns the first `wanted` calibration windows of a text as tokens: `ctx` tokens each for a decoder, the tokens of a line (at most `ctx`) for an
/// encoder. Warns if there are fewer. Errors if there are none, or the text cannot be read.
pub fn cut(
    text: &Text,
    [wanted, ctx]: [usize; 2],
    checkpoint: &Checkpoint,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let (content, name) = (text.read()?, text.name());
    let cut: Vec<Vec<u32>> = match checkpoint.architecture() {
        Architecture::Decoder(_) => {
            let tokens = tokenizer.encode(&content)?;
            let cut = tersor_llm::windows(&tokens, ctx, Some(wanted)).map_err(|e| e.in_tensor(name))?;
            cut.into_iter().map(<[u32]>::to_vec).collect()
        }
        Architecture::Encoder(_) => sentences(&tokenizer, &content, Some(wanted), ctx)?,
    };
    if cut.is_empty() {
        return Err(Error::format(name, "it has no sentence; put one on each line"));
    }
    if cut.len() < wanted {
        let n = cut.len();
        progress.warn(&format!("{name} has {n} windows of {ctx} tokens, fewer than {wanted}"));
    }
    Ok(cut)
}

/// Returns the tokens of each line that is not blank, with special tokens, at most `ctx` of them; of the first `count` lines, or of all.
pub fn sentences(tokenizer: &Tokenizer, text: &str, count: Option<usize>, ctx: usize) -> Result<Vec<Vec<u32>>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.take(count.unwrap_or(usize::MAX)).map(|line| tokenizer.encode_with_special_tokens(line, ctx)).collect()
}
