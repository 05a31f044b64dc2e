//! `tersor generate`: continues a text.

use serde_json::json;
use std::io::Write;
use tersor::core::{Context, Exec, Result};
use tersor::models::{Checkpoint, Decoder, Sampling, Tokenizer, generate};
use tersor::pipeline::Caches;

use crate::{args, print_json};

pub fn run(a: &args::Generate, json: bool) -> Result<()> {
    let sampling = match a.temperature {
        None => Sampling::Greedy,
        Some(t) => Sampling::at(t, Context::new().with_seed(a.seed).stream("generate"))?,
    };
    let checkpoint = Checkpoint::open(&a.model, &tersor::kinds().operators)?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let caches = Caches::of(a.kv.as_deref(), &checkpoint, tersor::kinds())?;
    let decoder = caches.attach(Decoder::load(&checkpoint)?);
    let prompt = tokenizer.encode(&a.prompt)?;
    let (mut seen, mut shown) = (Vec::new(), String::new());
    if !json {
        write_now(&a.prompt);
    }
    let tokens = generate(&decoder, &prompt, a.tokens, sampling, &Exec::new(), |t| {
        seen.push(t);
        // A character may take several tokens: only complete ones are shown.
        if !json
            && let Ok(text) = tokenizer.decode(&seen)
            && !text.ends_with('\u{fffd}')
        {
            // Generation stops if the pipe is closed.
            let open = write_now(text.strip_prefix(shown.as_str()).unwrap_or_default());
            shown = text;
            return open;
        }
        true
    })?;
    if json {
        let text = tokenizer.decode(&tokens)?;
        return print_json(&json!({"prompt": a.prompt, "text": text, "prompt_tokens": prompt, "tokens": tokens}));
    }
    outln!();
    Ok(())
}

/// Prints a piece of text without buffering. Returns false if stdout is closed.
fn write_now(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
