//! Dense little-endian bit packing with checks; the loops are the kernels'.

use crate::{Bits, Error, Result};
use tersor_kernels::{Isa, bits};

/// Bytes that `n` codes take.
pub fn packed_len(n: usize, width: Bits) -> usize {
    bits::packed_len(n, width.get())
}

/// Packs codes. Error when one does not fit the width: cut off, it would become another value.
pub fn pack(codes: &[u8], width: Bits) -> Result<Vec<u8>> {
    if let Some(i) = codes.iter().position(|&c| c > width.max_code()) {
        let rule = format!("code {} at {i} does not fit {} bits", codes[i], width.get());
        return Err(Error::Numerical(rule));
    }
    let mut out = vec![0u8; packed_len(codes.len(), width)];
    bits::pack(Isa::detect(), codes, width.get(), &mut out);
    Ok(out)
}

/// Unpacks `n` codes. Error when `packed` has another length than they take.
pub fn unpack(packed: &[u8], width: Bits, n: usize) -> Result<Vec<u8>> {
    if packed.len() != packed_len(n, width) {
        return Err(Error::shape("packed bytes", packed_len(n, width), packed.len()));
    }
    let mut out = vec![0u8; n];
    bits::unpack(Isa::detect(), packed, width.get(), 0, &mut out);
    Ok(out)
}
