//! Converts the metadata of a Llama-family GGUF file to a Hugging Face `config.json`, and back.

use super::{File, Meta, MetaWriter};
use serde_json::{Value as Json, json};
use tersor_core::{Error, Result, RowSource};

/// Returns the Hugging Face `config.json` that corresponds to a GGUF file, built from its metadata and tensor table. Where the metadata
/// lacks them, the norm epsilon is 1e-5, the rotary base is 10000, the number of key/value heads is that of the query heads, and the head
/// dimension is the hidden size divided by the number of query heads.
///
/// Errors if the architecture is missing or is none of `llama`, `qwen2` and `qwen3`. Errors if the hidden size, the feed-forward size, the
/// context length, the number of layers, the number of query heads, or the tensor `token_embd.weight` is missing. Errors if the rotary
/// embedding rotates only a part of each head. Frequencies that are not scaled, linear and YaRN scaling with a factor, and Llama 3's
/// scaling with its published parameters (`low_freq_factor` 1, `high_freq_factor` 4, 8192 original positions) are supported; errors for any
/// other rotary scaling.
pub fn hf_config(file: &File) -> Result<Json> {
    let meta = file.meta();
    let missing = |key: &str| Error::Missing { name: key.into(), place: "the GGUF metadata".into() };
    let arch = meta.text("general.architecture").ok_or_else(|| missing("general.architecture"))?;
    let (model_type, class) = match arch {
        "llama" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        other => return Err(Error::Unsupported { what: "GGUF architecture", value: format!("`{other}`") }),
    };
    let key = |suffix: &str| format!("{arch}.{suffix}");
    let uint = |suffix: &str| meta.uint(&key(suffix)).ok_or_else(|| missing(&key(suffix)));
    let hidden = uint("embedding_length")?;
    let heads = uint("attention.head_count")?;
    let embedding = file.tensors().get("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let vocab = embedding.shape.first().copied().unwrap_or(0);
    let default_dim = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = meta.uint(&key("attention.key_length")).unwrap_or(default_dim);
    if let Some(rope) = meta.uint(&key("rope.dimension_count"))
        && rope != head_dim
    {
        return Err(Error::Unsupported {
            what: "partial rotary embedding",
            value: format!("{rope} of {head_dim} dimensions"),
        });
    }
    let mut config = json!({
        "model_type": model_type, "architectures": [class], "hidden_size": hidden, "vocab_size": vocab,
        "num_hidden_layers": uint("block_count")?, "intermediate_size": uint("feed_forward_length")?,
        "num_attention_heads": heads, "num_key_value_heads": meta.uint(&key("attention.head_count_kv")).unwrap_or(heads),
        "head_dim": head_dim, "max_position_embeddings": uint("context_length")?,
        "rms_norm_eps": shortest(meta.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5)),
        "rope_theta": shortest(meta.float(&key("rope.freq_base")).unwrap_or(10_000.0)),
        "hidden_act": "silu", "tie_word_embeddings": !file.tensors().contains_key("output.weight"),
        "attention_bias": file.tensors().contains_key("blk.0.attn_q.bias"), "mlp_bias": false,
    });
    for (name, id) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = meta.uint(&format!("tokenizer.ggml.{id}_token_id")) {
            config[name] = id.into();
        }
    }
    if let Some(scaling) = rope_scaling(file, meta, arch)? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

/// Returns the f64 with the shortest decimal form that rounds to the same f32 as `v`: 1e-5 rather than 9.99999974e-6.
fn shortest(v: f64) -> f64 {
    (v as f32).to_string().parse().unwrap_or(v)
}

