//! Parameters of integer caches.

use std::sync::Arc;

use tersor_core::{Bits, Check, Heads, ParamError, Rotation};
use tersor_operators::integer_row_bytes;

/// Unchecked parameters of integer caches: bits of keys and values, dimensions at 8 bits, a rotation of keys.
#[derive(Clone, Debug)]
pub struct Integers {
    key_bits: u32,
    value_bits: u32,
    high: usize,
    key_rotation: Option<Rotation>,
}

impl Integers {
    /// Returns parameters with `bits` bits, 2 to 8, for all dimensions of keys and values, without rotation.
    pub fn new(bits: u32) -> Self {
        Self { key_bits: bits, value_bits: bits, high: 0, key_rotation: None }
    }

    /// Sets the bits of values, 2 to 8.
    pub fn value_bits(self, bits: u32) -> Self {
        Self { value_bits: bits, ..self }
    }

    /// Stores the last `high` dimensions of each head in 8 bits, with a scale and a minimum of their own (ResQ: an eighth).
    pub fn high(self, high: usize) -> Self {
        Self { high, ..self }
    }

    /// Rotates keys after their rotary embedding, and queries alike: scores stay the same up to rounding.
    pub fn key_rotation(self, rotation: Rotation) -> Self {
        Self { key_rotation: Some(rotation), ..self }
    }
}

/// Checked parameters of integer caches: bits of keys and of values, the number of dimensions at 8 bits, an optional rotation of keys. Made by
/// [`Integers::check`](Check::check).
#[derive(Clone, Debug)]
pub struct CheckedIntegers {
    pub(super) key_bits: Bits,
    pub(super) value_bits: Bits,
    pub(super) high: usize,
    pub(super) key_rotation: Option<Arc<Rotation>>,
}

impl Check for Integers {
    type Checked = CheckedIntegers;
    fn check(self) -> Result<CheckedIntegers, ParamError> {
        Ok(CheckedIntegers {
            key_bits: Bits::within(self.key_bits, 2, 8)?,
            value_bits: Bits::within(self.value_bits, 2, 8)?,
            high: self.high,
            key_rotation: self.key_rotation.map(Arc::new),
        })
    }
}

impl CheckedIntegers {
    /// Returns the bytes of one token in the cache of one layer. Errors if more dimensions have 8 bits than a head has.
    pub fn bytes_per_token(&self, heads: &Heads) -> Result<usize, ParamError> {
        let [keys, values] = self.parts(heads)?;
        Ok(heads.key_heads() * integer_row_bytes(&keys) + heads.value_heads() * integer_row_bytes(&values))
    }

    /// Returns width and bits of each part of a key, and of a value.
    pub(super) fn parts(&self, heads: &Heads) -> Result<[Vec<(usize, u32)>; 2], ParamError> {
        let parts = |dim: usize, bits: Bits| {
            let low = dim.checked_sub(self.high);
            let low = low.ok_or_else(|| ParamError::new("high", self.high, format!("must be at most {dim}")))?;
            let parts = [(low, bits.get()), (self.high, 8)];
            Ok(parts.into_iter().filter(|p| p.0 > 0).collect())
        };
        Ok([parts(heads.key_dim(), self.key_bits)?, parts(heads.value_dim(), self.value_bits)?])
    }
}
