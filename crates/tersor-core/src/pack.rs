//! Dense little-endian packing of codes with checked widths and lengths. The layout is that of [`tersor_kernels::bits`].
//!
//! ```
//! use tersor_core::{Bits, pack};
//! # fn main() -> tersor_core::Result<()> {
//! let bits = Bits::new(4)?;
//! let packed = pack::pack(&[1, 2, 15], bits)?;
//! assert_eq!((packed.len(), pack::packed_len(3, bits)), (2, 2));
//! assert_eq!(pack::unpack(&packed, bits, 3)?, [1, 2, 15]);
//! assert!(pack::pack(&[16], bits).is_err(), "16 has five bits");
//! # Ok(())
//! # }
//! ```

use crate::{Bits, Error, Result};
use tersor_kernels::{Isa, bits};

/// Returns the number of bytes that `n` codes of `width` bits take when they are packed: `ceil(n * width / 8)`, or `usize::MAX` if that
/// overflows.
pub fn packed_len(n: usize, width: Bits) -> usize {
    bits::packed_len(n, width.get())
}

/// Returns `codes` packed with `width` bits each, without gaps: code `i` occupies the bits `i * width` to `(i + 1) * width - 1`, where bit
/// `b` is bit `b % 8` (the lowest is 0) of byte `b / 8`. Unused bits of the last byte are 0. Errors if a code is larger than
/// [`Bits::max_code`].
pub fn pack(codes: &[u8], width: Bits) -> Result<Vec<u8>> {
    if let Some(i) = codes.iter().position(|&c| c > width.max_code()) {
        let rule = format!("code {} at index {i} needs more than {} bits", codes[i], width.get());
        return Err(Error::Numerical(rule));
    }
    let mut out = vec![0u8; packed_len(codes.len(), width)];
    bits::pack(Isa::detect(), codes, width.get(), &mut out);
    Ok(out)
}

/// Returns the `n` codes of `width` bits, one in each byte, that [`pack`] packed into `packed`. Errors if the length of `packed` is not
/// [`packed_len`].
pub fn unpack(packed: &[u8], width: Bits, n: usize) -> Result<Vec<u8>> {
    if packed.len() != packed_len(n, width) {
        return Err(Error::shape("packed bytes", packed_len(n, width), packed.len()));
    }
    let mut out = vec![0u8; n];
    bits::unpack(Isa::detect(), packed, width.get(), 0, &mut out);
    Ok(out)
}