/// Returns the `rope_scaling` of a configuration; none if the frequencies are not scaled. Errors if the kind of scaling is unknown.
fn rope_scaling(file: &File, meta: &Meta, arch: &str) -> Result<Option<Json>> {
    let key = |suffix: &str| format!("{arch}.rope.scaling.{suffix}");
    if file.tensors().contains_key("rope_freqs.weight") {
        return llama3_scaling(file, meta, arch).map(Some);
    }
    let factor = meta.float(&key("factor"));
    let original = meta.uint(&key("original_context_length"));
    match (meta.text(&key("type")), factor) {
        (None | Some("none"), _) => Ok(None),
        (Some("linear"), Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": shortest(factor)}))),
        (Some("yarn"), Some(factor)) => {
            let mut out = json!({"rope_type": "yarn", "factor": shortest(factor)});
            if let Some(n) = original {
                out["original_max_position_embeddings"] = n.into();
            }
            Ok(Some(out))
        }
        (Some(other), _) => Err(Error::Unsupported { what: "rotary scaling", value: format!("`{other}`") }),
    }
}

/// Returns the GGUF metadata that corresponds to a Hugging Face `config.json`, without the keys of the tokenizer. If the configuration
/// scales rotary frequencies as Llama 3 does, also returns the values of the tensor `rope_freqs.weight`: the divisor of each rotary
/// frequency, `[head_dim / 2]`. The second value is None otherwise.
///
/// Where the configuration lacks them, `head_dim` is `hidden_size / num_attention_heads`, `num_key_value_heads` is `num_attention_heads`,
/// the rotary base is 10000, and rotary frequencies are not scaled. Errors if `model_type` is none of `llama`, `mistral` (written as
/// `llama`), `qwen2` and `qwen3`. Errors if `rms_norm_eps` is missing. Errors if `hidden_size`, `intermediate_size`, `num_hidden_layers`,
/// `num_attention_heads`, `max_position_embeddings` or `vocab_size` is missing. Errors if one of these six, `head_dim` or
/// `num_key_value_heads` is not an integer of 0 to 2^32 - 1. Errors if the type of the rotary scaling is none of `default`, `linear`,
/// `yarn` and `llama3`, or if one of the last three has no `factor`.
///
/// ```
/// let config = serde_json::json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
///     "intermediate_size": 128, "max_position_embeddings": 256, "vocab_size": 100, "rms_norm_eps": 1e-5});
/// let (meta, frequencies) = tersor_formats::gguf::gguf_meta(&config).unwrap();
/// assert!(meta.has("llama.block_count") && frequencies.is_none());
/// ```
pub fn gguf_meta(config: &Json) -> Result<(MetaWriter, Option<Vec<f32>>)> {
    let missing = |key: &str| Error::Missing { name: key.into(), place: "config.json".into() };
    let arch = match config["model_type"].as_str() {
        Some("llama" | "mistral") => "llama",
        Some("qwen2") => "qwen2",
        Some("qwen3") => "qwen3",
        other => {
            let value = format!("`{}` (supported: llama, mistral, qwen2, qwen3)", other.unwrap_or("unknown"));
            return Err(Error::Unsupported { what: "architecture of a GGUF file", value });
        }
    };
    let number = |key: &str| -> Result<Option<u32>> {
        let value = &config[key];
        let found = value.as_u64().and_then(|v| u32::try_from(v).ok());
        if found.is_none() && !value.is_null() {
            return Err(Error::format("config.json", format!("`{key}` is {value}, which is not a number below 2^32")));
        }
        Ok(found)
    };
    let uint = |key: &str| number(key)?.ok_or_else(|| missing(key));
    let (hidden, heads) = (uint("hidden_size")?, uint("num_attention_heads")?);
    let dim = number("head_dim")?.or(hidden.checked_div(heads)).unwrap_or(0);
    // Newer versions of transformers store all rotary parameters in `rope_parameters`.
    let rope = if config["rope_parameters"].is_object() { &config["rope_parameters"] } else { &config["rope_scaling"] };
    let base = rope["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let mut meta = MetaWriter::new();
    let key = |suffix: &str| format!("{arch}.{suffix}");
    meta.text("general.architecture", arch).text("general.type", "model");
    for (to, value) in [
        ("block_count", uint("num_hidden_layers")?),
        ("context_length", uint("max_position_embeddings")?),
        ("embedding_length", hidden),
        ("feed_forward_length", uint("intermediate_size")?),
        ("attention.head_count", heads),
        ("attention.head_count_kv", number("num_key_value_heads")?.unwrap_or(heads)),
        ("attention.key_length", dim),
        ("attention.value_length", dim),
        ("rope.dimension_count", dim),
        ("vocab_size", uint("vocab_size")?),
    ] {
        meta.uint(&key(to), value);
    }
    let eps = config["rms_norm_eps"].as_f64().ok_or_else(|| missing("rms_norm_eps"))?;
    meta.float(&key("attention.layer_norm_rms_epsilon"), eps as f32).float(&key("rope.freq_base"), base as f32);
    let factor = rope["factor"].as_f64();
    let kind = rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default");
    let mut frequencies = None;
    match (kind, factor) {
        ("default", _) => {}
        ("linear" | "yarn", Some(factor)) => {
            let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            for (name, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0), ("attention_factor", usual)] {
                if let Some(value) = rope[name].as_f64().filter(|v| kind == "yarn" && (v - usual).abs() > 1e-6) {
                    let value = format!("`{name}` = {value}, for which a GGUF file of this kind has no key");
                    return Err(Error::Unsupported { what: "rotary scaling", value });
                }
            }
            meta.text(&key("rope.scaling.type"), kind).float(&key("rope.scaling.factor"), factor as f32);
            if let Some(n) = rope["original_max_position_embeddings"].as_u64().and_then(|n| u32::try_from(n).ok()) {
                meta.uint(&key("rope.scaling.original_context_length"), n);
            }
        }
        ("llama3", Some(factor)) => {
            let of = |key: &str, default: f64| rope[key].as_f64().unwrap_or(default);
            let bounds = [of("low_freq_factor", 1.0), of("high_freq_factor", 4.0)];
            let original = of("original_max_position_embeddings", f64::from(uint("max_position_embeddings")?));
            let n = dim as usize / 2;
            frequencies = Some((0..n).map(|i| llama3_factor(base, i, n, factor, bounds, original) as f32).collect());
        }
        _ => return Err(Error::Unsupported { what: "rotary scaling", value: rope.to_string() }),
    }
    Ok((meta, frequencies))
}

/// Returns the divisor of rotary frequency `i` of `n` under Llama 3's scaling: 1 for wavelengths below `original / high` tokens, `factor` for
/// those above `original / low`, interpolated between.
fn llama3_factor(base: f64, i: usize, n: usize, factor: f64, [low, high]: [f64; 2], original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / (2.0 * n as f64));
    let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

/// Recovers the `rope_scaling` of Llama 3 from the divisors that llama.cpp stores in `rope_freqs.weight`. Assumes the published parameters
/// (`low_freq_factor` 1, `high_freq_factor` 4, 8192 original positions) and errors if the stored divisors do not follow from them.
fn llama3_scaling(file: &File, meta: &Meta, arch: &str) -> Result<Json> {
    let rows = file.rows("rope_freqs.weight")?;
    let n = rows.shape()[1];
    let mut stored = vec![0f32; n];
    rows.read_rows(0..1, &mut stored)?;
    let base = meta.float(&format!("{arch}.rope.freq_base")).unwrap_or(10_000.0);
    let factor = f64::from(stored.iter().copied().fold(1.0f32, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    for (i, &v) in stored.iter().enumerate() {
        let want = llama3_factor(base, i, n, factor, [low, high], original);
        if (want - f64::from(v)).abs() > 1e-3 * want {
            let value = format!("divisor {v} of rotary frequency {i} differs from Llama 3's ({want:.4})");
            return Err(Error::Unsupported { what: "rotary scaling", value });
        }
    }
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64}))
}
