//! `tersor eval`: measures perplexity, agreement with another model, size and speed.

use serde::Serialize;
use tersor::core::{ParamError, Result};
use tersor::pipeline::evaluate::{self, Evaluation, Options, TaskEvaluation};
use tersor::pipeline::output::{FileKind, check_distinct, check_file};
use tersor::pipeline::{Text, megabytes};

use crate::{args, context, print_json};

pub fn run(a: &args::Eval, json: bool) -> Result<()> {
    let (kinds, cx, against) = (tersor::kinds(), context(0, None), a.against.as_deref());
    crate::cancel_on_signals(&cx.cancel);
    let options = Options {
        ctx: a.ctx,
        windows: a.windows,
        kv: a.kv.clone(),
        speed: !a.no_speed,
        stream: a.stream,
        noise_floor: a.noise_floor,
        reference: a.reference.clone(),
        reference_logits: a.reference_logits,
    };
    if let Some(out) = &a.out {
        let read = [Some(&a.model), a.text.as_ref(), a.sentences.as_ref(), a.task.as_ref(), a.against.as_ref()];
        let read: Vec<_> = read.into_iter().flatten().map(|p| p.as_path()).collect();
        check_file(out, FileKind::Figures, &read)?;
        a.reference.as_ref().map_or(Ok(()), |r| check_distinct(out, r))?;
    }
    // All prompts count, however many windows the text has.
    let prompts = Options { windows: None, ..options.clone() };
    let answered = |path| evaluate::task(&a.model, &Text::file(path), &prompts, kinds, &cx);
    match (&a.text, &a.sentences, &a.task) {
        (Some(text), _, task) => {
            // First, as a wrong line is found at once.
            let task = task.as_ref().map(answered).transpose()?;
            let mut found = evaluate::decoder(&a.model, &Text::file(text), against, &options, kinds, &cx)?;
            found.task_accuracy = task.as_ref().map(|t| t.task_accuracy);
            found.task_total = task.as_ref().map(|t| t.task_total);
            finish(a, &found, json, decoder)
        }
        (None, None, Some(path)) => finish(a, &answered(path)?, json, task),
        (None, Some(path), _) => {
            let rule = "must be given with --sentences";
            let against = against.ok_or_else(|| ParamError::new("against", "missing", rule))?;
            let found = evaluate::sentences(&a.model, &Text::file(path), against, &options, kinds, &cx)?;
            finish(a, &found, json, sentences)
        }
        (None, None, None) => {
            let rule = "must be given, or --task, or --sentences for an encoder, or --against to compare matrices";
            let against = against.ok_or_else(|| ParamError::new("text", "missing", rule))?;
            finish(a, &evaluate::weights(&a.model, against, kinds, &cx)?, json, weights)
        }
    }
}

/// Writes figures to the file of `--out`, and prints them.
fn finish<T: Serialize>(a: &args::Eval, found: &T, json: bool, print: fn(&T)) -> Result<()> {
    if let Some(out) = &a.out {
        evaluate::save(out, &a.model, found)?;
    }
    if json {
        return print_json(found);
    }
    print(found);
    if let Some(out) = &a.out {
        outln!("figures: {}", out.display());
    }
    Ok(())
}

fn decoder(found: &Evaluation) {
    outln!("perplexity     {:.4} over {} tokens", found.perplexity, found.tokens);
    if let (Some(kl), Some(top1)) = (found.kl_mean, found.top1_agreement) {
        let noise = if found.below_noise(found.kl_noise_floor) { ", below the noise of bf16" } else { "" };
        outln!("KL mean        {kl:.5} nats{noise}");
        if let (Some(median), Some(p90)) = (found.kl_median, found.kl_p90) {
            outln!("KL median      {median:.5} nats; 9 of 10 tokens have at most {p90:.5}");
        }
        for b in found.kl_by_confidence.iter().flatten() {
            let kl = b.kl_mean.map_or("-".into(), |kl| format!("{kl:.5}"));
            outln!("  {:.1} to {:.1}   {kl} over {} tokens of this confidence of the original", b.from, b.to, b.tokens);
        }
        outln!("top-1          {:.2} % agree", top1 * 100.0);
    }
    if let Some(floor) = found.kl_noise_floor {
        outln!("noise of bf16  {floor:.6} nats");
    }
    if let (Some(share), Some(total)) = (found.task_accuracy, found.task_total) {
        answers(share, total);
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
}

fn answers(share: f64, total: u64) {
    outln!("answers        {:.1} % of {total} right", share * 100.0);
}

fn task(found: &TaskEvaluation) {
    answers(found.task_accuracy, found.task_total);
    let (bits, body) = (found.bits_per_weight, found.body_bits_per_weight);
    outln!("bits/weight    {bits:.3} ({body:.3} without embedding and head)");
    outln!("weights        {}", megabytes(found.weight_bytes));
}

fn weights(found: &evaluate::WeightEvaluation) {
    outln!("weight error   {:.5} over {} matrices", found.relative_error, found.matrices.len());
    let mut worst: Vec<_> = found.matrices.iter().collect();
    worst.sort_by(|a, b| b.1.total_cmp(a.1));
    for (name, error) in worst.into_iter().take(5) {
        outln!("  {error:.5}      {name}");
    }
    let (bits, body) = (found.bits_per_weight, found.body_bits_per_weight);
    outln!("bits/weight    {bits:.3} ({body:.3} without embedding and head)");
    outln!("weights        {}", megabytes(found.weight_bytes));
}

fn sentences(found: &evaluate::SentenceEvaluation) {
    let (mean, min, n) = (found.cosine_mean, found.cosine_min, found.sentences);
    outln!("cosine         mean {mean:.5}, minimum {min:.5} over {n} sentences");
    let (bits, body) = (found.bits_per_weight, found.body_bits_per_weight);
    outln!("bits/weight    {bits:.3} ({body:.3} without embeddings)");
    outln!("weights        {}", megabytes(found.weight_bytes));
}
