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

/// Sizes and options of a Llama-family decoder, from its `config.json`. [`DecoderConfig::from_json`] checks the ranges that the fields
/// state.
#[derive(Clone, PartialEq, Debug)]
pub struct DecoderConfig {
    /// The configuration's `model_type`: `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Number of features of the residual stream, the hidden states between layers (`hidden_size`); at least 1.
    pub hidden: usize,
    /// Number of inner features of a feed-forward block, the rows of the gate and up matrices (`intermediate_size`); at least 1.
    pub intermediate: usize,
    /// Number of decoder layers (`num_hidden_layers`), 1 to 1024.
    pub layers: usize,
    /// Number of query heads (`num_attention_heads`); at least 1.
    pub heads: usize,
    /// Number of key/value heads (`num_key_value_heads`); at least 1, divides the number of query heads. The number of query heads if the
    /// configuration does not state it.
    pub kv_heads: usize,
    /// Number of features of one attention head (`head_dim`); even, 2 to 65536. `hidden / heads` if the configuration does not state it;
    /// `heads` must divide `hidden` then.
    pub head_dim: usize,
    /// Number of tokens in the vocabulary, the rows of the embedding (`vocab_size`); at least 1.
    pub vocab: usize,
    /// Maximum number of tokens of a text (`max_position_embeddings`), 2048 if the configuration does not state it. The decoder does not
    /// refuse longer texts.
    pub max_positions: usize,
    /// Epsilon that the RMS norms add to the mean square (`rms_norm_eps`); finite and not negative, 1e-6 if the configuration does not
    /// state it.
    pub eps: f32,
    /// Base of the rotary embedding's frequencies (`rope_theta`); finite and above 0, 10000 if the configuration does not state it.
    pub rope_theta: f64,
    /// Scaling of the rotary embedding's frequencies for longer texts (`rope_scaling`): none, linear, Llama 3's, or YaRN; none if the
    /// configuration does not state it.
    pub rope_scaling: RotaryScaling,
    /// Whether the output head shares the embedding's matrix (`tie_word_embeddings`); false if the configuration does not state it.
    pub tied: bool,
    /// Size of the attention window in tokens, the current one included, at least 1 (Mistral only); None for attention to all earlier
    /// tokens.
    pub sliding_window: Option<usize>,
    /// Whether an RMS norm is applied to each query and key head before rotary embedding (Qwen3).
    pub qk_norm: bool,
    /// Token numbers that end a text (`eos_token_id`); empty if the configuration names none.
    pub eos: Vec<u32>,
}

