//! The supported kinds of networks.

use serde_json::Value as Json;
use tersor_core::{Error, Producer, Result, Site};
use tersor_formats::Model;

use crate::config::{DECODERS, bad, unsupported};
use crate::encoder::ENCODERS;
use crate::{DecoderConfig, EncoderConfig};

/// A supported network with its configuration: a Llama-family decoder (Llama, Mistral, Qwen2, Qwen3) or a BERT encoder.
///
/// ```
/// use tersor_core::Limits;
/// use tersor_formats::Model;
/// use tersor_models::Architecture;
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let network = Architecture::of(&Model::open(path.as_ref(), &Limits::default())?)?;
/// assert_eq!(network.sites().len(), 4 * network.layers() + 1);
/// assert!(network.decoder().is_ok() && network.encoder().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub enum Architecture {
    /// A Llama-family decoder, which predicts the next token.
    Decoder(DecoderConfig),
    /// A BERT-family encoder, which maps a text to a vector.
    Encoder(EncoderConfig),
}

impl Architecture {
    /// Determines the architecture of an open model from its configuration (`config.json`, or the metadata of a GGUF file). Errors if the
    /// model has no configuration, `model_type` and `architectures` are unknown or contradict each other, or the configuration lacks a size
    /// or has an unsupported option.
    pub fn of(model: &Model) -> Result<Self> {
        let place = || model.path().display().to_string();
        let Some(json) = model.config() else {
            // For a GGUF file, report why no configuration could be built from its metadata.
            let reason = model.gguf().and_then(|file| tersor_formats::gguf::hf_config(file).err());
            return Err(reason.unwrap_or_else(|| Error::Missing { name: "config.json".into(), place: place() }));
        };
        let all = [&DECODERS[..], &ENCODERS[..]].concat();
        let kind = check_architecture(json, &all)?;
        if ENCODERS.iter().any(|e| e.0 == kind) {
            let mut config = EncoderConfig::from_json(json)?;
            config.find_prefix(model);
            return Ok(Self::Encoder(config));
        }
        Ok(Self::Decoder(DecoderConfig::from_json(json)?))
    }

    /// Errors unless the model has every matrix that the configuration implies, and every tensor that it implies has the implied shape: the
    /// matrices of all [sites](Site), the norms that produce their inputs, and the embeddings. Reads no weights.
    pub fn check_shapes(&self, model: &Model) -> Result<()> {
        let check = |name: &str, wanted: &[usize]| {
            let found = model.tensor(name)?.shape;
            let what = "shape, as the configuration implies it,";
            if found == wanted { Ok(()) } else { Err(Error::shape(what, wanted, found).in_tensor(name)) }
        };
        let hidden = self.hidden();
        let rows = match self {
            Self::Decoder(c) => vec![c.vocab],
            Self::Encoder(c) => vec![c.vocab, c.max_positions, c.types],
        };
        for (name, rows) in self.embeddings().iter().zip(rows) {
            check(name, &[rows, hidden])?;
        }
        for site in self.sites() {
            if let Producer::Norm { weight } = &site.producer {
                check(weight, &[site.features])?;
            }
            for consumer in &site.consumers {
                check(&consumer.weight, &consumer.shape)?;
            }
        }
        Ok(())
    }

    /// Returns the network's [sites](Site) in the order of execution. A site is an input of the network together with the linear layers
    /// that read it, such as q, k and v. There are four for each layer and, in a decoder, one for the output head.
    pub fn sites(&self) -> Vec<Site> {
        match self {
            Self::Decoder(c) => c.sites(),
            Self::Encoder(c) => c.sites(),
        }
    }

    /// Returns the number of transformer layers.
    pub fn layers(&self) -> usize {
        match self {
            Self::Decoder(c) => c.layers,
            Self::Encoder(c) => c.layers,
        }
    }

    /// Returns the number of features of the hidden states between layers (`hidden_size`).
    pub fn hidden(&self) -> usize {
        match self {
            Self::Decoder(c) => c.hidden,
            Self::Encoder(c) => c.hidden,
        }
    }

