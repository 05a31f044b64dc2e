//! The metadata of a Llama-family file as a Hugging Face `config.json`.

use super::{File, Meta};
use serde_json::{Value as Json, json};
use tersor_core::{Error, Result, RowSource};

/// Builds the configuration. Error when the architecture is none of `llama`, `qwen2`, `qwen3`, or a size is missing.
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

/// An f32 read from a file, as the shortest decimal that means it (1e-5, not 9.99999974e-6).
fn shortest(v: f64) -> f64 {
    (v as f32).to_string().parse().unwrap_or(v)
}

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

/// llama.cpp stores Llama 3's scaling as a factor for each frequency; from them come the four numbers that
/// made them, with the published bounds of 1 and 4 turns over 8192 tokens.
fn llama3_scaling(file: &File, meta: &Meta, arch: &str) -> Result<Json> {
    let rows = file.rows("rope_freqs.weight")?;
    let n = rows.shape()[1];
    let mut stored = vec![0f32; n];
    rows.read_rows(0..1, &mut stored)?;
    let base = meta.float(&format!("{arch}.rope.freq_base")).unwrap_or(10_000.0);
    let factor = f64::from(stored.iter().copied().fold(1.0f32, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    for (i, &v) in stored.iter().enumerate() {
        let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / (2.0 * n as f64));
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let want = 1.0 / ((1.0 - smooth) / factor + smooth);
        if (want - f64::from(v)).abs() > 1e-3 * want {
            let value = format!("factor {v} of frequency {i} is not Llama 3's ({want:.4})");
            return Err(Error::Unsupported { what: "rotary scaling", value });
        }
    }
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64}))
}
