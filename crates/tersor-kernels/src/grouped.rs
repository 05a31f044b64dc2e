//! Quantization of matrices with an affine grid for each row and group of columns: floats to packed codes and back, in one pass over
//! memory.
//!
//! ```
//! use tersor_kernels::{Fault, Isa, affine::Affine, grouped::{self, Groups}};
//! let (isa, groups) = (Isa::detect(), Groups { cols: 4, group: 2, bits: 4, range: 0..=15 });
//! let (mut codes, mut grids) = ([0u8; 2], [Affine { scale: 1.0, zero: 0 }; 2]);
//! // One row of two groups, each with a step of its own.
//! let choose = |_row: usize, values: &[f32], grids: &mut [Affine]| -> Result<(), Fault> {
//!     grids.iter_mut().zip(values.chunks(2)).for_each(|(g, v)| g.scale = v[1] / 15.0);
//!     Ok(())
//! };
//! grouped::quantize(isa, &[0.0, 15.0, 10.0, 30.0], &groups, choose, (&mut codes, &mut grids), false).unwrap();
//! assert_eq!(codes, [0xf0, 0xf5]);
//! let mut values = [0f32; 4];
//! grouped::dequantize(isa, &codes, &groups, |_row, group| grids[group], &mut values, false).unwrap();
//! assert_eq!(values, [0.0, 15.0, 10.0, 30.0]);
//! ```

use std::ops::{Range, RangeInclusive};

use crate::affine::{self, Affine};
use crate::{Fault, Isa, bits, fault, par};

/// The shape of a row that is quantized by groups: its columns, the neighbouring columns that share a scale and a zero point (a group), and
/// the width and range of the codes. A row has [`count`](Self::count) groups and [`row_bytes`](Self::row_bytes) bytes of packed codes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Groups {
    /// The number of columns of the quantized matrix, that is of values of a row.
    pub cols: usize,
    /// The number of neighbouring columns that form a group; the last group of a row has the remaining columns. [`quantize`] and
    /// [`dequantize`] fail with `Fault::Range` if it is 0 and `cols` is not.
    pub group: usize,
    /// The number of bits of a packed code, 1 to 8. [`quantize`] and [`dequantize`] fail with `Fault::Range` if it is any other number.
    pub bits: u32,
    /// The first and the last code that [`quantize`] uses: codes are limited to this range. If the range starts after its end, every code
    /// becomes that end. The range should lie inside of `0..=2^bits - 1`. A larger code does not fit into `bits` bits: what is stored for
    /// it and for the code beside it is unspecified. [`dequantize`] ignores the range.
    pub range: RangeInclusive<u8>,
}

impl Groups {
    /// Returns the number of groups of a row, `ceil(cols / group)`; a `group` of 0 counts as 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }
    /// Returns the number of bytes of the packed codes of a row, `ceil(cols * bits / 8)`, or `usize::MAX` if that does not fit. Every row
    /// begins at a whole byte.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        bits::packed_len(self.cols, self.bits)
    }
    /// Returns the number of rows of a matrix of `values` values whose packed codes take `bytes` bytes. Fails with `Fault::Length` if there
    /// is no whole number of rows, and with `Fault::Range` if a group has no columns or a code does not have 1 to 8 bits.
    fn rows(&self, values: usize, bytes: usize) -> Result<usize, Fault> {
        if self.group == 0 && self.cols > 0 {
            return Err(Fault::Range { what: "columns of a group", limit: 1, found: 0 });
        }
        fault::bits(self.bits, 8)?;
        let rows = values.checked_div(self.cols).unwrap_or(0);
        fault::equal("values of whole rows", rows * self.cols, values)?;
        fault::equal("packed codes", fault::product("packed codes", rows, self.row_bytes())?, bytes)?;
        Ok(rows)
    }
    fn spans(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.count()).map(|g| g * self.group..((g + 1) * self.group).min(self.cols))
    }
}

/// Rows of a unit of work.
const UNIT: usize = 64;

