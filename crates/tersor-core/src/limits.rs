//! How much a file may claim before it is believed.

use crate::{Error, Result};

/// Limits for everything that reads files. The defaults hold for any model in use; [`Limits::none`] lifts them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a safetensors header.
    pub header_bytes: u64,
    /// Bytes of one string.
    pub string_bytes: u64,
    /// Entries of one metadata array.
    pub array_entries: u64,
    /// Metadata keys.
    pub keys: u64,
    /// Tensors in one file.
    pub tensors: u64,
    /// Axes of a tensor.
    pub axes: u64,
    /// Depth of nested arrays.
    pub nesting: u64,
    /// Bytes of alignment.
    pub alignment: u64,
    /// Bytes of a JSON file beside the weights.
    pub json_bytes: u64,
    /// Bytes of one allocation that a parser makes because a file says so.
    pub allocation: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            string_bytes: 16 << 20,
            array_entries: 16 << 20,
            keys: 100_000,
            tensors: 10_000_000,
            axes: 8,
            nesting: 4,
            alignment: 1 << 20,
            json_bytes: 16 << 20,
            allocation: 1 << 30,
        }
    }
}

impl Limits {
    /// No limits: for files that are trusted.
    pub fn none() -> Self {
        let max = u64::MAX;
        Self {
            header_bytes: max,
            string_bytes: max,
            array_entries: max,
            keys: max,
            tensors: max,
            axes: max,
            nesting: 64,
            alignment: max,
            json_bytes: max,
            allocation: max,
        }
    }

    /// Error when `found` is above `limit`.
    pub fn check(what: &'static str, found: u64, limit: u64) -> Result<()> {
        if found > limit { Err(Error::Limit { what, found, limit }) } else { Ok(()) }
    }
}
