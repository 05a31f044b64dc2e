//! `tersor generate`.

use serde_json::json;
use std::io::Write;
use tersor::core::{Context, Exec, Result};
use tersor::llm::{Checkpoint, Decoder, Sampling, Tokenizer, generate};

use crate::{args, print_json};

pub fn run(a: &args::Generate, json: bool) -> Result<()> {
    let sampling = match a.temperature {
        None => Sampling::Greedy,
        Some(t) => Sampling::at(t, Context::new().with_seed(a.seed).stream("generate"))?,
    };
    let checkpoint = Checkpoint::open(&a.model, &tersor::registry())?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let decoder = Decoder::load(&checkpoint)?;
    let prompt = tokenizer.encode(&a.prompt)?;
    let (mut seen, mut shown) = (Vec::new(), String::new());
    if !json {
        print!("{}", a.prompt);
    }
    let tokens = generate(&decoder, &prompt, a.tokens, sampling, &mut Exec::new(), |t| {
        seen.push(t);
        // A character may take several tokens: show what is complete.
        if !json
            && let Ok(text) = tokenizer.decode(&seen)
            && !text.ends_with('\u{fffd}')
        {
            print!("{}", text.strip_prefix(shown.as_str()).unwrap_or_default());
            // A closed pipe ends the text, not the program.
            let open = std::io::stdout().flush().is_ok();
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
