//! Codes packed row by row, and group sizes in specifications.

use tersor_core::{GroupSize, OpSpec, ParamError};
use tersor_kernels::{Isa, bits};

/// Columns over which kernels sum products of integers; longer groups are summed in runs of so many.
const RUN: usize = 1 << 15;

/// Errors if a group of a row of `cols` columns has more columns than kernels take: 32 768, or a multiple of that, or all.
pub fn check_group(group: GroupSize, cols: usize) -> Result<(), ParamError> {
    let width = group.width(cols);
    if width <= RUN || width.is_multiple_of(RUN) || width >= cols {
        return Ok(());
    }
    Err(ParamError::new("group", width, format!("must be at most {RUN}, a multiple of it, or all {cols} columns")))
}

/// Adds the columns of a group to a specification; all columns where there are no groups.
pub fn group_in(spec: OpSpec, group: GroupSize, cols: usize) -> OpSpec {
    let width = if let GroupSize::Size(n) = group { n.get() } else { cols.max(1) };
    spec.size("group", width)
}

/// Packs rows of `cols` codes, one a byte, each into `ceil(cols * bits / 8)` bytes.
pub fn pack_rows(codes: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; codes.len() / cols.max(1) * width];
    for (codes, out) in codes.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
        bits::pack(Isa::detect(), codes, bits, out);
    }
    out
}

/// Undoes [`pack_rows`].
pub fn unpack_rows(packed: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let width = bits::packed_len(cols, bits);
    let mut out = vec![0u8; packed.len() / width.max(1) * cols];
    for (codes, packed) in out.chunks_exact_mut(cols.max(1)).zip(packed.chunks_exact(width.max(1))) {
        bits::unpack(Isa::detect(), packed, bits, 0, codes);
    }
    out
}
