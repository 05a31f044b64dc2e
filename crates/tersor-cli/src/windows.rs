//! A calibration text as tokens: windows for a decoder, sentences for an encoder.

use tersor::core::{Error, Progress, Result};
use tersor::llm::{Architecture, Checkpoint, Tokenizer};

use crate::plan::Plan;

/// The windows that the plan asks for: runs of `ctx` tokens, or for an encoder a line each, of at most `ctx` tokens. Fewer than asked
/// for: a warning. None: an error.
pub fn cut(plan: &Plan, checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<Vec<Vec<u32>>> {
    let text = plan.calibration.as_ref();
    let text = text.ok_or_else(|| Error::Missing { name: "calibration text".into(), place: "the plan".into() })?;
    let tokenizer = Tokenizer::of(checkpoint)?;
    let [asked, ctx] = plan.windows;
    let cut: Vec<Vec<u32>> = match checkpoint.architecture() {
        Architecture::Decoder(_) => {
            let tokens = tokenizer.encode(&text.content)?;
            let cut = tersor::llm::windows(&tokens, ctx, Some(asked)).map_err(|e| e.in_tensor(&text.name))?;
            cut.into_iter().map(<[u32]>::to_vec).collect()
        }
        Architecture::Encoder(_) => sentences(&tokenizer, &text.content, Some(asked), ctx)?,
    };
    if cut.is_empty() {
        return Err(Error::format(&text.name, "has no sentence: one a line is needed"));
    }
    if cut.len() < asked {
        let n = cut.len();
        progress.warn(&format!("{} has {n} windows of {ctx} tokens, fewer than {asked}", text.name));
    }
    Ok(cut)
}

/// Tokens of each line that is not blank, the first `count` of them.
pub fn sentences(tokenizer: &Tokenizer, text: &str, count: Option<usize>, ctx: usize) -> Result<Vec<Vec<u32>>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.take(count.unwrap_or(usize::MAX)).map(|line| tokenizer.encode_framed(line, ctx)).collect()
}
