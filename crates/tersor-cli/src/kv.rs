//! How keys and values are kept, by name: `f32`, or `int<bits>[-hadamard][-high<n>]`: integers per token and head, keys rotated by a random Hadamard
//! matrix after their rotary embedding, the last `n` dimensions of each head at 8 bits.

use std::sync::Arc;

use tersor::core::{Check, Context, Heads, MakeCache, ParamError, Result};
use tersor::kv::{IntCache, Integers};
use tersor::llm::{Checkpoint, Decoder, DecoderConfig};

/// A way to keep them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spec {
    /// As they are.
    F32,
    /// As integers.
    Integers { bits: u32, hadamard: bool, high: usize },
}

impl Spec {
    /// Error (bad usage) when the name is none.
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = || {
            let rule = "must be f32 or int<2 to 8>[-hadamard][-high<dimensions>], such as int4-hadamard";
            ParamError::new("kv", format!("`{name}`"), rule).into()
        };
        if name == "f32" {
            return Ok(Self::F32);
        }
        let number = |s: &str| s.parse::<usize>().ok().filter(|n| n.to_string() == s);
        let mut parts = name.strip_prefix("int").ok_or_else(refuse)?.split('-').peekable();
        let bits = parts.next().and_then(number).filter(|b| (2..=8).contains(b)).ok_or_else(refuse)? as u32;
        let hadamard = parts.next_if_eq(&"hadamard").is_some();
        let high = match parts.next() {
            None => 0,
            Some(part) => part.strip_prefix("high").and_then(number).filter(|n| *n > 0).ok_or_else(refuse)?,
        };
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self::Integers { bits, hadamard, high })
    }

    /// What runs a checkpoint: as asked, else as its recipe recorded it, else as it is.
    pub fn of(asked: Option<&str>, checkpoint: &Checkpoint) -> Result<Self> {
        let recorded = checkpoint.manifest().and_then(|m| m.json["recipe"]["kv"].as_str());
        asked.or(recorded).map_or(Ok(Self::F32), Self::parse)
    }

    /// Lets a decoder keep them so, and gives the bytes of a token in all layers. Error when the heads are too narrow.
    pub fn apply(self, decoder: Decoder) -> Result<(Decoder, usize)> {
        let c = decoder.config().clone();
        let Self::Integers { bits, .. } = self else {
            return Ok((decoder, c.kv_floats_per_token() * size_of::<f32>()));
        };
        let bytes =
            c.layers * Integers::new(bits).high(self.high()).check()?.bytes_per_token(c.kv_heads, c.head_dim)?;
        let make = move |layer: usize, heads: &Heads| -> Result<Box<dyn tersor::core::KvCache>> {
            Ok(Box::new(IntCache::new(heads.clone(), self.integers(layer, &c)?.check()?)?))
        };
        let make: Arc<MakeCache> = Arc::new(make);
        Ok((decoder.with_caches(make), bytes))
    }

    fn high(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::Integers { high, .. } => high,
        }
    }

    fn integers(self, layer: usize, c: &DecoderConfig) -> Result<Integers> {
        let Self::Integers { bits, hadamard, high } = self else { return Ok(Integers::new(8)) };
        let plain = Integers::new(bits).high(high);
        if !hadamard {
            return Ok(plain);
        }
        // The same for whoever runs the model: it is not stored.
        let mut rng = Context::new().stream(&format!("keys of layer {layer}"));
        Ok(plain.key_rotation(tersor::linalg::rotation(c.head_dim, &mut rng)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nothing_else() {
        assert_eq!(Spec::parse("f32").unwrap(), Spec::F32);
        let all = Spec::Integers { bits: 4, hadamard: true, high: 8 };
        assert_eq!(Spec::parse("int4-hadamard-high8").unwrap(), all);
        assert_eq!(Spec::parse("int3").unwrap(), Spec::Integers { bits: 3, hadamard: false, high: 0 });
        for bad in
            ["", "int", "int1", "int9", "int04", "int4-", "int4-high", "int4-high0", "int4-high8-hadamard", "bf16"]
        {
            assert!(Spec::parse(bad).unwrap_err().is_usage(), "{bad}");
        }
    }
}
