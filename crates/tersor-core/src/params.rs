//! Parameters become valid once; what is checked here never fails later.

use crate::ParamError;

/// An unchecked set of parameters that becomes a checked one, or says which of them is wrong.
pub trait Check {
    /// The checked form, which the algorithms take.
    type Checked;
    /// Checks every parameter; the first wrong one is the error.
    fn check(self) -> Result<Self::Checked, ParamError>;
}

/// Bits of a code, 1 to 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bits(u8);

impl Bits {
    /// Error unless `bits` is in `1..=8`.
    pub fn new(bits: u32) -> Result<Self, ParamError> {
        Self::within(bits, 1, 8)
    }

    /// Error unless `bits` is in `low..=high` (and 1 to 8).
    pub fn within(bits: u32, low: u32, high: u32) -> Result<Self, ParamError> {
        let (low, high) = (low.max(1), high.min(8));
        if (low..=high).contains(&bits) {
            Ok(Self(bits as u8))
        } else {
            Err(ParamError::new("bits", bits, format!("must be {low} to {high}")))
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// The largest code, `2^bits - 1`.
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.0)
    }
}

/// Over how many neighbouring values of a row one scale reaches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GroupSize {
    /// So many input features; the last group of a row may be shorter.
    Size(std::num::NonZeroUsize),
    /// The whole row: one scale an output channel.
    Channel,
    /// The whole matrix.
    Tensor,
}

impl GroupSize {
    /// Groups of `size` features. Error when it is 0.
    pub fn size(size: usize) -> Result<Self, ParamError> {
        let size = std::num::NonZeroUsize::new(size);
        size.map(GroupSize::Size).ok_or_else(|| ParamError::new("group", 0, "must be at least 1"))
    }

    /// Features of a full group in a row of `cols`.
    pub fn width(self, cols: usize) -> usize {
        match self {
            GroupSize::Size(n) => n.get().min(cols.max(1)),
            _ => cols.max(1),
        }
    }

    /// Groups in a row of `cols` features; none in an empty row.
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
