//! [`Fault`]: why a function of this crate refuses its arguments.

use std::fmt;

/// Why a function of this crate refuses its arguments: a wrong length, a number outside of its range, a size that does not fit in `usize`,
/// a value that is not finite, or values that are not in ascending order. Unless a function documents otherwise, it has written no output
/// then.
///
/// ```
/// use tersor_kernels::{Fault, Isa, hadamard::fwht};
/// let fault = fwht(Isa::SCALAR, &mut [0.0; 5]).unwrap_err();
/// assert_eq!(fault, Fault::Length { what: "vector of a Hadamard transform", expected: 8, found: 5 });
/// assert_eq!(fault.to_string(), "vector of a Hadamard transform: 8 expected, 5 found");
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A slice or a stride has a wrong length, or two shapes do not match.
    Length {
        /// The argument whose length is wrong.
        what: &'static str,
        /// The length that is needed; if a longer one would do, the smallest.
        expected: usize,
        /// The length that was given.
        found: usize,
    },
    /// An index, a code or a size is outside of the allowed range.
    Range {
        /// The number that is out of range.
        what: &'static str,
        /// The bound that the number violates.
        limit: usize,
        /// The number that was given.
        found: usize,
    },
    /// A size does not fit in `usize`.
    Overflow {
        /// The size that overflows.
        what: &'static str,
    },
    /// A value is NaN or infinite where only finite values are allowed.
    NonFinite {
        /// Index of the first value that is not finite, in the flat slice.
        index: usize,
        /// The value that is not finite.
        value: f32,
    },
    /// Values are not in strictly ascending order.
    Order {
        /// The list that is not in order.
        what: &'static str,
        /// Index of the first value that is not greater than the one before it.
        index: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fault::Length { what, expected, found } => write!(f, "{what}: {expected} expected, {found} found"),
            Fault::Range { what, limit, found } => write!(f, "{what}: {found} is outside of the limit {limit}"),
            Fault::Overflow { what } => write!(f, "{what}: the size is too large"),
            Fault::NonFinite { index, value } => write!(f, "value {index} is {value}, only finite values are allowed"),
            Fault::Order { what, index } => write!(f, "{what}: value {index} is not greater than the one before it"),
        }
    }
}

impl std::error::Error for Fault {}

/// Fails with `Fault::Length` unless the two lengths are equal.
pub(crate) fn equal(what: &'static str, expected: usize, found: usize) -> Result<(), Fault> {
    if expected == found { Ok(()) } else { Err(Fault::Length { what, expected, found }) }
}

/// Fails with `Fault::Length` unless `found` is at least `expected`.
pub(crate) fn at_least(what: &'static str, expected: usize, found: usize) -> Result<(), Fault> {
    if expected <= found { Ok(()) } else { Err(Fault::Length { what, expected, found }) }
}

/// Fails with `Fault::Range` unless `found` is at most `limit`.
pub(crate) fn at_most(what: &'static str, limit: usize, found: usize) -> Result<(), Fault> {
    if found <= limit { Ok(()) } else { Err(Fault::Range { what, limit, found }) }
}

/// Fails with `Fault::Range` unless `bits` is between 1 and `limit`.
pub(crate) fn bits(bits: u32, limit: u32) -> Result<(), Fault> {
    let (limit, found) = (limit as usize, bits as usize);
    if (1..=limit).contains(&found) { Ok(()) } else { Err(Fault::Range { what: "bits of a code", limit, found }) }
}

/// Returns the product of two sizes. Fails with `Fault::Overflow` if it does not fit in `usize`.
pub(crate) fn product(what: &'static str, a: usize, b: usize) -> Result<usize, Fault> {
    a.checked_mul(b).ok_or(Fault::Overflow { what })
}

/// Fails with `Fault::Length` unless `found` is the number of elements of a matrix `[rows, cols]`, and with `Fault::Overflow` if that
/// number does not fit in `usize`.
pub(crate) fn matrix(what: &'static str, [rows, cols]: [usize; 2], found: usize) -> Result<(), Fault> {
    equal(what, product(what, rows, cols)?, found)
}

/// Fails with `Fault::NonFinite` at the first NaN or infinite value.
pub(crate) fn finite(x: &[f32]) -> Result<(), Fault> {
    // One pass without branches, which the compiler vectorizes; the search for the index follows only if a value is not finite.
    const EXPONENT: u32 = 0x7f80_0000;
    let sound = |part: &[f32]| !part.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT));
    if x.chunks(4096).all(sound) { Ok(()) } else { first_non_finite(x, 0) }
}

/// Fails with `Fault::NonFinite` at the first value of `x` that is not finite; `before` is the index of `x[0]` in the caller's slice.
#[cold]
pub(crate) fn first_non_finite(x: &[f32], before: usize) -> Result<(), Fault> {
    match x.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Fault::NonFinite { index: before + i, value: x[i] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_numbers() {
        let length = Fault::Length { what: "codes", expected: 6, found: 5 };
        assert_eq!(length.to_string(), "codes: 6 expected, 5 found");
        let range = Fault::Range { what: "bits of a code", limit: 8, found: 9 };
        assert_eq!(range.to_string(), "bits of a code: 9 is outside of the limit 8");
        assert_eq!(bits(9, 8), Err(range));
        assert!(bits(0, 8).is_err() && bits(1, 8).is_ok() && bits(8, 8).is_ok());
        assert_eq!(matrix("output", [2, usize::MAX], 3), Err(Fault::Overflow { what: "output" }));
        assert_eq!(Fault::Overflow { what: "output" }.to_string(), "output: the size is too large");
        let order = Fault::Order { what: "codebook", index: 3 };
        assert_eq!(order.to_string(), "codebook: value 3 is not greater than the one before it");
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        assert_eq!(finite(&[]), Ok(()));
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for at in [0, 1, 4095, 4096, 9999] {
                let mut x = vec![f32::MAX; 10_000];
                (x[at], x[9999]) = (bad, bad);
                match finite(&x) {
                    Err(Fault::NonFinite { index, value }) => {
                        assert_eq!((index, value.to_bits()), (at, bad.to_bits()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let text = Fault::NonFinite { index: 7, value: f32::INFINITY }.to_string();
        assert_eq!(text, "value 7 is inf, only finite values are allowed");
    }
}
