//! Cuts a calibration text into tokens: windows for a decoder, sentences for an encoder.

use tersor::core::{Error, Progress, Result};
use tersor::llm::{Architecture, Checkpoint, Tokenizer};

use crate::plan::Plan;

/// Returns the calibration windows of a plan: `ctx` tokens each for a decoder, the tokens of a line (at most `ctx`) for an encoder. Warns if there are
/// fewer than the plan has. Errors if there are none.
pub fn cut(plan: &Plan, checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<Vec<Vec<u32>>> {
    let text = plan.calibration.as_ref();
    let text = text.ok_or_else(|| Error::Missing { name: "calibration text".into(), place: "the plan".into() })?;
    let tokenizer = Tokenizer::of(checkpoint)?;
    let [wanted, ctx] = plan.windows;
    let cut: Vec<Vec<u32>> = match checkpoint.architecture() {
        Architecture::Decoder(_) => {
            let tokens = tokenizer.encode(&text.content)?;
            let cut = tersor::llm::windows(&tokens, ctx, Some(wanted)).map_err(|e| e.in_tensor(&text.name))?;
            cut.into_iter().map(<[u32]>::to_vec).collect()
        }
        Architecture::Encoder(_) => sentences(&tokenizer, &text.content, Some(wanted), ctx)?,
    };
    if cut.is_empty() {
        return Err(Error::format(&text.name, "it has no sentence; put one on each line"));
    }
    if cut.len() < wanted {
        let n = cut.len();
        progress.warn(&format!("{} has {n} windows of {ctx} tokens, fewer than {wanted}", text.name));
    }
    Ok(cut)
}

/// Returns the tokens of each line that is not blank, with special tokens, at most `ctx` of them; of the first `count` lines, or of all.
pub fn sentences(tokenizer: &Tokenizer, text: &str, count: Option<usize>, ctx: usize) -> Result<Vec<Vec<u32>>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.take(count.unwrap_or(usize::MAX)).map(|line| tokenizer.encode_with_special_tokens(line, ctx)).collect()
}
