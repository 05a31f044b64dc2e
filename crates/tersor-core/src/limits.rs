//! [`Limits`]: bounds on what a file may claim.

use crate::{Error, Result};

/// Bounds on the sizes that files may claim, for everything that reads files. The defaults hold for any model in use; [`Limits::none`]
/// lifts them.
///
/// ```
/// use tersor_core::Limits;
/// let limits = Limits::default();
/// assert!(Limits::check("number of axes", 4, limits.axes).is_ok());
/// let refused = Limits::check("number of axes", 9, limits.axes).unwrap_err();
/// assert!(refused.to_string().starts_with("number of axes is 9, above the limit of 8"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum bytes of a safetensors header.
    pub header_bytes: u64,
    /// Maximum bytes of one string in a GGUF file, such as a name or a metadata value.
    pub string_bytes: u64,
    /// Maximum entries of one metadata array of a GGUF file.
    pub array_entries: u64,
    /// Maximum number of metadata keys of a GGUF file.
    pub keys: u64,
    /// Maximum number of tensors in one file.
    pub tensors: u64,
    /// Maximum number of axes of a tensor.
    pub axes: u64,
    /// Maximum depth of nested metadata arrays.
    pub nesting: u64,
    /// Maximum alignment of tensor data in bytes.
    pub alignment: u64,
    /// Maximum bytes of a JSON file beside the weights, such as a configuration or a tokenizer.
    pub json_bytes: u64,
    /// Maximum bytes of one allocation whose size a file determines.
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
    /// Returns limits that allow everything (nesting up to 64): for trusted files.
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

    /// Errors with [`Error::Limit`] if `found`, the size of `what`, is above `limit`.
    pub fn check(what: &'static str, found: u64, limit: u64) -> Result<()> {
        if found > limit { Err(Error::Limit { what, found, limit }) } else { Ok(()) }
    }
}
