//! `tersor eval`: measures perplexity, agreement with another model, size and speed.

use tersor::core::{ParamError, Result};
use tersor::pipeline::evaluate::{self, Options};
use tersor::pipeline::{Text, megabytes};

use crate::{args, context, print_json};

pub fn run(a: &args::Eval, json: bool) -> Result<()> {
    let (kinds, cx, against) = (tersor::kinds(), context(0, None), a.against.as_deref());
    let options = Options { ctx: a.ctx, windows: a.windows, kv: a.kv.clone(), speed: !a.no_speed, stream: a.stream };
    let path = match (&a.text, &a.sentences, against) {
        (Some(text), ..) => text,
        (None, Some(path), Some(against)) => {
            let found = evaluate::sentences(&a.model, &Text::file(path), against, &options, kinds, &cx)?;
            return sentences(&found, json);
        }
        (None, Some(_), None) => {
            return Err(ParamError::new("against", "missing", "must be given with --sentences").into());
        }
        (None, None, _) => {
            let rule = "must be given, or --sentences for an encoder";
            return Err(ParamError::new("text", "missing", rule).into());
        }
    };
    let found = evaluate::decoder(&a.model, &Text::file(path), against, &options, kinds, &cx)?;
    if json {
        return print_json(&found);
    }
    outln!("perplexity     {:.4} over {} tokens", found.perplexity, found.tokens);
    if let (Some(kl), Some(top1)) = (found.kl_mean, found.top1_agreement) {
        outln!("KL mean        {kl:.5} nats");
        outln!("top-1          {:.2} % agree", top1 * 100.0);
    }
    let (bits, body) = (found.bits_per_weight, found.body_bits_per_weight);
    outln!("bits/weight    {bits:.3} ({body:.3} without embedding and head)");
    outln!("weights        {}", megabytes(found.weight_bytes));
    outln!("cache          {} bytes/token", found.kv_bytes_per_token);
    if let (Some(prefill), Some(decode)) = (found.prefill_tokens_per_s, found.decode_tokens_per_s) {
        outln!("prefill        {prefill:.0} tokens/s");
        outln!("decode         {decode:.1} tokens/s");
    }
    if let Some(rss) = found.peak_rss_bytes {
        outln!("peak memory    {}", megabytes(rss));
    }
    Ok(())
}

fn sentences(found: &evaluate::SentenceEvaluation, json: bool) -> Result<()> {
    if json {
        return print_json(found);
    }
    let (mean, min, n) = (found.cosine_mean, found.cosine_min, found.sentences);
    outln!("cosine         mean {mean:.5}, minimum {min:.5} over {n} sentences");
    let (bits, body) = (found.bits_per_weight, found.body_bits_per_weight);
    outln!("bits/weight    {bits:.3} ({body:.3} without embeddings)");
    outln!("weights        {}", megabytes(found.weight_bytes));
    Ok(())
}
