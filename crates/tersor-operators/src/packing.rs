//! Packing of codes row by row, and group sizes in specifications.

use tersor_core::{GroupSize, OpSpec, ParamError};
use tersor_kernels::{Isa, bits};

/// Number of columns over which kernels sum integer products; longer groups are summed in spans of this length.
const SPAN: usize = 1 << 15;

/// Checks that kernels support groups of this size in rows of `cols` columns. Errors unless a group has at most 32 768 columns, a multiple
/// of 32 768 columns, or all `cols` columns. A group has all of them if it is a whole row or the whole matrix, or if its size is above
/// `cols`.
pub fn check_group(group: GroupSize, cols: usize) -> Result<(), ParamError> {
    let width = group.width(cols);
    if width <= SPAN || width.is_multiple_of(SPAN) || width >= cols {
        return Ok(());
    }
    Err(ParamError::new("group", width, format!("must be at most {SPAN}, a multiple of it, or all {cols} columns")))
}

/// Returns `spec` with the integer parameter `group`, the number of columns of a group in rows of `cols` columns; a parameter `group` that
/// `spec` has is replaced. If a group is a whole row or the whole matrix, the number is `cols`, or 1 if `cols` is 0. For a
/// [`GroupSize::Size`] it is that size, also if `cols` is smaller.
pub fn group_in(spec: OpSpec, group: GroupSize, cols: usize) -> OpSpec {
    let width = if let GroupSize::Size(n) = group { n.get() } else { cols.max(1) };
    spec.size("group", width)
}

/// Packs `codes`, `[rows, cols]` with one code a byte, to `bits` bits each, 1 to 8, the lowest bits of a byte first. Returns the bytes,
/// `[rows, ceil(cols * bits / 8)]`. Higher bits of a code are dropped, and codes after the last whole row are ignored. Does not fail. The
/// result is empty if `cols` or `bits` is 0; with `bits` above 8 it is unspecified.
///
/// ```
/// use tersor_operators::packing::{pack_rows, unpack_rows};
/// let packed = pack_rows(&[1, 2, 3, 4, 5, 6], 3, 4);
/// assert_eq!(packed, [0x21, 0x03, 0x54, 0x06]);
/// assert_eq!(unpack_rows(&packed, 3, 4), [1, 2, 3, 4, 5, 6]);
/// ```
pub fn pack_rows(codes: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; codes.len() / cols.max(1) * width];
    for (codes, out) in codes.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
        bits::pack(Isa::detect(), codes, bits, out);
    }
    out
}

/// Returns the codes, `[rows, cols]` with one code a byte, of rows that [`pack_rows`] packed with the same `cols` and `bits`. Bytes after
/// the last whole row are ignored. Does not fail. The result is empty if `cols` is 0; unless `bits` is 1 to 8, it is unspecified.
pub fn unpack_rows(packed: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; packed.len() / width.max(1) * cols];
    for (codes, packed) in out.chunks_exact_mut(cols.max(1)).zip(packed.chunks_exact(width.max(1))) {
        bits::unpack(Isa::detect(), packed, bits, 0, codes);
    }
    out
}
