//! What it can be told.

use tersor_core::{Check, GroupSize, ParamError};

/// Parameters of dual-grained quantization, unchecked: 4 bits, groups of 128.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dgq {
    group: usize,
}

impl Default for Dgq {
    fn default() -> Self {
        Self { group: 128 }
    }
}

impl Dgq {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An integer scale for every `group` input features; the last group of a row may be shorter.
    pub fn group(self, group: usize) -> Self {
        Self { group }
    }
}

/// Checked parameters: the method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckedDgq {
    pub(crate) group: GroupSize,
}

impl Check for Dgq {
    type Checked = CheckedDgq;
    fn check(self) -> Result<CheckedDgq, ParamError> {
        Ok(CheckedDgq { group: GroupSize::size(self.group)? })
    }
}
