//! Weights of 4 bits with a look-up table of 16 bytes for each row and group.
//!
//! The table gives the 8-bit weight of a code, so that the product of a row is one integer sum, whatever its groups are: the per-group form
//! of QQQ (arXiv 2406.09904), whose group scale is applied to the codes and rounded.
//!
//! ```
//! use half::f16;
//! use tersor_kernels::{Isa, Out, Write, bits, integer::{Activations, tables::{self, TablePanels}}};
//! let isa = Isa::detect();
//! // One row of four codes, in two groups with the scales 1 and 10, and a row scale of 0.5.
//! let mut packed = [0u8; 2];
//! bits::pack(isa, &[9, 10, 9, 6], 4, &mut packed);
//! let table = |_row: usize, group: usize| tables::rounded_table(f16::from_f32([1.0, 10.0][group]));
//! let w = TablePanels::new(isa, &packed, [1, 4], 2, table, &[0.5]).unwrap();
//! let x = Activations::from_codes(&[1, 1, 1, 1], &[2.0], w.padding()).unwrap();
//! let mut y = [0f32; 1];
//! tables::product(isa, &x, &w, Write::Set, Out { data: &mut y, stride: 1 }, false).unwrap();
//! assert_eq!(y, [1.0 + 2.0 + 10.0 - 20.0]);
//! ```

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::{Activations, LANES, Line, Padding};
use crate::convert::f16_value;
use crate::gemm_task::{GemmTask, Out, Tile, Write, run_tasks};
use crate::{Fault, Isa, bits, fault};

/// Weight rows of a line.
pub(crate) const ROWS: usize = 4;

/// Columns of a line.
const COLS: usize = 32;

/// The largest number of columns: sums over them of products of activation codes, -128 to 127, and weights, -127 to 127, stay below 2^31.
const MAX_COLS: usize = 1 << 17;

/// A weight matrix `W`, `[rows, cols]`, of 4-bit codes with a look-up table of 16 signed 8-bit integers for each row and group of columns
/// and an f32 scale for each row: a weight is `row_scales[row] * table[row, group][code]`. Activations `x`, `[tokens, cols]`, are multiplied
/// with it by [`tables::product`](product), which computes `x Wᵀ`. Any number of rows and up to 131 072 columns are allowed, in groups of
/// any chosen number of consecutive columns; the last group of a row may be shorter.
///
/// In memory, a line of 64 bytes has 16 bytes for each of four rows: the codes of 32 columns of a group, those of the first 16 in the low
/// halves. Missing rows and columns at the end are padded. The lines of four rows follow each other in the order of the columns, and these
/// sequences in the order of the rows. The tables are stored apart, in the same order: a line has a table for each of four rows.
#[derive(Clone, Debug, PartialEq)]
pub struct TablePanels {
    rows: usize,
    padding: Padding,
    /// `[four rows, block]`.
    lines: Vec<Line>,
    /// `[four rows, group]`, bytes offset by 128.
    tables: Vec<Line>,
    row_scales: Vec<f32>,
}

/// Returns the look-up table by which QQQ (arXiv 2406.09904) applies a group scale to 4-bit codes with the zero point 8: entry `code`, 0 to
/// 15, is `round((code - 8) * scale)`, ties to even, limited to -127..=127. Any scale is allowed. An entry for which the product is NaN is
/// 0: all entries for a NaN scale, entry 8 for an infinite one.
#[must_use]
pub fn rounded_table(scale: f16) -> [i8; 16] {
    let scale = f16_value(scale.to_bits());
    // The product is exact in f32: 4 bits by 11.
    std::array::from_fn(|n| ((n as f32 - 8.0) * scale).round_ties_even().clamp(-127.0, 127.0) as i8)
}

