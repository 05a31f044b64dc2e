//! Parameters of integer caches.

use std::sync::Arc;

use tersor_core::{Bits, Check, Heads, ParamError, Rotation};
use tersor_operators::integer_row_bytes;

/// Unchecked parameters of a cache that stores keys and values as integers: the bits of keys, the bits of values, the number of dimensions
/// of each head that have 8 bits, and an optional rotation of keys. In each key and each value of a head, the 8-bit dimensions share one
/// scale and one minimum, and the other dimensions share another scale and another minimum. [`Check::check`] errors unless all bits are 2
/// to 8, and returns the [`CheckedIntegers`] that make caches.
#[derive(Clone, Debug)]
pub struct Integers {
    key_bits: u32,
    value_bits: u32,
    high: usize,
    key_rotation: Option<Rotation>,
}

impl Integers {
    /// Returns parameters with `bits` bits for all dimensions of keys and values, without a rotation. Does not fail: [`Check::check`]
    /// errors later unless `bits` is 2 to 8.
    pub fn new(bits: u32) -> Self {
        Self { key_bits: bits, value_bits: bits, high: 0, key_rotation: None }
    }

    /// Sets the bits of values; those of keys stay as they are. [`Check::check`] errors later unless `bits` is 2 to 8.
    pub fn value_bits(self, bits: u32) -> Self {
        Self { value_bits: bits, ..self }
    }

    /// Sets the number of dimensions of each head's keys and values that are stored in 8 bits. These are the last `high` dimensions (of a
    /// key after its rotation, if there is one), and they have a scale and a minimum of their own. The other dimensions keep the bits that
    /// [`Integers::new`] and [`Integers::value_bits`] set. The default is 0: no dimension is treated apart. ResQ stores an eighth of the
    /// dimensions in 8 bits. [`CheckedIntegers::layer`] and [`CheckedIntegers::bytes_per_token`] error later if a key or a value has fewer
    /// than `high` dimensions.
    pub fn high(self, high: usize) -> Self {
        Self { high, ..self }
    }

    /// Sets a rotation, `[key_dim, key_dim]`, which is applied to the key of each head after its rotary embedding, and to queries alike:
    /// attention scores stay the same up to rounding. The default is none. [`CheckedIntegers::layer`] errors later if the rotation does not
    /// have the width of a key.
    pub fn key_rotation(self, rotation: Rotation) -> Self {
        Self { key_rotation: Some(rotation), ..self }
    }
}

/// Checked parameters of a cache that stores keys and values as integers: the bits of keys and of values, 2 to 8 each, the number of
/// dimensions at the end of each head's keys and values that have 8 bits (0 for none), and an optional rotation of keys.
/// [`Integers::check`](Check::check) makes them.
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
    /// Returns the bytes that one token takes in the cache of one attention layer with the given heads, over all its key heads and value
    /// heads. In each key and value, the dimensions that are stored in 8 bits ([`Integers::high`]), if any, take one byte each and 4 bytes
    /// for their scale and minimum. The other dimensions, if any, take their codes, packed to whole bytes, and 4 bytes for their scale and
    /// minimum. Errors if a key or a value has fewer dimensions than the number to store in 8 bits.
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
