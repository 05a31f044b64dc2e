//! The kinds of networks that run here.

use serde_json::Value as Json;
use tersor_core::{Error, Result, Site};
use tersor_formats::Model;

use crate::config::{DECODERS, bad, unsupported};
use crate::encoder::ENCODERS;
use crate::{DecoderConfig, EncoderConfig};

/// A network that runs here, by its configuration.
#[derive(Clone, PartialEq, Debug)]
pub enum Architecture {
    /// Writes text, token by token.
    Decoder(DecoderConfig),
    /// Turns a text into a vector.
    Encoder(EncoderConfig),
}

impl Architecture {
    /// Of an open model. Error when there is no configuration, or it asks for something that does not run here.
    pub fn of(model: &Model) -> Result<Self> {
        let place = || model.path().display().to_string();
        let Some(json) = model.config() else {
            // The reason why a GGUF file has none.
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

    /// The sites, in the order in which they run.
    pub fn sites(&self) -> Vec<Site> {
        match self {
            Self::Decoder(c) => c.sites(),
            Self::Encoder(c) => c.sites(),
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        match self {
            Self::Decoder(c) => c.layers,
            Self::Encoder(c) => c.layers,
        }
    }

    /// Width of the stream between layers.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Decoder(c) => c.hidden,
            Self::Encoder(c) => c.hidden,
        }
    }

    /// Width of the attention output.
    pub fn attention(&self) -> usize {
        match self {
            Self::Decoder(c) => c.heads * c.head_dim,
            Self::Encoder(c) => c.hidden,
        }
    }

    /// Most positions that the model was made for.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Decoder(c) => c.max_positions,
            Self::Encoder(c) => c.max_positions,
        }
    }

    /// Matrices whose rows are looked up before anything flows.
    pub fn embeddings(&self) -> Vec<String> {
        match self {
            Self::Decoder(_) => vec!["model.embed_tokens.weight".into()],
            Self::Encoder(c) => c.embeddings().to_vec(),
        }
    }

    /// The layer that a tensor belongs to, by its name.
    pub fn layer_of(&self, tensor: &str) -> Option<usize> {
        let rest = match self {
            Self::Decoder(_) => tensor.strip_prefix("model.layers."),
            Self::Encoder(c) => tensor.strip_prefix(c.prefix.as_str()).and_then(|r| r.strip_prefix("encoder.layer.")),
        };
        rest?.split_once('.')?.0.parse().ok().filter(|l| *l < self.layers())
    }

    /// Whether the head is the embedding.
    pub fn tied(&self) -> bool {
        matches!(self, Self::Decoder(c) if c.tied)
    }

    /// The decoder. Error when it is something else.
    pub fn decoder(&self) -> Result<&DecoderConfig> {
        match self {
            Self::Decoder(c) => Ok(c),
            Self::Encoder(c) => {
                let value = format!("`{}`, which is an encoder (eval --sentences measures it)", c.model_type);
                Err(Error::Unsupported { what: "text from", value })
            }
        }
    }

    /// The encoder. Error when it is something else.
    pub fn encoder(&self) -> Result<&EncoderConfig> {
        match self {
            Self::Encoder(c) => Ok(c),
            Self::Decoder(c) => {
                let value = format!("`{}`, which is a decoder (eval --text measures it)", c.model_type);
                Err(Error::Unsupported { what: "sentence embeddings from", value })
            }
        }
    }
}

/// `model_type` and `architectures`, where present, must both be known and agree.
pub(crate) fn check_architecture(json: &Json, known: &[(&str, &str)]) -> Result<String> {
    let names = || known.iter().map(|k| k.0).collect::<Vec<_>>().join(", ");
    let by_type = match json.get("model_type").map(|v| v.as_str().unwrap_or("")) {
        Some(t) => {
            let found = known.iter().find(|k| k.0 == t);
            Some(found.ok_or_else(|| Error::Unsupported {
                what: "model_type",
                value: format!("`{t}` (known: {})", names()),
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
        (None, None) => Err(bad(format!("says neither model_type nor architectures (known: {})", names()))),
    }
}