impl TablePanels {
    /// Repacks a matrix of 4-bit codes, `[rows, cols]`. Each row of `packed` begins at a whole byte and has `ceil(cols / 2)` bytes, packed
    /// as by [`bits::pack`]; bytes after the last row are ignored. `group` is the number of columns of a group; the last group of a row has
    /// the remaining columns. `table(row, group)` returns the look-up table of a group, the integers that its codes 0 to 15 select, with
    /// both indices counted from 0, and `row_scales` has one scale a row: a weight is `row_scales[row] * table(row, group)[code]`. `isa` is
    /// used for the repacking alone; the result serves every level.
    ///
    /// Fails with `Fault::Length` if `packed` is too short or `row_scales` does not have `rows` elements, with `Fault::Range` if there are
    /// more than 131 072 columns, `group` is 0 or an entry of a table is -128 (even one that no code selects), and with `Fault::Overflow`
    /// if the size of `packed` does not fit in `usize`.
    pub fn new(
        isa: Isa,
        packed: &[u8],
        [rows, cols]: [usize; 2],
        group: usize,
        table: impl Fn(usize, usize) -> [i8; 16],
        row_scales: &[f32],
    ) -> Result<Self, Fault> {
        fault::at_most("columns of weights with tables", MAX_COLS, cols)?;
        let width = bits::packed_len(cols, 4);
        fault::at_least("packed codes", fault::product("packed codes", rows, width)?, packed.len())?;
        fault::equal("scales of rows", rows, row_scales.len())?;
        if group == 0 {
            return Err(Fault::Range { what: "columns of a group", limit: 1, found: 0 });
        }
        let padding = Padding { cols, group: group.min(cols.max(1)), block: COLS };
        let (quartets, groups, blocks) = (rows.div_ceil(ROWS), padding.groups(), padding.width() / COLS);
        let mut lines = vec![Line([0; 64]); quartets * blocks];
        let mut tables = vec![Line([128; 64]); quartets * groups];
        let mut codes = vec![0u8; cols];
        let mut lowest = 0;
        for (r, packed) in packed.chunks_exact(width.max(1)).take(rows).enumerate() {
            bits::unpack(isa, packed, 4, 0, &mut codes);
            let (quartet, lane) = (r / ROWS, r % ROWS * 16);
            let mut block = quartet * blocks;
            for g in 0..groups {
                let bytes = &mut tables[quartet * groups + g].0[lane..lane + 16];
                let table = table(r, g);
                lowest = table.iter().fold(lowest, |low: i8, v| low.min(*v));
                bytes.iter_mut().zip(table).for_each(|(out, v)| *out = (v as u8) ^ 128);
                for codes in codes[g * padding.group..((g + 1) * padding.group).min(cols)].chunks(COLS) {
                    for (j, c) in codes.iter().enumerate() {
                        lines[block].0[lane + j % 16] |= c << (4 * (j / 16));
                    }
                    block += 1;
                }
            }
        }
        if lowest == i8::MIN {
            return Err(Fault::Range { what: "magnitude of a weight of a table", limit: 127, found: 128 });
        }
        Ok(Self { rows, padding, lines, tables, row_scales: row_scales.to_vec() })
    }

    /// Returns the number of rows of the weight matrix.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Returns the layout of columns that [`Activations`] must have for a product with this matrix: the number of columns, the size of the
    /// groups that they are cut into, and the size of the blocks to which each group is padded with zeros.
    #[must_use]
    pub fn padding(&self) -> Padding {
        self.padding
    }
    /// Returns the number of bytes of memory that the codes, tables and row scales take, including the padding of rows and columns.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.lines.len() + self.tables.len()) * 64 + self.row_scales.len() * 4
    }
    /// Returns the line of codes of four rows in a block.
    pub(crate) fn line(&self, quartet: usize, block: usize) -> &Line {
        &self.lines[quartet * (self.padding.width() / COLS) + block]
    }
    /// Returns the tables of four rows in a group.
    pub(crate) fn table(&self, quartet: usize, group: usize) -> &Line {
        &self.tables[quartet * self.padding.groups() + group]
    }
    /// Returns the blocks of each group.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut first = 0;
        (0..self.padding.groups()).map(move |g| {
            let blocks = first..first + self.padding.blocks(g);
            first = blocks.end;
            blocks
        })
    }
}

/// Computes `y[t, r] = Σ_k x[t, k] * w[r, k]`, or adds it to `y`, for activations `x` `[tokens, cols]`, weights `w` `[rows, cols]` and an
/// output `y` `[tokens, rows]`. A weight is the entry that its 4-bit code selects in the look-up table of its row and group of columns,
/// times the scale of its row. With `parallel` the threads of the current rayon pool share a product that is large enough, with the same
/// result.
///
/// Fails with `Fault::Length` if the layout of the columns of `x` is not [`TablePanels::padding`] of `w` or if `y` is too small, and with
/// `Fault::Overflow` if a size does not fit in `usize`; `y` is unchanged then. Without tokens or weight rows it succeeds and checks
/// nothing.
pub fn product(
    isa: Isa,
    x: &Activations,
    w: &TablePanels,
    write: Write,
    y: Out<'_>,
    parallel: bool,
) -> Result<(), Fault> {
    if x.tokens() == 0 || w.rows() == 0 {
        return Ok(());
    }
    w.padding.check(x.padding())?;
    run_tasks(vec![(&Product { isa, x, w }, write, y)], parallel)
}