/// Quantizes a matrix `x` `[rows, cols]`, row-major, by groups of columns. `choose(row, values, part)` is called once for each row. It gets
/// the index of the row, counted from 0, the `cols` values of the row, and the row's part of `grids`, one element for each group of the
/// row, which it must overwrite with the scale and the zero point of the group. A value `v` gets the code `round(v / scale) + zero`, ties
/// to even, limited to `groups.range`. The codes are written to `codes`, `[rows, row_bytes]` (see [`Groups::row_bytes`]), packed by
/// [`bits::pack`]. The chosen scales and zero points stay in `grids`, `[rows, count]` (see [`Groups::count`]). A NaN or minus infinity in
/// `x` becomes the first code of `groups.range`, plus infinity the last. With `parallel` the threads of the current rayon pool share the
/// work, in blocks of 64 rows.
///
/// Fails with `Fault::Range` if `groups.bits` is not 1 to 8, or if `groups.group` is 0 and there are columns. Fails with `Fault::Length` if
/// `x` is not a whole number of rows, or if `codes` or `grids` does not have exactly as many rows. Fails with `Fault::Overflow` if a size
/// does not fit in `usize`. In these cases `choose` is not called and nothing is written. If `choose` fails, returns its error for the
/// first row for which it did; the codes and grids of other rows may be written then.
pub fn quantize<E: From<Fault> + Send>(
    isa: Isa,
    x: &[f32],
    groups: &Groups,
    choose: impl Fn(usize, &[f32], &mut [Affine]) -> Result<(), E> + Sync + Send,
    (codes, grids): (&mut [u8], &mut [Affine]),
    parallel: bool,
) -> Result<(), E> {
    let (cols, count, width) = (groups.cols, groups.count(), groups.row_bytes());
    let rows = groups.rows(x.len(), codes.len())?;
    fault::equal("grids of the groups", rows * count, grids.len())?;
    if rows == 0 {
        return Ok(());
    }
    let block = |index: usize, codes: &mut [u8], grids: &mut [Affine]| {
        let mut row = vec![0u8; cols];
        let rest = &x[index * UNIT * cols..];
        let values = rest.chunks_exact(cols);
        for (r, ((x, packed), grids)) in values.zip(codes.chunks_mut(width)).zip(grids.chunks_mut(count)).enumerate() {
            choose(index * UNIT + r, x, grids)?;
            // The next row is prefetched while this one is computed.
            let next = rest.get(r * cols + cols..).unwrap_or_default();
            quantize_row(isa, [x, next], groups, grids, packed, &mut row);
        }
        Ok(())
    };
    par::pairs(codes, UNIT * width, grids, UNIT * count, parallel, block).into_iter().collect()
}

/// Writes the packed codes of a row, and prefetches the next one. `row` has room for one unpacked code a column.
fn quantize_row(isa: Isa, x: [&[f32]; 2], groups: &Groups, grids: &[Affine], packed: &mut [u8], row: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_vnni() && groups.bits == 4 && groups.cols.is_multiple_of(64) && groups.group.is_multiple_of(64) {
        let (lo, hi) = groups.range.clone().into_inner();
        // SAFETY: `isa` proves the instructions.
        unsafe { crate::arch::avx512::quantize_groups::<true>(x, groups.group, grids, [lo, hi], packed) };
        return;
    }
    if groups.bits == 8 {
        codes_of_row(isa, x, groups, grids, packed);
    } else {
        codes_of_row(isa, x, groups, grids, row);
        bits::pack(isa, row, groups.bits, packed);
    }
}

/// Writes the codes of a row, one a byte, and prefetches the next row.
fn codes_of_row(isa: Isa, [x, next]: [&[f32]; 2], groups: &Groups, grids: &[Affine], codes: &mut [u8]) {
    let (lo, hi) = groups.range.clone().into_inner();
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_avx512_vnni() {
            // SAFETY: `isa` proves the instructions.
            unsafe { crate::arch::avx512::quantize_groups::<false>([x, next], groups.group, grids, [lo, hi], codes) };
            return;
        }
        if isa.has_avx2() {
            // SAFETY: as above.
            unsafe { crate::arch::avx2::quantize_groups([x, next], groups.group, grids, [lo, hi], codes) };
            return;
        }
    }
    let (_, _) = (isa, next);
    for (span, grid) in groups.spans().zip(grids) {
        affine::quantize_scalar(&x[span.clone()], *grid, lo, hi, &mut codes[span]);
    }
}

