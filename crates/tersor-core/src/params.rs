//! Parameters that are checked once, when they are made.

use crate::ParamError;

/// A builder of parameters that can be checked: [`check`](Self::check) turns it into checked parameters, which the algorithms take, or
/// returns an error that names the first invalid parameter.
///
/// ```
/// use tersor_core::{Check, ParamError};
///
/// /// Unchecked parameters.
/// struct Params {
///     rank: usize,
/// }
///
/// /// Checked parameters: the rank is at least 1.
/// #[derive(Debug, PartialEq)]
/// struct Checked(usize);
///
/// impl Check for Params {
///     type Checked = Checked;
///     fn check(self) -> Result<Checked, ParamError> {
///         if self.rank == 0 { Err(ParamError::new("rank", 0, "must be at least 1")) } else { Ok(Checked(self.rank)) }
///     }
/// }
///
/// assert_eq!(Params { rank: 8 }.check(), Ok(Checked(8)));
/// assert_eq!(Params { rank: 0 }.check().unwrap_err().to_string(), "parameter `rank` is 0: must be at least 1");
/// ```
pub trait Check {
    /// The checked parameters, which the algorithms take.
    type Checked;
    /// Returns the checked parameters. Errors with the first invalid parameter: its name, its value and the rule for it.
    fn check(self) -> Result<Self::Checked, ParamError>;
}

/// The width of a quantization code in bits, 1 to 8. Codes are 0 to `2^bits - 1`.
///
/// ```
/// use tersor_core::Bits;
/// assert_eq!(Bits::new(4).map(|b| (b.get(), b.max_code())), Ok((4, 15)));
/// assert!(Bits::new(9).is_err() && Bits::within(8, 2, 4).is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bits(u8);

impl Bits {
    /// Returns a width of `bits` bits. Errors unless `bits` is 1 to 8.
    pub fn new(bits: u32) -> Result<Self, ParamError> {
        Self::within(bits, 1, 8)
    }

    /// Returns a width of `bits` bits. Errors unless `bits` is in `low..=high` and is 1 to 8.
    pub fn within(bits: u32, low: u32, high: u32) -> Result<Self, ParamError> {
        let (low, high) = (low.max(1), high.min(8));
        if (low..=high).contains(&bits) {
            Ok(Self(bits as u8))
        } else {
            Err(ParamError::new("bits", bits, format!("must be {low} to {high}")))
        }
    }

    /// Returns the number of bits, 1 to 8.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// Returns the largest code of this width, `2^bits - 1`.
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.0)
    }
}

/// The weights that share quantization parameters, such as a scale: a given number of neighbouring weights of a row (`Size`), a whole row
/// (`Channel`), or the whole matrix (`Tensor`).
///
/// ```
/// use tersor_core::GroupSize;
/// # fn main() -> Result<(), tersor_core::ParamError> {
/// let groups = GroupSize::size(128)?;
/// assert_eq!((groups.width(300), groups.count(300)), (128, 3));
/// assert_eq!(GroupSize::Channel.count(300), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GroupSize {
    /// Groups of this many neighbouring weights of a row; the last group of a row may be shorter.
    Size(std::num::NonZeroUsize),
    /// One group for each row, that is, for each output channel.
    Channel,
    /// One group for the whole matrix.
    Tensor,
}

impl GroupSize {
    /// Returns groups of `size` neighbouring weights (input features) of a row. Errors if `size` is 0.
    pub fn size(size: usize) -> Result<Self, ParamError> {
        let size = std::num::NonZeroUsize::new(size);
        size.map(GroupSize::Size).ok_or_else(|| ParamError::new("group", 0, "must be at least 1"))
    }

    /// Returns the number of weights of a full group in a row of `cols` weights: the group size, `cols` at most; `cols` if a row or the
    /// matrix is one group. At least 1, also for an empty row.
    pub fn width(self, cols: usize) -> usize {
        match self {
            GroupSize::Size(n) => n.get().min(cols.max(1)),
            _ => cols.max(1),
        }
    }

    /// Returns the number of groups in a row of `cols` weights. It is 0 for an empty row. Otherwise it is 1 if a whole row or the whole
    /// matrix is one group, and `cols` divided by the group size, rounded up, for groups of a given size; the last group of a row may be
    /// shorter.
    pub fn count(self, cols: usize) -> usize {
        cols.div_ceil(self.width(cols))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_never_pass() {
        for bits in [0, 9, 64, u32::MAX] {
            assert!(Bits::new(bits).is_err());
        }
        assert_eq!(Bits::new(3).unwrap().max_code(), 7);
        assert_eq!(Bits::new(8).unwrap().max_code(), 255);
        assert!(GroupSize::size(0).is_err());
        let g = GroupSize::size(128).unwrap();
        assert_eq!((g.count(576), g.width(576), g.count(1), g.count(0)), (5, 128, 1, 0));
        assert_eq!(GroupSize::Channel.count(576), 1);
    }
}
