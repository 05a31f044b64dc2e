//! `tersor eval`: perplexity, agreement, size, speed.

mod sentences;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tersor::core::{Cancel, Error, Exec, ParamError, Progress, Result};
use tersor::llm::{Checkpoint, Decoder, Tokenizer, evaluate, windows};

use crate::kv::Spec;
use crate::{args, megabytes, print_json, progress};

/// Tokens of the decoding speed test.
const DECODED: usize = 128;

/// Reads a text. Error when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| Error::format(path.display().to_string(), format!("not UTF-8: {e}")))
}

/// The window length: as asked, else the smaller of 512 and the model's maximum. Error when it is above the maximum.
pub fn context(asked: Option<usize>, checkpoint: &Checkpoint) -> Result<usize> {
    let max = checkpoint.architecture().max_positions();
    match asked {
        None => Ok(max.min(512)),
        Some(n) if (2..=max).contains(&n) => Ok(n),
        Some(n) => Err(ParamError::new("ctx", n, format!("must be 2 to {max}, which the model was made for")).into()),
    }
}

pub fn run(a: &args::Eval, json: bool) -> Result<()> {
    match (&a.text, &a.sentences) {
        (Some(text), _) => decoder(a, text, json),
        (None, Some(path)) => sentences::run(a, path, json),
        (None, None) => Err(ParamError::new("text", "missing", "or --sentences is needed").into()),
    }
}

fn decoder(a: &args::Eval, text: &Path, json: bool) -> Result<()> {
    let registry = tersor::registry();
    let checkpoint = Checkpoint::open(&a.model, &registry)?;
    let ctx = context(a.ctx, &checkpoint)?;
    if a.windows == Some(0) {
        return Err(ParamError::new("windows", 0, "must be at least 1").into());
    }
    checkpoint.architecture().decoder()?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let tokens = tokenizer.encode(&read_text(text)?)?;
    let cut = windows(&tokens, ctx, a.windows)?;
    let bars = progress::bars();
    if let Some(asked) = a.windows
        && cut.len() < asked
    {
        bars.warn(&format!("the text has {} windows of {ctx} tokens, fewer than {asked}", cut.len()));
    }
    let (bits, body) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let caches = Spec::of(a.kv.as_deref(), &checkpoint)?.caches(&checkpoint)?;
    let kv = caches.bytes_per_token;
    let decoder = if a.stream { Decoder::load_streamed(checkpoint)? } else { Decoder::load(&checkpoint)? };
    let decoder = caches.give(decoder);
    let original = match &a.against {
        Some(path) => {
            let other = Checkpoint::open(path, &registry)?;
            if Tokenizer::of(&other)?.encode("The quick brown fox, 1234.")?
                != tokenizer.encode("The quick brown fox, 1234.")?
            {
                return Err(Error::format(path.display().to_string(), "has another tokenizer"));
            }
            Some(if a.stream { Decoder::load_streamed(other)? } else { Decoder::load(&other)? })
        }
        None => None,
    };
    let exec = Exec::new();
    let found = evaluate(&decoder, original.as_ref(), &cut, &exec, &*bars, &Cancel::new())?;
    drop(original);
    let speed = if a.no_speed { None } else { Some(speed(&decoder, cut[0], &exec)?) };
    let mut out = json!({
        "perplexity": found.perplexity, "tokens": found.tokens, "bits_per_weight": bits, "body_bits_per_weight": body,
        "weight_bytes": weight_bytes, "kv_bytes_per_token": kv, "peak_rss_bytes": peak_rss(),
    });
    if let Some((prefill, decode)) = speed {
        out["prefill_tokens_per_s"] = prefill.into();
        out["decode_tokens_per_s"] = decode.into();
    }
    if let Some(against) = &found.against {
        out["kl_mean"] = against.kl_mean.into();
        out["top1_agreement"] = against.top1.into();
        out["site_errors"] = against.sites.iter().cloned().collect::<BTreeMap<String, f64>>().into_iter().collect();
    }
    if json {
        print_json(&out);
        return Ok(());
    }
    crate::say!("perplexity     {:.4} over {} tokens", found.perplexity, found.tokens);
    if let Some(against) = &found.against {
        crate::say!("KL mean        {:.5} nats", against.kl_mean);
        crate::say!("top-1          {:.2} % agree", against.top1 * 100.0);
    }
    crate::say!("bits a weight  {bits:.3} ({body:.3} without embedding and head)");
    crate::say!("weights        {}", megabytes(weight_bytes));
    crate::say!("cache          {kv} bytes a token");
    if let Some((prefill, decode)) = speed {
        crate::say!("prefill        {prefill:.0} tokens/s");
        crate::say!("decode         {decode:.1} tokens/s");
    }
    if let Some(rss) = peak_rss() {
        crate::say!("peak memory    {}", megabytes(rss));
    }
    Ok(())
}

/// Tokens a second: prefill of one window (logits of its last token), and decoding from an empty context. Medians of three.
fn speed(decoder: &Decoder, window: &[u32], exec: &Exec) -> Result<(f64, f64)> {
    let median = |mut v: [f64; 3]| {
        v.sort_by(f64::total_cmp);
        v[1]
    };
    let (mut prefill, mut decode) = ([0.0; 3], [0.0; 3]);
    let count = DECODED.min(decoder.config().max_positions);
    for i in 0..3 {
        let (mut state, start) = (decoder.state()?, Instant::now());
        decoder.next(window, &mut state, exec)?;
        prefill[i] = window.len() as f64 / start.elapsed().as_secs_f64();
        let (mut state, start) = (decoder.state()?, Instant::now());
        for &token in window.iter().cycle().take(count) {
            decoder.next(&[token], &mut state, exec)?;
        }
        decode[i] = count as f64 / start.elapsed().as_secs_f64();
    }
    Ok((median(prefill), median(decode)))
}

/// Most memory that this process has had resident, where the system tells.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
