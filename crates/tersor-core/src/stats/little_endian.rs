//! Numbers as little-endian bytes, the byte order of Tersor's files on every host.
//!
//! ```
//! use tersor_core::little_endian::{from_bytes, to_bytes};
//! let bytes = to_bytes(&[1.0f32, -2.0]).into_owned();
//! assert_eq!(bytes, [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
//! assert_eq!(from_bytes::<f32>(&bytes).unwrap(), [1.0, -2.0]);
//! assert!(from_bytes::<f32>(&bytes[1..]).is_err());
//! ```

use std::borrow::Cow;

use crate::{Error, Result};

mod sealed {
    pub trait Bytes: bytemuck::Pod {
        const SIZE: usize;
        fn append(self, out: &mut Vec<u8>);
        fn all(bytes: &[u8]) -> Vec<Self>;
    }
}

use sealed::Bytes;

/// The number types that are stored as little-endian bytes: f32 (4 bytes), f64 and u64 (8 bytes). Sealed: there are no other
/// implementations.
pub trait Number: Bytes {}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Bytes for $type {
            const SIZE: usize = size_of::<$type>();
            fn append(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
            fn all(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks().0.iter().map(|b| <$type>::from_le_bytes(*b)).collect()
            }
        }
        impl Number for $type {}
    )*};
}

number!(f32, f64, u64);

/// Returns the little-endian bytes of numbers, in order, `size_of::<T>()` bytes each: borrowed on a little-endian host, converted on
/// others.
pub fn to_bytes<T: Number>(values: &[T]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(converted(values))
    }
}

/// Returns the little-endian bytes of numbers by arithmetic, on any host.
fn converted<T: Number>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * T::SIZE);
    values.iter().for_each(|v| v.append(&mut out));
    out
}

/// Returns the numbers, in order, that the little-endian `bytes` represent, `size_of::<T>()` bytes each. Errors if the number of bytes is
/// not a multiple of this size.
pub fn from_bytes<T: Number>(bytes: &[u8]) -> Result<Vec<T>> {
    if !bytes.len().is_multiple_of(T::SIZE) {
        return Err(Error::shape("bytes of numbers", format!("a multiple of {}", T::SIZE), bytes.len()));
    }
    Ok(T::all(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Number + PartialEq + std::fmt::Debug>(values: &[T], bytes: &[u8]) {
        assert_eq!(&to_bytes(values)[..], bytes);
        assert_eq!(converted(values), bytes, "what a big-endian host writes");
        assert_eq!(from_bytes::<T>(bytes).unwrap(), values);
    }

    #[test]
    fn bytes_are_little_endian_whatever_the_host_is() {
        check(&[1f32, -2.5], &[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
        check(&[1f64], &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        check(&[0x0102_0304_0506_0708u64, 1], &[8, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
        check::<f32>(&[], &[]);
        // Values as a big-endian host has them in memory.
        check(&[f32::from_be_bytes([0x3f, 0x80, 0, 1])], &[1, 0, 0x80, 0x3f]);
        check(&[f64::from_be_bytes([0xc0, 0x20, 3, 4, 5, 6, 7, 8])], &[8, 7, 6, 5, 4, 3, 0x20, 0xc0]);
        assert!(from_bytes::<f64>(&[0; 12]).is_err() && from_bytes::<f32>(&[0; 3]).is_err());
    }

    #[test]
    fn a_little_endian_host_copies_nothing() {
        let values = [1f64; 3];
        assert_eq!(matches!(to_bytes(&values), Cow::Borrowed(_)), cfg!(target_endian = "little"));
    }
}
