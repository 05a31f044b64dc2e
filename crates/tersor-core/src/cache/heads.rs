//! [`Heads`]: the sizes of one layer's attention.

use std::sync::Arc;

use super::Rotary;
use crate::{ParamError, Result};

/// The heads of one attention layer: how many query, key and value heads there are, how wide they are, how far back a query sees (a sliding
/// window, counted in tokens, its own included), and the rotary embedding, which may be of the first dimensions of a head alone. Every
/// number and width is at least 1. The number of value heads is a multiple of the number of key heads, and the number of query heads is a
/// multiple of the number of value heads.
///
/// ```
/// use std::sync::Arc;
/// use tersor_core::Heads;
/// use tersor_core::cache::Rotary;
/// # fn main() -> tersor_core::Result<()> {
/// // The first 64 of 128 dimensions are rotated.
/// let rotary = Arc::new(Rotary::new(64, 10_000.0)?);
/// let heads = Heads::new(32, 8, 128)?.with_rotary(rotary)?.with_window(4096)?;
/// assert_eq!(heads.group(), 4);
/// assert!(Heads::new(30, 8, 128).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Heads {
    query: usize,
    key: usize,
    value: usize,
    key_dim: usize,
    value_dim: usize,
    window: Option<u32>,
    rotary: Option<Arc<Rotary>>,
}

impl Heads {
    /// Returns heads of `head_dim` values each (queries, keys and values), as many value heads as key heads, without window and rotary
    /// embedding. Each key head serves `query_heads / key_heads` neighbouring query heads. Errors if a number is 0, if `query_heads` is not
    /// a multiple of `key_heads`, or if `query_heads * head_dim` values exceed the address space.
    pub fn new(query_heads: usize, key_heads: usize, head_dim: usize) -> Result<Self, ParamError> {
        positive("query_heads", query_heads)?;
        positive("key_heads", key_heads)?;
        positive("head_dim", head_dim)?;
        if !query_heads.is_multiple_of(key_heads) {
            let rule = format!("must be a multiple of the {key_heads} key heads");
            return Err(ParamError::new("query_heads", query_heads, rule));
        }
        addressable(query_heads, head_dim)?;
        Ok(Self {
            query: query_heads,
            key: key_heads,
            value: key_heads,
            key_dim: head_dim,
            value_dim: head_dim,
            window: None,
            rotary: None,
        })
    }

    /// Returns these heads with `heads` value heads of `head_dim` values each. Without this call, value heads are as many and as wide as
    /// key heads. Errors if `heads` or `head_dim` is 0, if `heads` is not a multiple of the number of key heads, or if the number of query
    /// heads is not a multiple of `heads`. Errors if the output of a token, `query_heads * head_dim` values, exceeds the address space.
    pub fn with_values(self, heads: usize, head_dim: usize) -> Result<Self, ParamError> {
        positive("value_heads", heads)?;
        positive("value_dim", head_dim)?;
        if !heads.is_multiple_of(self.key) || !self.query.is_multiple_of(heads) {
            let rule = format!("must be a multiple of {} and divide {}", self.key, self.query);
            return Err(ParamError::new("value_heads", heads, rule));
        }
        addressable(self.query, head_dim)?;
        Ok(Self { value: heads, value_dim: head_dim, ..self })
    }

    /// Returns these heads with a sliding window of `tokens` positions: a query at position `p` sees the keys at positions `p - tokens + 1`
    /// to `p`. Errors unless `tokens` is 1 to 2^32 - 1.
    pub fn with_window(self, tokens: usize) -> Result<Self, ParamError> {
        let window = u32::try_from(tokens).ok().filter(|w| *w > 0);
        let window = window.ok_or_else(|| ParamError::new("window", tokens, "must be 1 to 4294967295"))?;
        Ok(Self { window: Some(window), ..self })
    }

    /// Returns these heads with a rotary embedding, which is applied to the first `rotary.dims()` values of each query and key head. Errors
    /// if these are more than the width of a key.
    pub fn with_rotary(self, rotary: Arc<Rotary>) -> Result<Self, ParamError> {
        if rotary.dims() > self.key_dim {
            let rule = format!("must be at most the {} of a head", self.key_dim);
            return Err(ParamError::new("rotary dimensions", rotary.dims(), rule));
        }
        Ok(Self { rotary: Some(rotary), ..self })
    }

    /// Returns the number of query heads.
    pub fn query_heads(&self) -> usize {
        self.query
    }

    /// Returns the number of key heads, a divisor of the number of query heads.
    pub fn key_heads(&self) -> usize {
        self.key
    }

    /// Returns the number of value heads: a multiple of the number of key heads, and a divisor of the number of query heads.
    pub fn value_heads(&self) -> usize {
        self.value
    }

    /// Returns the number of query heads that share one key head.
    pub fn group(&self) -> usize {
        self.query / self.key
    }

    /// Returns the width of one query head and of one key head, in values.
    pub fn key_dim(&self) -> usize {
        self.key_dim
    }

    /// Returns the width of one value head, and of the attention output of one query head, in values.
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Returns the length of the sliding window in positions, counting the query's own; None if a query sees all earlier positions.
    pub fn window(&self) -> Option<usize> {
        self.window.map(|w| w as usize)
    }

    /// Returns the rotary embedding of queries and keys; None if the layer has none.
    pub fn rotary(&self) -> Option<&Arc<Rotary>> {
        self.rotary.as_ref()
    }

    /// Returns the factor on the products of queries and keys before the softmax, `1 / sqrt(key_dim)`.
    pub fn scale(&self) -> f32 {
        (self.key_dim as f32).sqrt().recip()
    }

    /// Returns the range of the cached tokens, whose positions ascend, that a query at `position` sees.
    pub(super) fn visible(&self, cached: &[u32], position: u32) -> std::ops::Range<usize> {
        let end = cached.partition_point(|&p| p <= position);
        let start = match self.window {
            Some(w) => cached.partition_point(|&p| u64::from(p) + u64::from(w) <= u64::from(position)),
            None => 0,
        };
        start.min(end)..end
    }
}

fn positive(name: &'static str, value: usize) -> Result<(), ParamError> {
    if value == 0 { Err(ParamError::new(name, value, "must be at least 1")) } else { Ok(()) }
}

fn addressable(heads: usize, dim: usize) -> Result<(), ParamError> {
    match crate::view::elements([heads, dim]) {
        Ok(_) => Ok(()),
        Err(_) => Err(ParamError::new("head_dim", dim, format!("{heads} heads must fit the address space"))),
    }
}
