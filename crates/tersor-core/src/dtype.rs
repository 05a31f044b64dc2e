//! Element types: [`Element`] for values in memory, [`DType`] for stored tensors.

use half::{bf16, f16};
use tersor_kernels::Isa;

use crate::{Error, Result};

/// A float type of weights and activations in memory: f32, f16 or bf16, with conversions from and to f32. The trait is sealed: other types
/// cannot implement it.
pub trait Element: Copy + Send + Sync + 'static + private::Sealed {
    /// The [`DType`] of this type.
    const DTYPE: DType;
    /// Returns the value in f32, exactly.
    fn to_f32(self) -> f32;
    /// Converts the elements of `from` to f32, exactly, and writes them to `to`, as many as the shorter slice has.
    fn widen(isa: Isa, from: &[Self], to: &mut [f32]);
    /// Rounds the elements of `from` to this type (to nearest, ties to even) and writes them to `to`, as many as the shorter slice has.
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]);
    /// The value 0.
    const ZERO: Self;
    /// Returns the slice itself if the type is f32, None otherwise.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// Returns the mutable slice itself if the type is f32, None otherwise.
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: Self = 0.0;
    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        Some(slice)
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn widen(_: Isa, from: &[Self], to: &mut [f32]) {
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
    }
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]) {
        Self::widen(isa, from, to);
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    const ZERO: Self = f16::ZERO;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn widen(isa: Isa, from: &[Self], to: &mut [f32]) {
        tersor_kernels::convert::f16_to_f32(isa, from, to);
    }
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]) {
        tersor_kernels::convert::f32_to_f16(isa, from, to);
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const ZERO: Self = bf16::ZERO;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn widen(isa: Isa, from: &[Self], to: &mut [f32]) {
        tersor_kernels::convert::bf16_to_f32(isa, from, to);
    }
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]) {
        tersor_kernels::convert::f32_to_bf16(isa, from, to);
    }
}

