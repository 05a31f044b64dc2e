//! Forms of the key-value cache by name: `f32`, `f16`, or `int<bits>[-hadamard|-pca][-high<n>|-eighth]`. The last stores integers with a scale per token
//! and head. Keys are optionally rotated after rotary embedding, by a random Hadamard matrix or by the rotation stored in the compressed model. The
//! last `n` dimensions of each head, or an eighth of them, are stored at 8 bits.

use std::sync::Arc;

use tersor_core::{CacheSet, Check, Context, DType, Error, Heads, ParamError, Result, Rotation};
use tersor_kv::{IntegerCaches, Integers};
use tersor_llm::{Checkpoint, Decoder, key_rotation_name};
use tersor_lowrank::rotate::SHARES;
use tersor_lowrank::widths;
use tersor_operators::DenseCaches;

/// The form of a key-value cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spec {
    /// Values in f32.
    F32,
    /// Values in f16.
    F16,
    /// Integers of `bits` bits.
    Integers {
        /// Bits of a value, 2 to 8.
        bits: u32,
        /// The rotation of keys.
        keys: Keys,
        /// How many dimensions of each head are stored at 8 bits.
        high: High,
    },
}

/// The rotation of keys in an integer cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// No rotation.
    Plain,
    /// A random Hadamard matrix.
    Hadamard,
    /// The rotation stored with the model.
    Stored,
}

/// How many dimensions of each head are stored at 8 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum High {
    /// This number of dimensions.
    Count(usize),
    /// An eighth of the dimensions.
    Eighth,
}

impl Spec {
    /// Parses the name of a form. Errors (bad usage) if it is invalid.
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = || {
            let rule =
                "must be f32, f16 or int<2 to 8>[-hadamard|-pca][-high<dimensions>|-eighth], such as int4-hadamard";
            ParamError::new("kv", format!("`{name}`"), rule).into()
        };
        if name == "f32" {
            return Ok(Self::F32);
        }
        if name == "f16" {
            return Ok(Self::F16);
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

    /// Returns the form called `name`; without a name, the form that the recipe of the checkpoint records, or f32.
    pub fn of(name: Option<&str>, checkpoint: &Checkpoint) -> Result<Self> {
        let recorded = checkpoint.manifest().and_then(|m| m.json["recipe"]["kv"].as_str());
        name.or(recorded).map_or(Ok(Self::F32), Self::parse)
    }

    /// Returns the caches for a checkpoint's decoder. Errors if its heads are too narrow, or if stored rotations are needed and the model has none.
    pub fn caches(self, checkpoint: &Checkpoint) -> Result<Caches> {
        let c = checkpoint.architecture().decoder()?;
        let layers = vec![c.attention_heads()?; c.layers];
        let (bits, keys, high) = match self {
            Self::F32 => return Caches::new(Arc::new(DenseCaches::f32()), &layers),
            Self::F16 => return Caches::new(Arc::new(DenseCaches::new(DType::F16)?), &layers),
            Self::Integers { bits, keys, high } => (bits, keys, high),
        };
        let high = match high {
            High::Count(n) => n,
            High::Eighth => widths(SHARES, c.head_dim).pop().unwrap_or(0),
        };
        let plain = Integers::new(bits).high(high);
        // Random rotations come from a fixed seed, so they need not be stored.
        let rotation = |layer: usize| -> Result<Option<Rotation>> {
            match keys {
                Keys::Plain => Ok(None),
                Keys::Hadamard => {
                    let mut rng = Context::new().stream(&format!("keys of layer {layer}"));
                    tersor_linalg::rotation(c.head_dim, &mut rng).map(Some)
                }
                Keys::Stored => {
                    let place = format!("{} (compress with rotate = \"resq\")", checkpoint.model().path().display());
                    let missing = || Error::Missing { name: key_rotation_name(layer), place };
                    checkpoint.key_rotation(layer, c.head_dim)?.ok_or_else(missing).map(Some)
                }
            }
        };
        let params =
            |layer: usize| Ok(rotation(layer)?.into_iter().fold(plain.clone(), Integers::key_rotation).check()?);
        let params = (0..c.layers).map(params).collect::<Result<Vec<_>>>()?;
        Caches::new(Arc::new(IntegerCaches::by_layer(params)?), &layers)
    }
}

/// The key-value caches of a decoder.
pub struct Caches {
    set: Arc<dyn CacheSet>,
    /// Bytes per token in the caches of all layers.
    pub bytes_per_token: usize,
}

impl Caches {
    fn new(set: Arc<dyn CacheSet>, layers: &[Heads]) -> Result<Self> {
        Ok(Self { bytes_per_token: set.bytes_per_token(layers)?, set })
    }

    /// Returns the decoder with these caches.
    pub fn attach(self, decoder: Decoder) -> Decoder {
        decoder.with_caches(self.set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nothing_else() {
        assert_eq!((Spec::parse("f32").unwrap(), Spec::parse("f16").unwrap()), (Spec::F32, Spec::F16));
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