impl DecoderConfig {
    /// Parses the `config.json` of a decoder. Optional keys that are missing or null get the defaults that the fields state.
    ///
    /// Errors if `model_type` or `architectures` is not that of Llama, Mistral, Qwen2 or Qwen3, if the two contradict each other, or if
    /// both are missing. Errors if `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads` or `vocab_size` is
    /// missing. Errors if a size is not an integer of 1 to 2^32 - 1, or is outside of the range that its field states. Errors if
    /// `num_key_value_heads` does not divide `num_attention_heads`, or if `head_dim` is missing and `num_attention_heads` does not divide
    /// `hidden_size`. Errors if `rms_norm_eps` is negative or not finite, or the rotary base is not finite or not above 0. Errors if the
    /// activation function is not `silu` (or its other name `swish`), the kind of rotary scaling is unknown or lacks a parameter, or a
    /// model other than Mistral sets `use_sliding_window`. Errors if a key has a value of a wrong type.
    ///
    /// ```
    /// let json = serde_json::json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    ///     "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100});
    /// let config = tersor_models::DecoderConfig::from_json(&json).unwrap();
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
        match text(json, "hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(unsupported("activation function", other)),
        }
        let max_positions = optional(json, "max_position_embeddings")?.unwrap_or(2048);
        // Newer versions of transformers store all rotary parameters in `rope_parameters`.
        let object = |key| typed(json, key, "an object", |v| v.is_object().then_some(v));
        let (parameters, older) = (object("rope_parameters")?, object("rope_scaling")?);
        let rope = parameters.or(older);
        let theta = rope.map_or(Ok(None), |r| number(r, "rope_theta"))?.or(number(json, "rope_theta")?);
        let eps = number(json, "rms_norm_eps")?.unwrap_or(1e-6) as f32;
        let rope_theta = theta.unwrap_or(10_000.0);
        if !(eps.is_finite() && eps >= 0.0 && rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(bad(format!("rms_norm_eps {eps} and rope_theta {rope_theta} must be finite and positive")));
        }
        let token = |v: &Json| {
            let id = v.as_u64().and_then(|v| u32::try_from(v).ok());
            id.ok_or_else(|| bad(format!("`eos_token_id` has {v}, which is not the number of a token")))
        };
        let eos = match json.get("eos_token_id") {
            None | Some(Json::Null) => Vec::new(),
            Some(Json::Array(ids)) => ids.iter().map(token).collect::<Result<_>>()?,
            Some(id) => vec![token(id)?],
        };
        let config = Self {
            qk_norm: model_type == "qwen3",
            sliding_window: sliding_window(json, &model_type)?,
            tied: flag(json, "tie_word_embeddings")?.unwrap_or(false),
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

    /// Returns the attention heads of a layer (numbers, size, rotary embedding, sliding window) in the form that key-value caches take.
    /// Errors if a head count or size is 0, `heads` is not a multiple of `kv_heads`, `head_dim` is odd, the sliding window is 0 or above
    /// 2^32 - 1, or a rotary frequency is not finite.
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

/// Returns the value of a key that `read` converts; None if it is missing or null. Errors if it has another type, which is not `expected`.
fn typed<'a, T>(json: &'a Json, key: &str, expected: &str, read: impl Fn(&'a Json) -> Option<T>) -> Result<Option<T>> {
    match json.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(v) => read(v).map(Some).ok_or_else(|| bad(format!("`{key}` is {v}, which is not {expected}"))),
    }
}

/// Returns the number of a key; None if it is missing or null. Errors if it is something else.
pub(crate) fn number(json: &Json, key: &str) -> Result<Option<f64>> {
    typed(json, key, "a number", Json::as_f64)
}

/// Returns the text of a key; None if it is missing or null. Errors if it is something else.
pub(crate) fn text<'a>(json: &'a Json, key: &str) -> Result<Option<&'a str>> {
    typed(json, key, "a text", Json::as_str)
}

/// Returns the boolean of a key; None if it is missing or null. Errors if it is something else.
fn flag(json: &Json, key: &str) -> Result<Option<bool>> {
    typed(json, key, "true or false", Json::as_bool)
}

/// Returns the sliding window of a configuration. Errors if only some layers have one.
fn sliding_window(json: &Json, model_type: &str) -> Result<Option<usize>> {
    let switched = flag(json, "use_sliding_window")?;
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
    let kind = text(json, "rope_type")?.or(text(json, "type")?).unwrap_or("default");
    let number = |key: &str, default: Option<f64>| {
        let found = number(json, key)?.or(default).filter(|v| v.is_finite() && *v > 0.0);
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

    #[test]
    fn values_of_a_wrong_type_are_refused_and_null_is_missing() {
        for (key, value) in [
            ("rms_norm_eps", json!("1e-5")),
            ("rope_theta", json!(true)),
            ("tie_word_embeddings", json!("true")),
            ("hidden_act", json!(3)),
            ("eos_token_id", json!("2")),
            ("eos_token_id", json!([2, -1])),
            ("use_sliding_window", json!(1)),
            ("rope_parameters", json!({"rope_theta": "1e4"})),
            ("rope_scaling", json!({"rope_type": 7})),
            ("rope_scaling", json!("linear")),
        ] {
            let mut json = base();
            json[key] = value;
            let e = DecoderConfig::from_json(&json).unwrap_err().to_string();
            assert!(e.contains("which is not"), "{key}: {e}");
            json[key] = Json::Null;
            assert!(DecoderConfig::from_json(&json).is_ok(), "{key}");
        }
        let mut json = base();
        (json["rope_theta"], json["rope_parameters"]) = (json!(5e5), json!({"rope_theta": null}));
        assert_eq!(DecoderConfig::from_json(&json).unwrap().rope_theta, 5e5);
        json["rope_parameters"]["rope_theta"] = json!(1e6);
        assert_eq!(DecoderConfig::from_json(&json).unwrap().rope_theta, 1e6);
    }
}
