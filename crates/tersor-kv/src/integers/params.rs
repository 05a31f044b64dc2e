//! What it can be told.

use tersor_core::{Bits, Check, ParamError, Rotation};

/// Parameters, unchecked: as many bits for values as for keys, all dimensions alike, keys as they are.
#[derive(Clone, Debug)]
pub struct Integers {
    key_bits: u32,
    value_bits: u32,
    high: usize,
    key_rotation: Option<Rotation>,
}

impl Integers {
    /// So many bits, 2 to 8, for keys and values.
    pub fn new(bits: u32) -> Self {
        Self { key_bits: bits, value_bits: bits, high: 0, key_rotation: None }
    }

    /// Other bits for values.
    pub fn value_bits(self, bits: u32) -> Self {
        Self { value_bits: bits, ..self }
    }

    /// The last `high` dimensions of each head have 8 bits, and a scale and a minimum of their own (ResQ: an eighth).
    pub fn high(self, high: usize) -> Self {
        Self { high, ..self }
    }

    /// Rotates keys after their rotary embedding, and queries likewise.
    pub fn key_rotation(self, rotation: Rotation) -> Self {
        Self { key_rotation: Some(rotation), ..self }
    }
}

/// Checked parameters.
#[derive(Clone, Debug)]
pub struct CheckedIntegers {
    pub(super) key_bits: Bits,
    pub(super) value_bits: Bits,
    pub(super) high: usize,
    pub(super) key_rotation: Option<Rotation>,
}

impl Check for Integers {
    type Checked = CheckedIntegers;
    fn check(self) -> Result<CheckedIntegers, ParamError> {
        Ok(CheckedIntegers {
            key_bits: Bits::within(self.key_bits, 2, 8)?,
            value_bits: Bits::within(self.value_bits, 2, 8)?,
            high: self.high,
            key_rotation: self.key_rotation,
        })
    }
}

impl CheckedIntegers {
    /// Bytes of one token in one layer with so many kept heads of such a width. Error when more dimensions have 8 bits than there are.
    pub fn bytes_per_token(&self, kv_heads: usize, head_dim: usize) -> Result<usize, ParamError> {
        let [keys, values] = self.spans(head_dim)?;
        Ok(kv_heads * (super::packed::row_bytes(&keys) + super::packed::row_bytes(&values)))
    }

    /// Width and bits of the parts of a head: of keys, of values.
    pub(super) fn spans(&self, head_dim: usize) -> Result<[Vec<(usize, u32)>; 2], ParamError> {
        let low = head_dim.checked_sub(self.high);
        let low = low.ok_or_else(|| ParamError::new("high", self.high, format!("must be at most {head_dim}")))?;
        Ok([self.key_bits, self.value_bits].map(|bits| {
            let parts = [(low, bits.get()), (self.high, 8)];
            parts.into_iter().filter(|p| p.0 > 0).collect()
        }))
    }
}