/// The element type of a stored tensor: one of the floats `F64`, `F32`, `F16` and `BF16`, the integers `I8` to `I64` and `U8` to `U64` (8,
/// 16, 32 or 64 bits), `Bool` (one byte), or `E8M0` (a power of two in one byte, for the scales of MX formats). [`DType::name`] gives the
/// name of a type in a safetensors file.
///
/// ```
/// use tersor_core::DType;
/// assert_eq!((DType::BF16.size(), DType::from_name("bf16")), (2, Some(DType::BF16)));
/// let mut values = [0f32; 1];
/// assert!(DType::F16.widen_bytes(&[0x00, 0x3c], &mut values).is_ok() && values == [1.0]);
/// assert!(!DType::I8.is_weight());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    /// A power of two by its biased exponent, `2^(byte - 127)`; 255 is NaN. A type of scales (MX formats).
    E8M0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl DType {
    /// Every element type, in the order in which the variants are declared.
    pub const ALL: [DType; 14] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::E8M0,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U64,
        DType::U32,
        DType::U16,
        DType::U8,
        DType::Bool,
    ];

    /// Returns the number of bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::E8M0 | DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Returns the type's name in a safetensors header, in capitals, such as `BF16`; `F8_E8M0` for E8M0.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::E8M0 => "F8_E8M0",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U64 => "U64",
            DType::U32 => "U32",
            DType::U16 => "U16",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }

    /// Returns the type with the name `name` in a safetensors header, such as `BF16`; lower-case letters are accepted too. None if no type
    /// has this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name))
    }

    /// Returns whether weights can be stored in this type: F32, F16 or BF16.
    pub const fn is_weight(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Returns whether scales can be stored in this type: F32, F16, BF16 or E8M0.
    pub const fn is_scale(self) -> bool {
        self.is_weight() || matches!(self, DType::E8M0)
    }

    /// Errors unless `bytes` is the length of `values` values of this type.
    fn check_lengths(self, values: usize, bytes: usize) -> Result<()> {
        let expected = values.checked_mul(self.size());
        let expected =
            expected.ok_or_else(|| Error::Overflow { what: format!("{values} values of {}", self.name()) })?;
        if expected != bytes { Err(Error::shape("bytes of values", expected, bytes)) } else { Ok(()) }
    }

    /// Converts `bytes`, elements of this type in little-endian order at any alignment, to f32 and writes them to `out`; exact. The E8M0
    /// byte 255 becomes NaN. Errors, with `out` unchanged, unless the type is F32, F16, BF16 or E8M0 and `bytes` has `out.len()` times
    /// [`DType::size`] bytes.
    pub fn widen_bytes(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        self.check_lengths(out.len(), bytes.len())?;
        match self {
            DType::F32 => {
                for (v, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *v = f32::from_le_bytes(*b);
                }
            }
            DType::F16 => widen_chunks(bytes, out, f16::from_le_bytes),
            DType::BF16 => widen_chunks(bytes, out, bf16::from_le_bytes),
            DType::E8M0 => out.iter_mut().zip(bytes).for_each(|(v, b)| *v = from_exponent(*b)),
            _ => return Err(Error::Unsupported { what: "floating-point type", value: self.name().into() }),
        }
        Ok(())
    }

    /// Converts `values` to this type and writes them to `out` in little-endian order. F32 is exact. F16 and BF16 round to nearest, ties to
    /// even; values too large become infinite, and NaN stays NaN. [`DType::E8M0`] rounds down to a power of two, at least 2^-127; zero,
    /// negative values, NaN and infinities become the byte 255 (NaN). Errors, with `out` unchanged, if the type is not F32, F16, BF16 or
    /// E8M0, or if `out` does not have `values.len()` times [`DType::size`] bytes.
    pub fn narrow_bytes(self, values: &[f32], out: &mut [u8]) -> Result<()> {
        self.check_lengths(values.len(), out.len())?;
        match self {
            DType::F32 => {
                for (b, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *b = v.to_le_bytes();
                }
            }
            DType::F16 => narrow_chunks::<f16>(values, out, |v| v.to_le_bytes()),
            DType::BF16 => narrow_chunks::<bf16>(values, out, |v| v.to_le_bytes()),
            DType::E8M0 => out.iter_mut().zip(values).for_each(|(b, v)| {
                *b = if *v > 0.0 && v.is_finite() { (v.to_bits() >> 23) as u8 } else { 255 };
            }),
            _ => return Err(Error::Unsupported { what: "floating-point type", value: self.name().into() }),
        }
        Ok(())
    }
}

/// The power of two with a biased exponent; the smallest one below the normal numbers, NaN for 255.
fn from_exponent(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        b => f32::from_bits(u32::from(b) << 23),
    }
}

/// Through a small aligned buffer, so that the vectorized conversions serve unaligned bytes too.
fn widen_chunks<T: Element>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; 2]) -> T) {
    let mut buffer = [T::ZERO; 256];
    for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        for (v, b) in buffer.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *v = read(*b);
        }
        T::widen(Isa::detect(), &buffer, out);
    }
}

fn narrow_chunks<T: Element>(values: &[f32], out: &mut [u8], write: impl Fn(T) -> [u8; 2]) {
    let mut buffer = [T::ZERO; 256];
    for (values, out) in values.chunks(256).zip(out.chunks_mut(512)) {
        T::narrow(Isa::detect(), values, &mut buffer);
        for (b, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(buffer) {
            *b = write(v);
        }
    }
}
/// Returns the smallest power of two that is at least `v`, for a positive normal `v`. The result is infinity if this power is above 2^127.
/// Zero and subnormal values of either sign give 0. NaN and both infinities give infinity. A negative normal `v` gives the largest power of
/// two, a positive number, that is at most `-v`.
pub fn power_of_two_above(v: f32) -> f32 {
    let down = f32::from_bits(v.to_bits() & 0x7f80_0000);
    if down < v { down * 2.0 } else { down }
}
