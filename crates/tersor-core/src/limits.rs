//! [`Limits`]: bounds on what a file may claim.

use crate::{Error, Result};

/// Upper bounds on the sizes that a file may claim, so that a broken or hostile file cannot exhaust memory. Functions that read files take
/// them, and error with [`Error::Limit`] on a larger size. The defaults admit any model in use; [`Limits::none`] lifts them.
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
    /// Maximum length of a safetensors header in bytes; 100 000 000 by default. The limit for `tokenizer.json` is always this default,
    /// whatever the value of the field.
    pub header_bytes: u64,
    /// Maximum length of one string in a GGUF file, such as a name or a metadata value, in bytes; 16 MiB by default.
    pub string_bytes: u64,
    /// Maximum number of entries of one metadata array of a GGUF file; 16 777 216 by default.
    pub array_entries: u64,
    /// Maximum number of metadata keys of a GGUF file; 100 000 by default.
    pub keys: u64,
    /// Maximum number of tensors in one safetensors or GGUF file, and of entries in an importance matrix; 10 000 000 by default.
    pub tensors: u64,
    /// Maximum number of axes of a tensor; 8 by default. A tensor in a GGUF file has at most 4 even if the limit is higher.
    pub axes: u64,
    /// Maximum depth of nested metadata arrays in a GGUF file: 1 allows arrays, 2 arrays of arrays; 4 by default.
    pub nesting: u64,
    /// Maximum alignment of the tensor data in a GGUF file, in bytes; 1 MiB by default.
    pub alignment: u64,
    /// Maximum length of a JSON file beside the weights, such as `config.json` or the index of the shards, in bytes; 16 MiB by default. It
    /// does not apply to `tokenizer.json`, which may always have up to 100 000 000 bytes.
    pub json_bytes: u64,
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
        }
    }
}

impl Limits {
    /// Returns limits for trusted files: every limit is the largest u64, except that metadata arrays may be nested 64 deep at most.
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
        }
    }

    /// Errors with [`Error::Limit`] if `found`, the size of `what`, is above `limit`. A size equal to the limit is allowed.
    pub fn check(what: &'static str, found: u64, limit: u64) -> Result<()> {
        if found > limit { Err(Error::Limit { what, found, limit }) } else { Ok(()) }
    }
}