/// The product `y = x Wᵀ` of integer activations `x`, `[tokens, cols]`, with a matrix `W`, `[rows, cols]`, of 4-bit codes
/// ([`TablePanels`]), to be computed by [`run_tasks`] together with other products. A weight is the entry that its code selects in the
/// look-up table of its row and group of columns, times the scale of its row. The task shares the activations and borrows the matrix; the
/// output is given to [`run_tasks`].
#[derive(Clone, Debug)]
pub struct Task<'w> {
    isa: Isa,
    x: Arc<Activations>,
    w: &'w TablePanels,
}

impl<'w> Task<'w> {
    /// Prepares the product `x wᵀ` of activations `[tokens, cols]` with weights `[rows, cols]`, at the instruction-set level `isa`;
    /// [`run_tasks`] computes it. A weight is the entry that its 4-bit code selects in the look-up table of its row and group of columns,
    /// times the scale of its row. Fails with `Fault::Length` if the layout of the columns of `x` is not [`TablePanels::padding`] of `w`.
    pub fn new(isa: Isa, x: Arc<Activations>, w: &'w TablePanels) -> Result<Self, Fault> {
        w.padding.check(x.padding())?;
        Ok(Self { isa, x, w })
    }

    fn product(&self) -> Product<'_> {
        Product { isa: self.isa, x: &self.x, w: self.w }
    }
}

impl GemmTask for Task<'_> {
    fn rows(&self) -> usize {
        self.product().rows()
    }
    fn tokens(&self) -> usize {
        self.product().tokens()
    }
    fn granularity(&self) -> usize {
        self.product().granularity()
    }
    fn granule_bytes(&self) -> usize {
        self.product().granule_bytes()
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        self.product().run(rows, write, tile);
    }
}

/// A product whose activations have the layout of its weights.
struct Product<'a> {
    isa: Isa,
    x: &'a Activations,
    w: &'a TablePanels,
}

impl GemmTask for Product<'_> {
    fn rows(&self) -> usize {
        self.w.rows()
    }
    fn tokens(&self) -> usize {
        self.x.tokens()
    }
    fn granularity(&self) -> usize {
        LANES
    }
    fn granule_bytes(&self) -> usize {
        LANES / ROWS * (self.w.padding.width() / COLS) * 64
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        let Self { isa, x, w } = *self;
        let (tokens, planes) = (x.tokens(), x.planes());
        let cells = tile.cells(tokens, &rows);
        assert!(rows.start.is_multiple_of(LANES) && rows.end <= w.rows(), "rows {rows:?} of {}", w.rows());
        for panel in rows.start / LANES..rows.end.div_ceil(LANES) {
            let mut token = 0;
            while token < tokens {
                // As many planes at once as there are registers for their sums.
                let (step, values) = match (tokens - token) * planes {
                    12.. if isa.multiplies_quads() => (12, values::<12>(isa, x, w, panel, token)),
                    3.. => (3, values::<3>(isa, x, w, panel, token)),
                    _ => (1, values::<1>(isa, x, w, panel, token)),
                };
                for (t, values) in values.iter().enumerate().take(step / planes) {
                    // SAFETY: the tile has the cells of this panel up to `cells.end` for itself.
                    unsafe { cells.put(token + t, panel * LANES, values, write) };
                }
                token += step / planes;
            }
        }
    }
}

/// Returns the products of 16 rows with as many tokens as have `V` planes together.
fn values<const V: usize>(
    isa: Isa,
    x: &Activations,
    w: &TablePanels,
    panel: usize,
    token: usize,
) -> [[f32; LANES]; 12] {
    let planes = x.planes();
    let codes: [&[i8]; V] = std::array::from_fn(|v| x.row(token + v / planes, v % planes));
    let totals: [i32; V] = std::array::from_fn(|v| x.total(token + v / planes, v % planes));
    let mut values = [[0f32; LANES]; 12];
    let quartets = panel * (LANES / ROWS)..w.rows.div_ceil(ROWS).min((panel + 1) * (LANES / ROWS));
    for (q, quartet) in quartets.enumerate() {
        let sums = sums(isa, w, quartet, codes, totals);
        for (t, sums) in sums.chunks(planes).enumerate() {
            for (lane, scale) in w.row_scales[quartet * ROWS..].iter().take(ROWS).enumerate() {
                let sum = sums.iter().rev().fold(0f32, |sum, s| sum.mul_add(256.0, s[lane] as f32));
                values[t][q * ROWS + lane] = scale * sum * x.scale(token + t);
            }
        }
    }
    values
}

