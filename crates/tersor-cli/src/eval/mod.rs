//! `tersor eval`: measures perplexity, agreement with another model, size and speed.

mod sentences;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tersor::core::{Cancel, Error, Exec, ParamError, Progress, Result};
use tersor::llm::{Checkpoint, Decoder, Tokenizer, evaluate, windows};

use crate::kv::Spec;
use crate::{args, megabytes, print_json, progress};

/// Number of tokens in the test of decoding speed.
const DECODED: usize = 128;

/// Reads a text file. Errors if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| Error::format(path.display().to_string(), format!("not UTF-8: {e}")))
}

/// Returns the window length: the one given, else the smaller of 512 and the model's maximum. Errors if it is below 2 or above the maximum.
pub fn context(given: Option<usize>, checkpoint: &Checkpoint) -> Result<usize> {
    let max = checkpoint.architecture().max_positions();
    match given {
        None => Ok(max.min(512)),
        Some(n) if (2..=max).contains(&n) => Ok(n),
        Some(n) => Err(ParamError::new("ctx", n, format!("must be 2 to {max}, the model's maximum")).into()),
    }
}

pub fn run(a: &args::Eval, json: bool) -> Result<()> {
    match (&a.text, &a.sentences) {
        (Some(text), _) => decoder(a, text, json),
        (None, Some(path)) => sentences::run(a, path, json),
        (None, None) => Err(ParamError::new("text", "missing", "must be given, or --sentences for an encoder").into()),
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
    if let Some(wanted) = a.windows
        && cut.len() < wanted
    {
        bars.warn(&format!("the text has {} windows of {ctx} tokens, fewer than {wanted}", cut.len()));
    }
    let (bits, body) = checkpoint.bits_per_weight();
    let weight_bytes = checkpoint.model().weight_bytes();
    let caches = Spec::of(a.kv.as_deref(), &checkpoint)?.caches(&checkpoint)?;
    let kv = caches.bytes_per_token;
    let decoder = if a.stream { Decoder::load_streamed(checkpoint)? } else { Decoder::load(&checkpoint)? };
    let decoder = caches.attach(decoder);
    let original = match &a.against {
        Some(path) => {
            let other = Checkpoint::open(path, &registry)?;
            if Tokenizer::of(&other)?.encode("The quick brown fox, 1234.")?
                != tokenizer.encode("The quick brown fox, 1234.")?
            {
                return Err(Error::format(
                    path.display().to_string(),
                    "it has another tokenizer, so predictions cannot be compared",
                ));
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
    crate::outln!("perplexity     {:.4} over {} tokens", found.perplexity, found.tokens);
    if let Some(against) = &found.against {
        crate::outln!("KL mean        {:.5} nats", against.kl_mean);
        crate::outln!("top-1          {:.2} % agree", against.top1 * 100.0);
    }
    crate::outln!("bits/weight    {bits:.3} ({body:.3} without embedding and head)");
    crate::outln!("weights        {}", megabytes(weight_bytes));
    crate::outln!("cache          {kv} bytes/token");
    if let Some((prefill, decode)) = speed {
        crate::outln!("prefill        {prefill:.0} tokens/s");
        crate::outln!("decode         {decode:.1} tokens/s");
    }
    if let Some(rss) = peak_rss() {
        crate::outln!("peak memory    {}", megabytes(rss));
    }
    Ok(())
}

/// Returns tokens per second of prefill (one window, logits of its last token) and of decoding from an empty context; medians of three.
fn speed(decoder: &Decoder, window: &[u32], exec: &Exec) -> Result<(f64, f64)> {
    let median = |mut v: [f64; 3]| {
        v.sort_by(f64::total_cmp);
        v[1]
    };
    let (mut prefill, mut decode) = ([0.0; 3], [0.0; 3]);
    let count = DECODED.min(decoder.config().max_positions);
    for i in 0..3 {
        let (mut state, start) = (decoder.state()?, Instant::now());
        decoder.next_logits(window, &mut state, exec)?;
        prefill[i] = window.len() as f64 / start.elapsed().as_secs_f64();
        let (mut state, start) = (decoder.state()?, Instant::now());
        for &token in window.iter().cycle().take(count) {
            decoder.next_logits(&[token], &mut state, exec)?;
        }
        decode[i] = count as f64 / start.elapsed().as_secs_f64();
    }
    Ok((median(prefill), median(decode)))
}

/// Returns the peak resident memory of this process in bytes, on Linux.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
