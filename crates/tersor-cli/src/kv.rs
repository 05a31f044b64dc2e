//! How keys and values are kept, by name: `f32`, or `int<bits>[-hadamard|-pca][-high<n>|-eighth]`: integers per token and head, keys rotated after their
//! rotary embedding, by a random Hadamard matrix or by what was found when the model was compressed, the last `n` dimensions of each head (or an
//! eighth of them) at 8 bits.

use std::sync::Arc;

use tersor::core::{Check, Context, Error, Heads, MakeCache, ParamError, Result, Rotation};
use tersor::kv::{IntCache, Integers};
use tersor::llm::{Checkpoint, Decoder, key_rotation_name};
use tersor::lowrank::rotate::SHARES;
use tersor::lowrank::widths;

/// A way to keep them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spec {
    /// As they are.
    F32,
    /// As integers.
    Integers { bits: u32, keys: Keys, high: High },
}

/// How keys are rotated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// Not at all.
    Plain,
    /// By a random Hadamard matrix.
    Hadamard,
    /// By what the model brings.
    Stored,
}

/// Dimensions at 8 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum High {
    Count(usize),
    Eighth,
}

impl Spec {
    /// Error (bad usage) when the name is none.
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = || {
            let rule = "must be f32 or int<2 to 8>[-hadamard|-pca][-high<dimensions>|-eighth], such as int4-hadamard";
            ParamError::new("kv", format!("`{name}`"), rule).into()
        };
        if name == "f32" {
            return Ok(Self::F32);
        }
        let number = |s: &str| s.parse::<usize>().ok().filter(|n| n.to_string() == s);
        let mut parts = name.strip_prefix("int").ok_or_else(refuse)?.split('-').peekable();
        let bits = parts.next().and_then(number).filter(|b| (2..=8).contains(b)).ok_or_else(refuse)? as u32;
        let keys = match parts.next_if(|p| ["hadamard", "pca"].contains(p)) {
            None => Keys::Plain,
            Some("hadamard") => Keys::Hadamard,
            Some(_) => Keys::Stored,
        };
        let high = match parts.next() {
            None => High::Count(0),
            Some("eighth") => High::Eighth,
            Some(part) => {
                High::Count(part.strip_prefix("high").and_then(number).filter(|n| *n > 0).ok_or_else(refuse)?)
            }
        };
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self::Integers { bits, keys, high })
    }

    /// What runs a checkpoint: as asked, else as its recipe recorded it, else as it is.
    pub fn of(asked: Option<&str>, checkpoint: &Checkpoint) -> Result<Self> {
        let recorded = checkpoint.manifest().and_then(|m| m.json["recipe"]["kv"].as_str());
        asked.or(recorded).map_or(Ok(Self::F32), Self::parse)
    }

    /// For the decoder of a checkpoint. Error when its heads are too narrow, or it brings no rotations and they are asked for.
    pub fn caches(self, checkpoint: &Checkpoint) -> Result<Caches> {
        let c = checkpoint.architecture().decoder()?;
        let Self::Integers { bits, keys, high } = self else {
            return Ok(Caches { make: None, bytes_per_token: c.kv_floats_per_token() * size_of::<f32>() });
        };
        let high = match high {
            High::Count(n) => n,
            High::Eighth => widths(SHARES, c.head_dim).pop().unwrap_or(0),
        };
        let plain = Integers::new(bits).high(high);
        let bytes_per_token = c.layers * plain.clone().check()?.bytes_per_token(c.kv_heads, c.head_dim)?;
        // Random ones are the same for whoever runs the model: they are not stored.
        let rotation = |layer: usize| -> Result<Option<Rotation>> {
            match keys {
                Keys::Plain => Ok(None),
                Keys::Hadamard => {
                    let mut rng = Context::new().stream(&format!("keys of layer {layer}"));
                    tersor::linalg::rotation(c.head_dim, &mut rng).map(Some)
                }
                Keys::Stored => {
                    let place = format!("{} (compress with rotate = \"resq\")", checkpoint.model().path().display());
                    let missing = || Error::Missing { name: key_rotation_name(layer), place };
                    checkpoint.key_rotation(layer, c.head_dim)?.ok_or_else(missing).map(Some)
                }
            }
        };
        let rotations = (0..c.layers).map(rotation).collect::<Result<Vec<_>>>()?;
        let make = move |layer: usize, heads: &Heads| -> Result<Box<dyn tersor::core::KvCache>> {
            let rotation = rotations.get(layer).cloned().flatten();
            let how = rotation.into_iter().fold(plain.clone(), Integers::key_rotation);
            Ok(Box::new(IntCache::new(heads.clone(), how.check()?)?))
        };
        Ok(Caches { make: Some(Arc::new(make)), bytes_per_token })
    }
}

/// Caches that a decoder is to use.
pub struct Caches {
    make: Option<Arc<MakeCache>>,
    /// Of a token in all layers.
    pub bytes_per_token: usize,
}

impl Caches {
    /// Lets a decoder use them.
    pub fn give(self, decoder: Decoder) -> Decoder {
        match self.make {
            Some(make) => decoder.with_caches(make),
            None => decoder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nothing_else() {
        assert_eq!(Spec::parse("f32").unwrap(), Spec::F32);
        let all = Spec::Integers { bits: 4, keys: Keys::Hadamard, high: High::Count(8) };
        assert_eq!(Spec::parse("int4-hadamard-high8").unwrap(), all);
        assert_eq!(Spec::parse("int3").unwrap(), Spec::Integers { bits: 3, keys: Keys::Plain, high: High::Count(0) });
        let resq = Spec::Integers { bits: 4, keys: Keys::Stored, high: High::Eighth };
        assert_eq!(Spec::parse("int4-pca-eighth").unwrap(), resq);
        for bad in
            ["", "int", "int1", "int9", "int04", "int4-", "int4-high", "int4-high0", "int4-high8-hadamard", "bf16"]
        {
            assert!(Spec::parse(bad).unwrap_err().is_usage(), "{bad}");
        }
    }
}
