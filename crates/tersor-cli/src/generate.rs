//! `tersor generate`.

use serde_json::json;
use std::io::Write;
use tersor::core::{Context, Exec, Result};
use tersor::llm::{Checkpoint, Decoder, Sampling, Tokenizer, generate};

use crate::kv::Spec;
use crate::{args, print_json};

pub fn run(a: &args::Generate, json: bool) -> Result<()> {
    let sampling = match a.temperature {
        None => Sampling::Greedy,
        Some(t) => Sampling::at(t, Context::new().with_seed(a.seed).stream("generate"))?,
    };
    let checkpoint = Checkpoint::open(&a.model, &tersor::registry())?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let decoder = Spec::of(a.kv.as_deref(), &checkpoint)?.caches(&checkpoint)?.give(Decoder::load(&checkpoint)?);
    let prompt = tokenizer.encode(&a.prompt)?;
    let (mut seen, mut shown) = (Vec::new(), String::new());
    if !json {
        say(&a.prompt);
    }
    let tokens = generate(&decoder, &prompt, a.tokens, sampling, &Exec::new(), |t| {
        seen.push(t);
        // A character may take several tokens: show what is complete.
        if !json
            && let Ok(text) = tokenizer.decode(&seen)
            && !text.ends_with('\u{fffd}')
        {
            // A closed pipe ends the text, not the program.
            let open = say(text.strip_prefix(shown.as_str()).unwrap_or_default());
            shown = text;
            return open;
        }
        true
    })?;
    if json {
        print_json(
            &json!({"prompt": a.prompt, "text": tokenizer.decode(&tokens)?, "prompt_tokens": prompt, "tokens": tokens}),
        );
    } else {
        crate::say!();
    }
    Ok(())
}

/// Prints a piece of text at once; whether anybody still reads.
fn say(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