/// Dequantizes a matrix that is quantized by groups of columns, into `out` `[rows, cols]`, row-major: a code becomes
/// `scale * (code - zero)`. `codes` is `[rows, row_bytes]` (see [`Groups::row_bytes`]), packed as by [`bits::pack`]. `grid(row, group)`
/// returns the scale and the zero point of a group, with both indices counted from 0. With `parallel` the threads of the current rayon pool
/// share the work, in blocks of 64 rows.
///
/// Fails with `Fault::Range` if `groups.bits` is not 1 to 8, or if `groups.group` is 0 and there are columns. Fails with `Fault::Length` if
/// `out` is not a whole number of rows, or if `codes` does not have exactly as many rows. Fails with `Fault::Overflow` if a size does not
/// fit in `usize`. `out` is unchanged then.
pub fn dequantize(
    isa: Isa,
    codes: &[u8],
    groups: &Groups,
    grid: impl Fn(usize, usize) -> Affine + Sync + Send,
    out: &mut [f32],
    parallel: bool,
) -> Result<(), Fault> {
    let (cols, width) = (groups.cols, groups.row_bytes());
    let rows = groups.rows(out.len(), codes.len())?;
    if rows == 0 {
        return Ok(());
    }
    let block = |index: usize, out: &mut [f32], _: &mut [()]| {
        let mut row = vec![0u8; cols];
        let packed = codes[index * UNIT * width..].chunks_exact(width);
        for (r, (packed, out)) in packed.zip(out.chunks_exact_mut(cols)).enumerate() {
            let row = if groups.bits == 8 {
                packed
            } else {
                bits::unpack(isa, packed, groups.bits, 0, &mut row);
                &row
            };
            for (g, span) in groups.spans().enumerate() {
                affine::dequantize(isa, &row[span.clone()], grid(index * UNIT + r, g), &mut out[span]);
            }
        }
    };
    par::pairs(out, UNIT * cols, &mut vec![(); rows.div_ceil(UNIT)], 1, parallel, block);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides the largest sizes, for Miri.
    const PART: usize = if cfg!(miri) { 8 } else { 1 };

    proptest! {
        #[test]
        fn rows_are_rounded_one_group_at_a_time(
            (rows, cols, group, bits) in prop_oneof![
                (0..=150 / PART, 0..=300 / PART, 1..=300 / PART, 1u32..=8),
                // Shapes that are packed in registers.
                (0..=150 / PART, (0..=5 / PART).prop_map(|n| 64 * n), (1usize..=3).prop_map(|n| 64 * n), Just(4)),
            ],
            halves: bool,
            salt: u64,
        ) {
            let mix = |i: usize| (i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let max = ((1u32 << bits) - 1) as u8;
            let groups = Groups { cols, group, bits, range: 0..=max };
            let grid = |r: usize, g: usize| Affine { scale: 0.1 + ((r + g) % 7) as f32, zero: (r + g) as u8 & max };
            let value = |i: usize| match halves {
                true => ((mix(i) % 41) as f32 * 0.5 - 10.0) * grid(i / cols, i % cols / group).scale,
                false => mix(i) as f32 / 1e6 - 8.0,
            };
            let x: Vec<f32> = (0..rows * cols).map(value).collect();
            let mut grids = vec![Affine { scale: 1.0, zero: 0 }; if cols == 0 { 0 } else { rows * groups.count() }];
            let mut codes = vec![0u8; if cols == 0 { 0 } else { rows * groups.row_bytes() }];
            let set = |r: usize, values: &[f32], grids: &mut [Affine]| -> Result<(), Fault> {
                assert_eq!(values, &x[r * cols..(r + 1) * cols]);
                grids.iter_mut().enumerate().for_each(|(g, f)| *f = grid(r, g));
                Ok(())
            };
            for isa in Isa::available() {
                prop_assert_eq!(quantize(isa, &x, &groups, set, (&mut codes, &mut grids), true), Ok(()));
                let mut back = vec![f32::NAN; x.len()];
                prop_assert_eq!(dequantize(isa, &codes, &groups, grid, &mut back, true), Ok(()));
                for (i, (x, back)) in x.iter().zip(&back).enumerate() {
                    let grid = grid(i / cols, i % cols / group);
                    prop_assert_eq!(affine::value(affine::code(*x, grid, 0, max), grid), *back);
                }
            }
        }
    }

    #[test]
    fn errors_and_wrong_lengths() {
        let groups = Groups { cols: 3, group: 2, bits: 4, range: 0..=15 };
        let (x, one) = (vec![1.0f32; 300], Affine { scale: 1.0, zero: 0 });
        let (mut codes, mut grids) = (vec![0u8; 200], vec![one; 200]);
        let fail = |found: usize, _: &[f32], _: &mut [Affine]| fault::at_most("row", 69, found);
        let error = Err(Fault::Range { what: "row", limit: 69, found: 70 });
        assert_eq!(quantize(Isa::SCALAR, &x, &groups, fail, (&mut codes, &mut grids), true), error);
        let short = Err(Fault::Length { what: "values of whole rows", expected: 297, found: 299 });
        assert_eq!(quantize(Isa::SCALAR, &x[1..], &groups, fail, (&mut codes, &mut grids), true), short);
        let bytes = Err(Fault::Length { what: "packed codes", expected: 200, found: 199 });
        assert_eq!(quantize(Isa::SCALAR, &x, &groups, fail, (&mut codes[1..], &mut grids), true), bytes);
        assert_eq!(dequantize(Isa::SCALAR, &codes, &groups, |_, _| one, &mut [0.0; 299], false), short);
        let none = Groups { group: 0, ..groups.clone() };
        let range = Err(Fault::Range { what: "columns of a group", limit: 1, found: 0 });
        assert_eq!(dequantize(Isa::SCALAR, &codes, &none, |_, _| one, &mut [0.0; 300], false), range);
        for bits in [0, 9] {
            let wide = Groups { bits, ..groups.clone() };
            let range = Err(Fault::Range { what: "bits of a code", limit: 8, found: bits as usize });
            assert_eq!(dequantize(Isa::SCALAR, &codes, &wide, |_, _| one, &mut [0.0; 300], false), range);
        }
    }
}
