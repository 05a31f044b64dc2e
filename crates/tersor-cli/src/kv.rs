//! How keys and values are kept, by name: `f32`, or `int<bits>[-hadamard][-high<n>]`: integers per token and head, keys rotated by a random Hadamard
//! matrix after their rotary embedding, the last `n` dimensions of each head at 8 bits.

use std::sync::Arc;

use tersor::core::{Check, Context, Heads, MakeCache, ParamError, Result};
use tersor::kv::{IntCache, Integers};
use tersor::llm::{Checkpoint, Decoder};

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
        let c = decoder.config();
        let Self::Integers { bits, hadamard, high } = self else {
            let bytes = c.kv_floats_per_token() * size_of::<f32>();
            return Ok((decoder, bytes));
        };
        let plain = Integers::new(bits).high(high);
        let bytes = c.layers * plain.clone().check()?.bytes_per_token(c.kv_heads, c.head_dim)?;
        let make = move |layer: usize, heads: &Heads| -> Result<Box<dyn tersor::core::KvCache>> {
            let mut how = plain.clone();
            if hadamard {
                // The same for whoever runs the model: it is not stored.
                let mut rng = Context::new().stream(&format!("keys of layer {layer}"));
                how = how.key_rotation(tersor::linalg::rotation(heads.head_dim, &mut rng)?);
            }
            Ok(Box::new(IntCache::new(heads.clone(), how.check()?)?))
        };
        let make: Arc<MakeCache> = Arc::new(make);
        Ok((decoder.with_caches(make), bytes))
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
