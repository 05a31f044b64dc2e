//! Configuration (`config.json`) and sites of BERT-family encoders.

use serde_json::Value as Json;
use tersor_core::{Consumer, Error, Limits, Producer, Result, Site};
use tersor_formats::Model;

use crate::SiteKind;
use crate::architecture::check_architecture;
use crate::config::{MAX_LAYERS, bad, optional, size, unsupported};

/// `model_type` and class name of the supported encoders.
pub(crate) const ENCODERS: [(&str, &str); 1] = [("bert", "BertModel")];

/// The activation function between the two matrices of a BERT encoder's feed-forward block: GELU (exact or in tanh approximation) or ReLU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// Exact GELU, `x Φ(x)` with the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Sizes and options of a BERT-family encoder, from its `config.json`.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderConfig {
    /// The configuration's `model_type`: `bert`.
    pub model_type: String,
    /// Common prefix of the encoder's tensor names in the model: empty, or `bert.`.
    pub prefix: String,
    /// Number of features of the hidden states between layers.
    pub hidden: usize,
    /// Number of inner features of a feed-forward block.
    pub intermediate: usize,
    /// Number of encoder layers.
    pub layers: usize,
    /// Number of attention heads; divides `hidden`.
    pub heads: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Number of token types (segments): 2 for the first and second text of a pair.
    pub types: usize,
    /// Maximum number of tokens of a text: the number of learned position embeddings.
    pub max_positions: usize,
    /// Epsilon that the layer norms add to the variance.
    pub eps: f32,
    /// Activation function of the feed-forward blocks.
    pub activation: Activation,
}

impl EncoderConfig {
    /// Parses the `config.json` of an encoder; `prefix` is left empty. Errors, naming the key, if one is missing, has another type, or has an
    /// unsupported value.
    ///
    /// ```
    /// let json = serde_json::json!({"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    ///     "intermediate_size": 128, "vocab_size": 100});
    /// let config = tersor_llm::EncoderConfig::from_json(&json).unwrap();
    /// assert_eq!((config.head_dim(), config.max_positions), (16, 512));
    /// ```
    pub fn from_json(json: &Json) -> Result<Self> {
        let model_type = check_architecture(json, &ENCODERS)?;
        let (hidden, heads) = (size(json, "hidden_size")?, size(json, "num_attention_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(bad(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}")));
        }
        match json.get("position_embedding_type").and_then(Json::as_str) {
            None | Some("absolute") => {}
            Some(other) => return Err(unsupported("position embedding", other)),
        }
        let activation = match json.get("hidden_act").and_then(Json::as_str) {
            None | Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(other) => return Err(unsupported("activation function", other)),
        };
        let eps = json.get("layer_norm_eps").and_then(Json::as_f64).unwrap_or(1e-12) as f32;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(bad(format!("layer_norm_eps {eps} must be finite and not negative")));
        }
        let config = Self {
            model_type,
            prefix: String::new(),
            hidden,
            intermediate: size(json, "intermediate_size")?,
            layers: size(json, "num_hidden_layers")?,
            heads,
            vocab: size(json, "vocab_size")?,
            types: optional(json, "type_vocab_size")?.unwrap_or(2),
            max_positions: optional(json, "max_position_embeddings")?.unwrap_or(512),
            eps,
            activation,
        };
        Limits::check("num_hidden_layers", config.layers as u64, MAX_LAYERS)?;
        for (a, b) in [(config.vocab, hidden), (config.intermediate, hidden), (config.max_positions, hidden)] {
            tersor_core::view::elements([a, b])?;
        }
        Ok(config)
    }

    /// Sets `prefix` to the one that the model's tensor names have.
    pub(crate) fn find_prefix(&mut self, model: &Model) {
        let known = ["", "bert."].into_iter().find(|p| model.tensor(&word_embeddings(p)).is_ok());
        self.prefix = known.unwrap_or_default().into();
    }

    /// Returns the number of features of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Returns the tensor names of the three embedding tables: tokens, positions, token types.
    pub fn embeddings(&self) -> [String; 3] {
        let name = |part: &str| format!("{}embeddings.{part}_embeddings.weight", self.prefix);
        [word_embeddings(&self.prefix), name("position"), name("token_type")]
    }

    /// Returns the full name of a part of a layer.
    pub(crate) fn part(&self, layer: usize, part: &str) -> String {
        format!("{}encoder.layer.{layer}.{part}", self.prefix)
    }

    /// Returns name (relative to a layer) and shape `[out_features, in_features]` of each matrix that reads a site.
    pub(crate) fn consumers(&self, kind: SiteKind) -> Vec<(&'static str, [usize; 2])> {
        let (h, i) = (self.hidden, self.intermediate);
        match kind {
            SiteKind::Qkv => QKV.map(|part| (part, [h, h])).to_vec(),
            SiteKind::O => vec![("attention.output.dense", [h, h])],
            SiteKind::GateUp => vec![("intermediate.dense", [i, h])],
            SiteKind::Down => vec![("output.dense", [h, i])],
        }
    }

    /// Returns the network's [sites](Site) in the order of execution, four for each layer. Nothing can be folded into the layer norms that produce
    /// their inputs, because the residual connection reads the norms' outputs too.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for layer in 0..self.layers {
            for kind in SiteKind::ALL {
                let consumers = self.consumers(kind);
                let (producer, name) = match kind {
                    SiteKind::Qkv => (Producer::Opaque, "attention.qkv"),
                    SiteKind::O => {
                        let weight = self.part(layer, "attention.self.value.weight");
                        (Producer::Linear { weight, block: self.head_dim(), repeat: 1 }, "attention.output")
                    }
                    SiteKind::GateUp => (Producer::Opaque, "intermediate"),
                    SiteKind::Down => (Producer::Opaque, "output"),
                };
                sites.push(Site {
                    name: self.part(layer, name),
                    layer: Some(layer),
                    features: consumers[0].1[1],
                    consumers: consumers
                        .into_iter()
                        .zip(kind.roles())
                        .map(|((part, shape), role)| Consumer {
                            weight: self.part(layer, &format!("{part}.weight")),
                            shape,
                            role: *role,
                        })
                        .collect(),
                    producer,
                    writers: Vec::new(),
                });
            }
        }
        sites
    }

    /// Errors unless the number of tokens is 1 to `max_positions`.
    pub(crate) fn check_len(&self, tokens: usize) -> Result<()> {
        if tokens == 0 || tokens > self.max_positions {
            return Err(Error::shape("tokens of a text", format!("1 to {}", self.max_positions), tokens));
        }
        Ok(())
    }
}

const QKV: [&str; 3] = ["attention.self.query", "attention.self.key", "attention.self.value"];

fn word_embeddings(prefix: &str) -> String {
    format!("{prefix}embeddings.word_embeddings.weight")
}