    /// Returns the number of features of the attention output: the number of query heads times the head dimension.
    pub fn attention_width(&self) -> usize {
        match self {
            Self::Decoder(c) => c.heads * c.head_dim,
            Self::Encoder(c) => c.hidden,
        }
    }

    /// Returns the maximum number of tokens of a text, as the model's configuration states it (`max_position_embeddings`).
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Decoder(c) => c.max_positions,
            Self::Encoder(c) => c.max_positions,
        }
    }

    /// Returns the tensor names of the embedding tables: of the token embedding alone for a decoder; of the token, position and token-type
    /// embeddings, in this order, for an encoder.
    pub fn embeddings(&self) -> Vec<String> {
        match self {
            Self::Decoder(_) => vec!["model.embed_tokens.weight".into()],
            Self::Encoder(c) => c.embeddings().to_vec(),
        }
    }

    /// Returns the index, counted from 0, of the layer that the tensor called `tensor` belongs to. None if the name is not that of a tensor
    /// inside of one of the network's layers.
    pub fn layer_of(&self, tensor: &str) -> Option<usize> {
        let rest = match self {
            Self::Decoder(_) => tensor.strip_prefix("model.layers."),
            Self::Encoder(c) => tensor.strip_prefix(c.prefix.as_str()).and_then(|r| r.strip_prefix("encoder.layer.")),
        };
        rest?.split_once('.')?.0.parse().ok().filter(|l| *l < self.layers())
    }

    /// Returns whether the output head shares the token embedding's matrix; false for an encoder, which has no head.
    pub fn tied(&self) -> bool {
        matches!(self, Self::Decoder(c) if c.tied)
    }

    /// Returns the configuration of a decoder. Errors if the network is an encoder.
    pub fn decoder(&self) -> Result<&DecoderConfig> {
        match self {
            Self::Decoder(c) => Ok(c),
            Self::Encoder(c) => {
                let value = format!(
                    "`{}` is an encoder; `tersor eval --sentences FILE --against ORIGINAL` measures it",
                    c.model_type
                );
                Err(Error::Unsupported { what: "text generation or perplexity", value })
            }
        }
    }

    /// Returns the configuration of an encoder. Errors if the network is a decoder.
    pub fn encoder(&self) -> Result<&EncoderConfig> {
        match self {
            Self::Encoder(c) => Ok(c),
            Self::Decoder(c) => {
                let value = format!("`{}` is a decoder; `tersor eval --text FILE` measures it", c.model_type);
                Err(Error::Unsupported { what: "sentence embedding", value })
            }
        }
    }
}

/// Returns the `model_type` of a configuration. Errors unless `model_type` and `architectures`, as far as present, are in `known` and agree.
pub(crate) fn check_architecture(json: &Json, known: &[(&str, &str)]) -> Result<String> {
    let names = || known.iter().map(|k| k.0).collect::<Vec<_>>().join(", ");
    let by_type = match json.get("model_type").map(|v| v.as_str().unwrap_or("")) {
        Some(t) => {
            let found = known.iter().find(|k| k.0 == t);
            Some(found.ok_or_else(|| Error::Unsupported {
                what: "model_type",
                value: format!("`{t}` (known: {}; --generic compresses the matrices of any model by name)", names()),
            })?)
        }
        None => None,
    };
    let class = match json.get("architectures") {
        None | Some(Json::Null) => None,
        Some(list) => Some(list.get(0).and_then(Json::as_str).unwrap_or("")),
    };
    let by_class = match class {
        Some(c) => {
            let found = known.iter().find(|k| k.1 == c);
            Some(found.ok_or_else(|| unsupported("architecture", c))?)
        }
        None => None,
    };
    match (by_type, by_class) {
        (Some(a), Some(b)) if a != b => {
            Err(bad(format!("model_type `{}` and architecture `{}` do not agree", a.0, b.1)))
        }
        (Some(a), _) | (None, Some(a)) => Ok(a.0.to_string()),
        (None, None) => Err(bad(format!("has neither model_type nor architectures (known: {})", names()))),
    }
}
