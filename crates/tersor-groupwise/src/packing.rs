//! Codes of rows, each row packed for itself, and groups in the records of operators.

use tersor_core::{GroupSize, OpSpec};
use tersor_kernels::bits;

/// The columns of a group; the row where there are no groups.
pub(crate) fn group_in(spec: OpSpec, group: GroupSize, cols: usize) -> OpSpec {
    let width = if let GroupSize::Size(n) = group { n.get() } else { cols.max(1) };
    spec.int("group", i64::try_from(width).unwrap_or(i64::MAX))
}

/// Packs rows of `cols` codes, one a byte, each into `ceil(cols * bits / 8)` bytes.
pub(crate) fn pack_rows(codes: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; codes.len() / cols.max(1) * width];
    for (codes, out) in codes.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
        bits::pack(codes, bits, out);
    }
    out
}

/// Undoes [`pack_rows`].
pub(crate) fn unpack_rows(packed: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; packed.len() / width.max(1) * cols];
    for (codes, packed) in out.chunks_exact_mut(cols.max(1)).zip(packed.chunks_exact(width.max(1))) {
        bits::unpack(packed, bits, 0, codes);
    }
    out
}
