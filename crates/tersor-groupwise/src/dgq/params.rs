//! Parameters of dual-grained quantization.

use tersor_core::{Check, Context, Element, GroupSize, IntoMat, ParamError, Report, Result, StatSet};
use tersor_operators::DualLinear;

use crate::{CheckedRtn, Rtn};

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

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` for inputs with these statistics, which must have the Gram matrix.
    /// Errors on a wrong parameter, statistics that lack it or have other features, or a value that is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(DualLinear, Report)> {
        let checked = self.check()?;
        w.with_mat(|m| checked.ready(stats)?.dual(&m, 0..m.shape()[0], &Context::new()))
    }
}

/// Checked parameters: the method.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedDgq {
    pub(super) group: GroupSize,
    /// Rounding to nearest in groups of this size.
    pub(super) rtn: CheckedRtn,
}

impl Check for Dgq {
    type Checked = CheckedDgq;
    fn check(self) -> Result<CheckedDgq, ParamError> {
        Ok(CheckedDgq { group: GroupSize::size(self.group)?, rtn: Rtn::new().group(self.group).check()? })
    }
}
