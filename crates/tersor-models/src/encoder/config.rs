//! Configuration (`config.json`) and sites of BERT-family encoders.

use serde_json::Value as Json;
use tersor_core::{Consumer, Error, Limits, Producer, Result, Role, Site};
use tersor_formats::Model;

use crate::SiteKind;
use crate::architecture::check_architecture;
use crate::config::{MAX_LAYERS, bad, number, optional, size, text, unsupported};

/// `model_type` and class name of the supported encoders.
pub(crate) const ENCODERS: [(&str, &str); 1] = [("bert", "BertModel")];

/// The activation function between the two matrices of a BERT encoder's feed-forward block: `Gelu` (exact), `GeluTanh` (GELU in tanh
/// approximation) or `Relu`. There is no default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// Exact GELU, `x Φ(x)` with the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Sizes and options of a BERT encoder, from its `config.json`. [`EncoderConfig::from_json`] checks the ranges that the fields state.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderConfig {
    /// The configuration's `model_type`: `bert`.
    pub model_type: String,
    /// Common prefix of the encoder's tensor names in the model: empty, or `bert.`. [`EncoderConfig::from_json`] leaves it empty;
    /// [`Architecture::of`](crate::Architecture::of) sets it from the model's tensor names.
    pub prefix: String,
    /// Number of features of the hidden states between layers (`hidden_size`); at least 1.
    pub hidden: usize,
    /// Number of inner features of a feed-forward block (`intermediate_size`); at least 1.
    pub intermediate: usize,
    /// Number of encoder layers (`num_hidden_layers`), 1 to 1024.
    pub layers: usize,
    /// Number of attention heads (`num_attention_heads`); at least 1, divides `hidden`.
    pub heads: usize,
    /// Number of tokens in the vocabulary, the rows of the token embedding (`vocab_size`); at least 1.
    pub vocab: usize,
    /// Number of token types (segments), the rows of the token-type embedding (`type_vocab_size`); 1 to 2^32 - 1, 2 if the configuration
    /// does not state it. BERT gives type 0 to the first text of a pair and type 1 to the second; this crate encodes single texts, whose
    /// tokens all have type 0.
    pub types: usize,
    /// Maximum number of tokens of a text, the rows of the learned position embedding (`max_position_embeddings`); at least 1, 512 if the
    /// configuration does not state it. [`Encoder::forward`](crate::Encoder::forward) refuses longer texts.
    pub max_positions: usize,
    /// Epsilon that the layer norms add to the variance (`layer_norm_eps`); finite and not negative, 1e-12 if the configuration does not
    /// state it.
    pub eps: f32,
    /// Activation function of the feed-forward blocks (`hidden_act`); exact GELU if the configuration does not state it.
    pub activation: Activation,
}

impl EncoderConfig {
    /// Parses the `config.json` of an encoder; `prefix` is left empty. Optional keys that are missing or null get the defaults that the
    /// fields state.
    ///
    /// Errors if `model_type` is not `bert`, `architectures` does not begin with `BertModel`, or both are missing. Errors if `hidden_size`,
    /// `intermediate_size`, `num_hidden_layers`, `num_attention_heads` or `vocab_size` is missing. Errors if a size is not an integer of 1
    /// to 2^32 - 1, or is outside of the range that its field states. Errors if `num_attention_heads` does not divide `hidden_size`. Errors
    /// if `layer_norm_eps` is negative or not finite. Errors if the position embedding is not `absolute`, or the activation function is
    /// none of `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu`. Errors if a key has a value of a wrong type.
    ///
    /// ```
    /// let json = serde_json::json!({"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    ///     "intermediate_size": 128, "vocab_size": 100});
    /// let config = tersor_models::EncoderConfig::from_json(&json).unwrap();
    /// assert_eq!((config.head_dim(), config.max_positions), (16, 512));
    /// ```
    pub fn from_json(json: &Json) -> Result<Self> {
        let model_type = check_architecture(json, &ENCODERS)?;
        let (hidden, heads) = (size(json, "hidden_size")?, size(json, "num_attention_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(bad(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}")));
        }
        match text(json, "position_embedding_type")? {
            None | Some("absolute") => {}
            Some(other) => return Err(unsupported("position embedding", other)),
        }
        let activation = match text(json, "hidden_act")? {
            None | Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(other) => return Err(unsupported("activation function", other)),
        };
        let eps = number(json, "layer_norm_eps")?.unwrap_or(1e-12) as f32;
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

    /// Returns the number of features of one attention head, `hidden / heads`. Panics if `heads` is 0, which [`EncoderConfig::from_json`]
    /// refuses.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Returns the tensor names of the three embedding tables, in the order tokens, positions, token types.
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

    /// Returns the network's [sites](Site) in the order of execution. A site is an input together with the linear layers that read it; each
    /// layer has four: the inputs of query, key and value, of the attention output matrix, and of the two feed-forward matrices. No
    /// [`Site::producer`] (the norm or matrix that computes a site's input) is a norm: scales of the input's features cannot be merged into
    /// the layer norms, because the residual connection reads the norms' outputs too.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for layer in 0..self.layers {
            for kind in SiteKind::ALL {
                let consumers = self.consumers(kind);
                let roles = if kind == SiteKind::GateUp { &[Role::Up] } else { kind.roles() };
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
                        .zip(roles)
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
