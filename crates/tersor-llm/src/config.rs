//! Configuration (`config.json`) of Llama-family decoders.

use std::sync::Arc;

use serde_json::Value as Json;
use tersor_core::cache::{Rotary, RotaryScaling};
use tersor_core::{Error, Heads, Limits, Result};

use crate::architecture::check_architecture;

/// `model_type` and class name of the supported decoders.
pub(crate) const DECODERS: [(&str, &str); 4] = [
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

/// Largest accepted number of layers.
pub(crate) const MAX_LAYERS: u64 = 1024;

/// Largest accepted number of features of a head: the table of its rotary frequencies is made before any tensor confirms the size.
const MAX_HEAD_DIM: u64 = 1 << 16;

/// Sizes and options of a Llama-family decoder, from its `config.json`.
#[derive(Clone, PartialEq, Debug)]
pub struct DecoderConfig {
    /// The configuration's `model_type`: `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Number of features of the residual stream (hidden states).
    pub hidden: usize,
    /// Number of inner features of a feed-forward block.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Number of features of one attention head; even.
    pub head_dim: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Maximum number of tokens of a text (`max_position_embeddings`).
    pub max_positions: usize,
    /// Epsilon of the RMS norms.
    pub eps: f32,
    /// Base of the rotary embedding's frequencies (`rope_theta`).
    pub rope_theta: f64,
    /// Scaling of the rotary embedding's frequencies for longer texts (`rope_scaling`).
    pub rope_scaling: RotaryScaling,
    /// Whether the output head shares the embedding's matrix (`tie_word_embeddings`).
    pub tied: bool,
    /// Size of the attention window in tokens, the current one included (Mistral); none for full attention.
    pub sliding_window: Option<usize>,
    /// Whether each query and key head has an RMS norm before rotary embedding (Qwen3).
    pub qk_norm: bool,
    /// Tokens that end a text (`eos_token_id`); empty if the configuration names none.
    pub eos: Vec<u32>,
}

impl DecoderConfig {
    /// Parses the `config.json` of a decoder. Errors, naming the key, if one is missing, has another type, contradicts another, or has an unsupported
    /// value.
    ///
    /// ```
    /// let json = serde_json::json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    ///     "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100});
    /// let config = tersor_llm::DecoderConfig::from_json(&json).unwrap();
    /// assert_eq!((config.head_dim, config.kv_heads, config.rope_theta), (16, 2, 10_000.0));
    /// ```
    pub fn from_json(json: &Json) -> Result<Self> {
        let model_type = check_architecture(json, &DECODERS)?;
        let (hidden, heads) = (size(json, "hidden_size")?, size(json, "num_attention_heads")?);
        let kv_heads = optional(json, "num_key_value_heads")?.unwrap_or(heads);
        let head_dim = match optional(json, "head_dim")? {
            Some(d) => d,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(bad(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}"))),
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(bad(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(bad(format!("head_dim {head_dim} is odd")));
        }
        match json.get("hidden_act").and_then(Json::as_str) {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(unsupported("activation function", other)),
        }
        let max_positions = optional(json, "max_position_embeddings")?.unwrap_or(2048);
        // Newer versions of transformers store all rotary parameters in `rope_parameters`.
        let rope = ["rope_parameters", "rope_scaling"].into_iter().find_map(|k| json.get(k).filter(|v| v.is_object()));
        let theta = rope.and_then(|r| r.get("rope_theta")).or(json.get("rope_theta")).and_then(Json::as_f64);
        let eps = json.get("rms_norm_eps").and_then(Json::as_f64).unwrap_or(1e-6) as f32;
        let rope_theta = theta.unwrap_or(10_000.0);
        if !(eps.is_finite() && eps >= 0.0 && rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(bad(format!("rms_norm_eps {eps} and rope_theta {rope_theta} must be finite and positive")));
        }
        let eos = match json.get("eos_token_id") {
            Some(Json::Array(ids)) => {
                ids.iter().filter_map(Json::as_u64).filter_map(|v| u32::try_from(v).ok()).collect()
            }
            Some(v) => v.as_u64().and_then(|v| u32::try_from(v).ok()).into_iter().collect(),
            None => Vec::new(),
        };
        let config = Self {
            qk_norm: model_type == "qwen3",
            sliding_window: sliding_window(json, &model_type)?,
            tied: json.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false),
            rope_scaling: rope.map_or(Ok(RotaryScaling::None), |r| scaling(r, max_positions))?,
            intermediate: size(json, "intermediate_size")?,
            layers: size(json, "num_hidden_layers")?,
            vocab: size(json, "vocab_size")?,
            model_type,
            hidden,
            heads,
            kv_heads,
            head_dim,
            max_positions,
            eps,
            rope_theta,
            eos,
        };
        // Each site lists all earlier writers to the residual stream, so the total length of these lists grows with the square of the layers.
        Limits::check("num_hidden_layers", config.layers as u64, MAX_LAYERS)?;
        Limits::check("head_dim", head_dim as u64, MAX_HEAD_DIM)?;
        for (a, b) in [(heads, head_dim), (config.vocab, hidden), (config.intermediate, hidden)] {
            tersor_core::view::elements([a, b])?;
        }
        Ok(config)
    }

    /// Returns the attention heads of a layer (numbers, size, rotary embedding, sliding window), as key-value caches need them. Errors if the sizes
    /// are inconsistent.
    pub fn attention_heads(&self) -> Result<Heads> {
        let rotary = Rotary::scaled(self.head_dim, self.rope_theta, &self.rope_scaling)?;
        let heads = Heads::new(self.heads, self.kv_heads, self.head_dim)?.with_rotary(Arc::new(rotary))?;
        Ok(match self.sliding_window {
            Some(tokens) => heads.with_window(tokens)?,
            None => heads,
        })
    }
}

/// An error in `config.json`.
pub(crate) fn bad(what: String) -> Error {
    Error::format("config.json", what)
}

pub(crate) fn unsupported(what: &'static str, value: &str) -> Error {
    Error::Unsupported { what, value: format!("`{value}`") }
}

/// Returns the positive integer of a key; none if the key is missing or null. Errors if it is something else.
pub(crate) fn optional(json: &Json, key: &str) -> Result<Option<usize>> {
    match json.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(v) => {
            let n = v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&n| n > 0 && n <= u32::MAX as usize);
            n.map(Some).ok_or_else(|| bad(format!("`{key}` is {v}, which is not a positive size")))
        }
    }
}

/// Returns the positive integer of a key. Errors if it is missing or something else.
pub(crate) fn size(json: &Json, key: &str) -> Result<usize> {
    optional(json, key)?.ok_or_else(|| Error::Missing { name: key.to_string(), place: "config.json".into() })
}

/// Returns the sliding window of a configuration. Errors if only some layers have one.
fn sliding_window(json: &Json, model_type: &str) -> Result<Option<usize>> {
    let switched = json.get("use_sliding_window").and_then(Json::as_bool);
    match (model_type, switched) {
        ("mistral", _) => optional(json, "sliding_window"),
        (_, Some(true)) => {
            Err(Error::Unsupported { what: "sliding window over some layers", value: model_type.into() })
        }
        _ => Ok(None),
    }
}

/// Parses `rope_scaling`. Errors if its kind is unknown or a parameter is missing.
fn scaling(json: &Json, max_positions: usize) -> Result<RotaryScaling> {
    let kind = json.get("rope_type").or(json.get("type")).and_then(Json::as_str).unwrap_or("default");
    let number = |key: &str, default: Option<f64>| {
        let found = json.get(key).and_then(Json::as_f64).or(default).filter(|v| v.is_finite() && *v > 0.0);
        found.ok_or_else(|| bad(format!("rotary scaling `{kind}` needs a positive `{key}`")))
    };
    let original = || number("original_max_position_embeddings", Some(max_positions as f64));
    Ok(match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: number("factor", None)? },
        "llama3" => RotaryScaling::Llama3 {
            factor: number("factor", None)?,
            low: number("low_freq_factor", Some(1.0))?,
            high: number("high_freq_factor", Some(4.0))?,
            original: original()?,
        },
        "yarn" => {
            let factor = number("factor", None)?;
            RotaryScaling::Yarn {
                factor,
                original: original()?,
                beta_fast: number("beta_fast", Some(32.0))?,
                beta_slow: number("beta_slow", Some(1.0))?,
                attention: number("attention_factor", Some(if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }))?,
            }
        }
        other => return Err(unsupported("rotary scaling", other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Json {
        json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100})
    }

    #[test]
    fn wrong_configurations_are_refused_by_key() {
        assert!(DecoderConfig::from_json(&base()).is_ok());
        let cases: [(&str, Json, &str); 14] = [
            ("num_hidden_layers", json!(4_000_000), "num_hidden_layers"),
            ("model_type", json!("gpt2"), "gpt2"),
            ("architectures", json!(["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
            ("architectures", json!(["Qwen2ForCausalLM"]), "do not agree"),
            ("hidden_size", json!(0), "hidden_size"),
            ("hidden_size", json!(-4), "hidden_size"),
            ("hidden_size", json!("64"), "hidden_size"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("head_dim", json!(15), "odd"),
            ("head_dim", json!(4_000_000_000u32), "head_dim"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
            ("rope_scaling", json!({"rope_type": "linear"}), "factor"),
            ("rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ];
        for (key, value, word) in cases {
            let mut json = base();
            json[key] = value;
            let e = DecoderConfig::from_json(&json).unwrap_err().to_string();
            assert!(e.contains(word), "{key}: {e}");
        }
        for key in ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size"] {
            let mut json = base();
            json.as_object_mut().unwrap().remove(key);
            assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains(key));
        }
    }
}