/// Returns the integer sums of four rows with each plane; `totals` are the sums of the planes' codes.
fn sums<const V: usize>(
    isa: Isa,
    w: &TablePanels,
    quartet: usize,
    x: [&[i8]; V],
    totals: [i32; V],
) -> [[i32; ROWS]; V] {
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_avx512_vnni() {
            // SAFETY: `isa` proves the instructions; planes have the width of the padding, which the product checked.
            let sums = unsafe { crate::arch::tables::vnni(w, quartet, x) };
            return std::array::from_fn(|v| sums[v].map(|s| s.wrapping_sub(totals[v].wrapping_mul(128))));
        }
        if isa.has_avx2() {
            // SAFETY: as above.
            return unsafe { crate::arch::tables::avx2(w, quartet, x) };
        }
    }
    let _ = (isa, totals);
    sums_scalar(w, quartet, x)
}

fn sums_scalar<const V: usize>(w: &TablePanels, quartet: usize, x: [&[i8]; V]) -> [[i32; ROWS]; V] {
    let mut sums = [[0i32; ROWS]; V];
    for (group, blocks) in w.groups().enumerate() {
        let table = &w.table(quartet, group).0;
        for block in blocks {
            let line = &w.line(quartet, block).0;
            for (i, byte) in line.iter().enumerate() {
                let row = i / 16;
                for (half, code) in [byte & 15, byte >> 4].into_iter().enumerate() {
                    let weight = i32::from((table[row * 16 + usize::from(code)] ^ 128) as i8);
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[row] += weight * i32::from(x[block * COLS + half * 16 + i % 16]);
                    }
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides the largest sizes, for Miri.
    const PART: usize = if cfg!(miri) { 8 } else { 1 };

    #[test]
    fn tables_are_those_of_the_paper() {
        let at = |code: usize, scale: f32| rounded_table(f16::from_f32(scale))[code + 8];
        // 18.14 is 18.140625 in f16; halves go to the even neighbour.
        assert_eq!((at(7, 18.14), at(3, 2.5)), (127, 8));
        assert_eq!(rounded_table(f16::from_f32(2.5))[5], -8);
        assert_eq!(rounded_table(f16::from_f32(100.0))[0], -127);
        // The trick with the spacing of f16 in 1024..2048, for every code and many scales.
        for bits in (0..0x4d00u16).step_by(if cfg!(miri) { 509 } else { 1 }) {
            let s = f16::from_bits(bits);
            for (n, v) in rounded_table(s).into_iter().enumerate() {
                let sum = (n as f64 - 8.0) * s.to_f64();
                if sum.abs() <= 127.0 {
                    let byte = (f16::from_f64(1152.0 + sum).to_bits() & 255) as u8;
                    assert_eq!((byte ^ 128) as i8, v, "code {n}, scale {s}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_level_gives_the_definition(
            rows in 1..=60 / PART, cols in 1..=300 / PART, group in 1..=300 / PART, tokens in 1..16 / PART + 1, exact: bool, salt: u64, extreme in 0u8..3
        ) {
            let mix = |i: usize| (i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let width = bits::packed_len(cols, 4);
            let packed: Vec<u8> = (0..rows * width).map(|i| mix(i) as u8).collect();
            let table = |r: usize, g: usize| match extreme {
                0 => rounded_table(f16::from_f32(0.1 + (mix(r * 31 + g) % 170) as f32 / 10.0)),
                1 => [127; 16],
                _ => [-127; 16],
            };
            let scales: Vec<f32> = (0..rows).map(|r| 0.01 + r as f32 / 64.0).collect();
            let w = TablePanels::new(Isa::detect(), &packed, [rows, cols], group, table, &scales).unwrap();
            let x = if exact {
                let values: Vec<f32> = (0..tokens * cols).map(|i| mix(i + 9) as f32 / 1e6 - 8.0).collect();
                Activations::exact(Isa::SCALAR, &values, tokens, w.padding()).unwrap()
            } else {
                let code = |i: usize| if extreme == 0 { mix(i + 9) as i8 } else { -128 };
                let codes: Vec<i8> = (0..tokens * cols).map(code).collect();
                Activations::from_codes(&codes, &vec![0.5; tokens], w.padding()).unwrap()
            };
            // The same weights as 8-bit codes with one scale a row.
            let mut bytes = vec![0u8; rows * cols];
            for (r, out) in bytes.chunks_exact_mut(cols).enumerate() {
                bits::unpack(Isa::detect(), &packed[r * width..], 4, 0, out);
                for (k, v) in out.iter_mut().enumerate() {
                    *v = (table(r, k / group)[usize::from(*v)] as u8) ^ 128;
                }
            }
            let grid = |_: usize, _: usize| (1, 128);
            let wide = super::super::Panels::dual(Isa::detect(), &bytes, 8, [rows, cols], group, grid, &scales).unwrap();
            let stride = rows + 2;
            let mut want = vec![0.5f32; tokens * stride];
            // Other padding: the same values again.
            let other = if exact {
                let values: Vec<f32> = (0..tokens * cols).map(|i| mix(i + 9) as f32 / 1e6 - 8.0).collect();
                Activations::exact(Isa::SCALAR, &values, tokens, wide.padding()).unwrap()
            } else {
                let code = |i: usize| if extreme == 0 { mix(i + 9) as i8 } else { -128 };
                let codes: Vec<i8> = (0..tokens * cols).map(code).collect();
                Activations::from_codes(&codes, &vec![0.5; tokens], wide.padding()).unwrap()
            };
            let out = Out { data: &mut want[..], stride };
            super::super::product(Isa::SCALAR, &other, &wide, Write::Add, out, false).unwrap();
            for isa in Isa::available() {
                let mut got = vec![0.5f32; tokens * stride];
                let out = Out { data: &mut got[..], stride };
                product(isa, &x, &w, Write::Add, out, true).unwrap();
                prop_assert_eq!(&got, &want, "{}", isa.name());
                let mut again = vec![0.5f32; tokens * stride];
                let task = Task::new(isa, x.clone().into(), &w).unwrap();
                let out = Out { data: &mut again[..], stride };
                run_tasks(vec![(&task, Write::Add, out)], true).unwrap();
                prop_assert_eq!(&again, &want, "{}", isa.name());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let none = |n: usize, rows: usize, cols: usize, scales: usize| {
            TablePanels::new(Isa::detect(), &vec![0; n], [rows, cols], 32, |_, _| [0; 16], &vec![1.0; scales]).err()
        };
        let length = |what, expected, found| Fault::Length { what, expected, found };
        assert_eq!(none(3, 2, 4, 2), Some(length("packed codes", 4, 3)));
        assert_eq!(none(4, 2, 4, 1), Some(length("scales of rows", 2, 1)));
        let wide = Fault::Range { what: "columns of weights with tables", limit: 1 << 17, found: (1 << 17) + 1 };
        assert_eq!((none(1 << 17, 1, (1 << 17) + 1, 1), none(4, 2, 4, 2)), (Some(wide), None));
        let w = TablePanels::new(Isa::detect(), &[0; 4], [2, 4], 32, |_, _| [0; 16], &[1.0; 2]).unwrap();
        let lowest = TablePanels::new(Isa::detect(), &[0; 4], [2, 4], 32, |r, _| [-127 - r as i8; 16], &[1.0; 2]);
        let range = Fault::Range { what: "magnitude of a weight of a table", limit: 127, found: 128 };
        assert_eq!(lowest.err(), Some(range));
        let x = Activations::from_codes(&[0; 8], &[1.0; 2], w.padding()).unwrap();
        let short = product(Isa::SCALAR, &x, &w, Write::Set, Out { data: &mut [0.0; 3], stride: 2 }, false);
        assert_eq!(short, Err(length("output", 4, 3)));
        let other = Activations::from_codes(&[0; 6], &[1.0; 2], Padding { cols: 3, ..w.padding() }).unwrap();
        let columns = Err(length("columns of the activations", 4, 3));
        assert_eq!(Task::new(Isa::SCALAR, other.into(), &w).map(|_| ()), columns);
    }
}
