//! Products by table look-up: a table of 16 integers for each token and block, a code for each weight row and block, and sums of the table
//! entries that the codes select.
//!
//! `y[t, r] = scale[t] * Σ_b table[t, b][code[r, b]]`, with codes of at most 4 bits and tables of 16-bit integers: sums are exact. Byte
//! shuffles look up 32 or 64 entries at once. The contents of the tables are up to the caller: partial sums over one bit of four columns
//! (weights of few bits, [`Tables::of_bits`]), products with the entries of a codebook ([`Tables::of_codebook`]), or scores of a query
//! against them.
//!
//! ```
//! use tersor_kernels::{Isa, Out, Write, lookup::{self, Codes, Tables}};
//! // Two rows of two weights, each a code of the codebook [-1, 0, 0.5, 2].
//! let codes = Codes::new(&[0, 3, 2, 1], [2, 2]).unwrap();
//! let tables = Tables::of_codebook(Isa::detect(), &[1.0, 4.0], 1, &[-1.0, 0.0, 0.5, 2.0]).unwrap();
//! let mut y = [0f32; 2];
//! lookup::product(Isa::detect(), &tables, &codes, Write::Set, Out { data: &mut y, stride: 2 }, false).unwrap();
//! assert!((y[0] - 7.0).abs() < 1e-2 && (y[1] - 0.5).abs() < 1e-2);
//! ```

use std::ops::Range;

use crate::gemm_task::{GemmTask, Out, Tile, Write, run_tasks};
use crate::integer::Line;
use crate::{Fault, Isa, blockwise, fault};

/// Weight rows of a line of 64 bytes.
pub(crate) const ROWS: usize = 64;

/// Blocks over which sums of 16-bit numbers stay below 2^31.
const MAX_BLOCKS: usize = 1 << 16;

/// Blocks over which sums of bytes stay below 2^16: `255 * 256 < 2^16`.
pub(crate) const SPAN: usize = 256;

/// A weight matrix `[rows, blocks]` of packed 4-bit codes for [`product`]. A block is one position of a row; the code of a row there
/// selects one of the 16 entries of a token's [table](Tables) for the block. What blocks stand for is up to the constructor: columns
/// ([`Codes::new`] with [`Tables::of_codebook`]), or single bits of four neighbouring columns ([`Codes::of_bits`]).
///
/// In memory, a line of 64 bytes has a byte for each of 64 rows: the code of an even block in the low half, that of the next block in the
/// high half.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    rows: usize,
    blocks: usize,
    /// `[64 rows, two blocks]`.
    lines: Vec<Line>,
}

impl Codes {
    /// Packs codes `[rows, blocks]`, given row-major and one a byte; `blocks` is the number of codes of a row. Fails with `Fault::Length`
    /// if their number is not `rows * blocks`, with `Fault::Overflow` if that does not fit in `usize`, and with `Fault::Range` if a code is
    /// above 15 or there are more than 65 536 blocks.
    pub fn new(codes: &[u8], [rows, blocks]: [usize; 2]) -> Result<Self, Fault> {
        fault::matrix("codes", [rows, blocks], codes.len())?;
        fault::at_most("blocks of a row", MAX_BLOCKS, blocks)?;
        fault::at_most("code", 15, usize::from(codes.iter().copied().max().unwrap_or(0)))?;
        let each = blocks.div_ceil(2);
        let mut lines = vec![Line([0; 64]); rows.div_ceil(ROWS) * each];
        for (r, row) in codes.chunks_exact(blocks.max(1)).enumerate() {
            for (b, code) in row.iter().enumerate() {
                lines[r / ROWS * each + b / 2].0[r % ROWS] |= code << (4 * (b % 2));
            }
        }
        Ok(Self { rows, blocks, lines })
    }

    /// Packs weight codes `[rows, cols]` of `bits` bits (1 to 4), given row-major and one a byte, bit by bit. A row has
    /// `bits * ceil(cols / 4)` blocks. Block `p * ceil(cols / 4) + i` joins bit `p` (0 is the lowest) of the weight codes of columns `4 i`
    /// to `4 i + 3` to one 4-bit code, in which bit `j` comes from column `4 i + j`, or is 0 if there is no such column. The matching
    /// tables are those of [`Tables::of_bits`].
    ///
    /// Fails with `Fault::Length` if the number of weight codes is not `rows * cols`, with `Fault::Overflow` if a size does not fit in
    /// `usize`, and with `Fault::Range` if `bits` is not 1 to 4, if a weight code is above `2^bits - 1` or if a row has more than 65 536
    /// blocks.
    pub fn of_bits(codes: &[u8], [rows, cols]: [usize; 2], bits: u32) -> Result<Self, Fault> {
        fault::matrix("codes", [rows, cols], codes.len())?;
        fault::bits(bits, 4)?;
        fault::at_most("code", (1 << bits) - 1, usize::from(codes.iter().copied().max().unwrap_or(0)))?;
        let each = fault::product("blocks of a row", bits as usize, cols.div_ceil(4))?;
        let mut blocks = Vec::with_capacity(fault::product("blocks", rows, each)?);
        for row in codes.chunks_exact(cols.max(1)) {
            for bit in 0..bits {
                let joined = |four: &[u8]| four.iter().enumerate().map(|(j, c)| (c >> bit & 1) << j).sum::<u8>();
                blocks.extend(row.chunks(4).map(joined));
            }
        }
        Self::new(&blocks, [rows, each])
    }

    /// Returns the number of rows of the weight matrix.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Returns the number of blocks of a row. A block is a run of neighbouring columns that one code stands for, so that this is also the
    /// number of codes of a row.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }
    /// Returns the number of bytes of memory that the packed codes take, including the padding of rows to a multiple of 64.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lines.len() * 64
    }
    /// Returns the lines of the 64 rows from `64 * index` on.
    pub(crate) fn lines(&self, index: usize) -> &[Line] {
        let each = self.blocks.div_ceil(2);
        &self.lines[index * each..(index + 1) * each]
    }
}

/// The look-up tables of tokens for [`product`]: for each token and block (one position of a row of [`Codes`]) 16 integers of 16 bits, one
/// for each 4-bit code, and one f32 scale for each token.
#[derive(Clone, Debug)]
pub struct Tables {
    tokens: usize,
    blocks: usize,
    /// `[token, two blocks]`; of each block the low bytes of its 16 integers, then the high bytes offset by 128.
    bytes: Vec<[[[u8; 16]; 2]; 2]>,
    scales: Vec<f32>,
}

impl Tables {
    /// Takes tables of integers, `[tokens, blocks]` row-major, and one scale for each token; a block is one position of a row of [`Codes`],
    /// and the number of tokens is `scales.len()`. In a [`product`], the code of a weight row in a block selects one entry of the block's
    /// table, and the sum of the selected entries is multiplied by the scale of the token.
    ///
    /// Fails with `Fault::Length` if the number of tables is not `tokens * blocks`, with `Fault::Overflow` if that does not fit in `usize`,
    /// and with `Fault::Range` if there are more than 65 536 blocks.
    pub fn new(tables: &[[i16; 16]], scales: &[f32], blocks: usize) -> Result<Self, Fault> {
        let tokens = scales.len();
        fault::matrix("tables", [tokens, blocks], tables.len())?;
        fault::at_most("blocks of a token", MAX_BLOCKS, blocks)?;
        let split = |t: [i16; 16]| [t.map(|v| v as u8), t.map(|v| (v >> 8) as u8 ^ 128)];
        let mut bytes = Vec::with_capacity(tokens * blocks.div_ceil(2));
        for tables in tables.chunks_exact(blocks.max(1)) {
            bytes.extend(tables.chunks(2).map(|p| [split(p[0]), split(p.get(1).copied().unwrap_or([0; 16]))]));
        }
        Ok(Self { tokens, blocks, bytes, scales: scales.to_vec() })
    }

    /// Rounds tables of floats, `[tokens, blocks]` row-major, where a block is one position of a row of [`Codes`], to 16-bit integers with
    /// one scale for each token: the largest magnitude in the token's tables divided by 32767, or 1 if that is 0 or subnormal.
    ///
    /// Fails with `Fault::Length` if the number of tables is not `tokens * blocks`, with `Fault::NonFinite` if a value is NaN or infinite
    /// (its index counts 16 values a table), with `Fault::Range` if there are more than 65 536 blocks, and with `Fault::Overflow` if a size
    /// does not fit in `usize` or in memory.
    pub fn from_values(isa: Isa, values: &[[f32; 16]], tokens: usize, blocks: usize) -> Result<Self, Fault> {
        fault::matrix("tables", [tokens, blocks], values.len())?;
        fault::finite(values.as_flattened())?;
        // If there are no blocks, the length of `values` does not bound the number of tokens.
        let mut scales = Vec::new();
        scales.try_reserve_exact(tokens).map_err(|_| Fault::Overflow { what: "scales of tokens" })?;
        let mut tables = Vec::with_capacity(values.len());
        for values in values.chunks(blocks.max(1)) {
            let step = blockwise::abs_max(isa, values.as_flattened()) / 32767.0;
            let scale = if step >= f32::MIN_POSITIVE { step } else { 1.0 };
            tables.extend(values.iter().map(|t| t.map(|v| (v / scale).round_ties_even() as i16)));
            scales.push(scale);
        }
        scales.resize(tokens, 1.0);
        Self::new(&tables, &scales, blocks)
    }

    /// Builds the tables for [`Codes::of_bits`] with weight codes of `bits` bits (1 to 4) from activations that are quantized to 8 bits:
    /// `x` is `[tokens, cols]`, row-major, and `scales` has one scale for each token. A token has `bits * ceil(cols / 4)` tables. Table
    /// `p * ceil(cols / 4) + i` belongs to bit `p` (0 is the lowest) of the weight codes of columns `4 i` to `4 i + 3`. Its entry `n`, 0 to
    /// 15, is `2^p` times the sum of the activations `x[t, 4 i + j]` over those `j`, 0 to 3, for which bit `j` of `n` is set; columns past
    /// the last count as 0. The [`product`] is then `scales[t] * Σ_k x[t, k] * code[r, k]`, with an exact sum.
    ///
    /// Fails with `Fault::Length` if `x` does not have `scales.len() * cols` values, with `Fault::Range` if `bits` is not 1 to 4 or a token
    /// has more than 65 536 tables, and with `Fault::Overflow` if a size does not fit in `usize`.
    pub fn of_bits(x: &[i8], scales: &[f32], cols: usize, bits: u32) -> Result<Self, Fault> {
        fault::matrix("activations", [scales.len(), cols], x.len())?;
        fault::bits(bits, 4)?;
        let blocks = fault::product("blocks of a token", bits as usize, cols.div_ceil(4))?;
        let mut tables = Vec::with_capacity(fault::product("tables", scales.len(), blocks)?);
        for row in x.chunks_exact(cols.max(1)) {
            for bit in 0..bits {
                tables.extend(row.chunks(4).map(|four| {
                    let sum = |n: usize| {
                        four.iter().enumerate().map(|(j, x)| (n >> j & 1) as i16 * i16::from(*x)).sum::<i16>()
                    };
                    // At most 4 * 128 * 8.
                    std::array::from_fn(|n| sum(n) << bit)
                }));
            }
        }
        Self::new(&tables, scales, blocks)
    }

    /// Builds the tables for weights that are codes of a codebook, one code a column ([`Codes::new`]), from activations `x`,
    /// `[tokens, cols]` row-major; `cols` is `x.len() / tokens`. Entry `n` of a column's table is the activation times `codebook[n]`, or 0
    /// if the codebook has fewer values. Entries are rounded to 16-bit integers with one scale for each token, by [`Tables::from_values`].
    /// The [`product`] is then about `Σ_k x[t, k] * codebook[code[r, k]]`.
    ///
    /// Fails with `Fault::Range` if the codebook has more than 16 values or there are more than 65 536 columns. Fails with `Fault::Length`
    /// if `x.len()` is not a multiple of `tokens`, or if `tokens` is 0 and `x` is not empty. Fails with `Fault::Overflow` if `tokens`
    /// scales do not fit in memory. Fails with `Fault::NonFinite` if one of these is NaN or infinite:
    ///
    /// - an activation; the index is that in `x`;
    /// - a value of the codebook; the index is that in `codebook`;
    /// - the product of `x[i]` and `codebook[n]`; the index is `16 i + n`.
    pub fn of_codebook(isa: Isa, x: &[f32], tokens: usize, codebook: &[f32]) -> Result<Self, Fault> {
        fault::at_most("values of a codebook", 16, codebook.len())?;
        let cols = x.len() / tokens.max(1);
        fault::equal("activations", cols * tokens.max(1), x.len())?;
        fault::finite(x)?;
        fault::finite(codebook)?;
        let entry = |x: f32, n: usize| codebook.get(n).map_or(0.0, |c| c * x);
        let values: Vec<[f32; 16]> = x.iter().map(|x| std::array::from_fn(|n| entry(*x, n))).collect();
        Self::from_values(isa, &values, tokens, cols)
    }

    /// Returns the tables of a token.
    pub(crate) fn of_token(&self, token: usize) -> &[[[[u8; 16]; 2]; 2]] {
        let each = self.blocks.div_ceil(2);
        &self.bytes[token * each..(token + 1) * each]
    }
}

/// Computes `y[t, r] = scale[t] * Σ_b table[t, b][code[r, b]]` over all blocks `b`, or adds it to `y`. A block is one position of a row of
/// `codes`, which has a 4-bit code for each weight row and block. `tables` has 16 integers for each token and block, and a scale for each
/// token. `y` is `[tokens, rows]` with rows `y.stride` elements apart. With `parallel` the threads of the current rayon pool share a
/// product that is large enough, with the same result.
///
/// Fails with `Fault::Length` if `tables` and `codes` have different numbers of blocks or `y` is too small, and with `Fault::Overflow` if a
/// size does not fit in `usize`; `y` is unchanged then. Without tokens or weight rows it succeeds and checks nothing.
pub fn product(
    isa: Isa,
    tables: &Tables,
    codes: &Codes,
    write: Write,
    y: Out<'_>,
    parallel: bool,
) -> Result<(), Fault> {
    if tables.tokens == 0 || codes.rows == 0 {
        return Ok(());
    }
    fault::equal("blocks of the tables", codes.blocks, tables.blocks)?;
    run_tasks(vec![(&Product { isa, tables, codes }, write, y)], parallel)
}

/// A product of tables and codes with the same number of blocks.
struct Product<'a> {
    isa: Isa,
    tables: &'a Tables,
    codes: &'a Codes,
}

impl GemmTask for Product<'_> {
    fn rows(&self) -> usize {
        self.codes.rows
    }
    fn tokens(&self) -> usize {
        self.tables.tokens
    }
    fn granularity(&self) -> usize {
        ROWS
    }
    fn granule_bytes(&self) -> usize {
        self.codes.blocks.div_ceil(2) * 64
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        let Self { isa, tables, codes } = *self;
        let cells = tile.cells(tables.tokens, &rows);
        assert!(rows.start.is_multiple_of(ROWS) && rows.end <= codes.rows, "rows {rows:?} of {}", codes.rows);
        for lines in rows.start / ROWS..rows.end.div_ceil(ROWS) {
            for token in 0..tables.tokens {
                let sums = sums(isa, tables.of_token(token), codes.lines(lines), codes.blocks);
                let scale = tables.scales[token];
                // The last line may have fewer rows than it has room for: parts that begin past the last row are not written.
                let starts = (lines * ROWS..rows.end).step_by(16);
                for (first, sums) in starts.zip(sums.as_chunks::<16>().0) {
                    // SAFETY: the tile has exclusive access to the cells of this line up to `cells.end`, which is above
                    // `first`.
                    unsafe { cells.put(token, first, &sums.map(|s| s as f32 * scale), write) };
                }
            }
        }
    }
}

/// Returns the sums of the selected table entries for 64 rows.
fn sums(isa: Isa, tables: &[[[[u8; 16]; 2]; 2]], lines: &[Line], blocks: usize) -> [i32; ROWS] {
    debug_assert_eq!(tables.len(), lines.len());
    // High bytes are offset by 128; of an odd number of blocks the last line has a second one, of code 0 in a table of
    // zeros.
    let offset = (blocks.div_ceil(2) * 2 * 128 * 256) as i32;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves the instructions.
        let sums = unsafe { crate::arch::lookup::avx2(tables, lines) };
        return sums.map(|s| s.wrapping_sub(offset));
    }
    let _ = isa;
    let mut sums = [0i32; ROWS];
    for (tables, line) in tables.iter().zip(lines) {
        for (sum, byte) in sums.iter_mut().zip(line.0) {
            for (table, code) in tables.iter().zip([byte & 15, byte >> 4]) {
                let found = table.map(|half| i32::from(half[usize::from(code)]));
                *sum = sum.wrapping_add(found[0] + 256 * found[1]);
            }
        }
    }
    sums.map(|s| s.wrapping_sub(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides the largest sizes, for Miri.
    const PART: usize = if cfg!(miri) { 8 } else { 1 };

    fn run(isa: Isa, tables: &Tables, codes: &Codes) -> Vec<f32> {
        let stride = codes.rows() + 1;
        let mut y = vec![0.25f32; tables.tokens * stride];
        product(isa, tables, codes, Write::Add, Out { data: &mut y, stride }, true).unwrap();
        assert!(y.chunks(stride).all(|row| row[codes.rows()] == 0.25));
        y.chunks(stride).flat_map(|row| row[..codes.rows()].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn every_level_gives_the_definition(
            rows in 1..=300 / PART, blocks in 1..=300 / PART, tokens in 1usize..3, extreme in 0u8..3, salt: u64
        ) {
            let mix = |i: usize| (i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            // More blocks than bytes can be summed in 16 bits.
            let blocks = blocks * 3;
            let entry = |i: usize| match extreme { 0 => mix(i) as i16, 1 => i16::MAX, _ => i16::MIN };
            let tables: Vec<[i16; 16]> = (0..tokens * blocks).map(|i| std::array::from_fn(|n| entry(i * 16 + n))).collect();
            let codes: Vec<u8> = (0..rows * blocks).map(|i| mix(i + 5) as u8 & 15).collect();
            let packed = Codes::new(&codes, [rows, blocks]).unwrap();
            let scales: Vec<f32> = (0..tokens).map(|t| 0.5 + t as f32).collect();
            let made = Tables::new(&tables, &scales, blocks).unwrap();
            let want: Vec<f32> = (0..tokens * rows).map(|i| {
                let (t, r) = (i / rows, i % rows);
                let sum: i32 = (0..blocks).map(|b| i32::from(tables[t * blocks + b][usize::from(codes[r * blocks + b])])).sum();
                0.25 + sum as f32 * scales[t]
            }).collect();
            for isa in Isa::available() {
                prop_assert_eq!(&run(isa, &made, &packed), &want, "{}", isa.name());
            }
        }

        #[test]
        fn bits_and_codebooks_are_products(
            rows in 1..100 / PART, cols in 1..=300 / PART, bits in 1u32..=4, salt: u64
        ) {
            let mix = |i: usize| (i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let codes: Vec<u8> = (0..rows * cols).map(|i| mix(i) as u8 & ((1 << bits) - 1)).collect();
            let x: Vec<i8> = (0..cols).map(|i| mix(i + 3) as i8).collect();
            let tables = Tables::of_bits(&x, &[1.0], cols, bits).unwrap();
            let got = run(Isa::detect(), &tables, &Codes::of_bits(&codes, [rows, cols], bits).unwrap());
            for (r, got) in got.iter().enumerate() {
                let want: i32 = (0..cols).map(|k| i32::from(codes[r * cols + k]) * i32::from(x[k])).sum();
                prop_assert_eq!(*got, 0.25 + want as f32);
            }
            let book: Vec<f32> = (0..1 << bits).map(|n| (n as f32 - 3.5).powi(3) / 50.0).collect();
            let x: Vec<f32> = x.iter().map(|v| f32::from(*v) / 100.0).collect();
            let tables = Tables::of_codebook(Isa::detect(), &x, 1, &book).unwrap();
            let got = run(Isa::detect(), &tables, &Codes::new(&codes, [rows, cols]).unwrap());
            let max = x.iter().flat_map(|x| book.iter().map(move |b| (b * x).abs())).fold(0f32, f32::max);
            for (r, got) in got.iter().enumerate() {
                let want: f64 = (0..cols).map(|k| f64::from(book[usize::from(codes[r * cols + k])]) * f64::from(x[k])).sum();
                let tolerance = f64::from(max) / 65534.0 * cols as f64 + 1e-5;
                prop_assert!((f64::from(*got) - 0.25 - want).abs() <= tolerance, "{} for {}", got, want);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let length = |what, expected, found| Fault::Length { what, expected, found };
        let range = |what, limit, found| Fault::Range { what, limit, found };
        assert_eq!(Codes::new(&[0; 5], [2, 3]), Err(length("codes", 6, 5)));
        assert_eq!(Codes::new(&[16], [1, 1]), Err(range("code", 15, 16)));
        assert_eq!(Codes::new(&[0; 65_537], [1, 65_537]), Err(range("blocks of a row", 65_536, 65_537)));
        assert_eq!(Codes::of_bits(&[2], [1, 1], 1), Err(range("code", 1, 2)));
        assert_eq!(Codes::of_bits(&[2], [1, 1], 5), Err(range("bits of a code", 4, 5)));
        let isa = Isa::SCALAR;
        assert_eq!(Tables::new(&[[0; 16]; 3], &[1.0; 2], 2).unwrap_err(), length("tables", 4, 3));
        let book = Tables::of_codebook(isa, &[0.0; 4], 1, &[0.0; 17]);
        assert_eq!(book.unwrap_err(), range("values of a codebook", 16, 17));
        assert_eq!(Tables::of_bits(&[0; 3], &[1.0; 2], 2, 1).unwrap_err(), length("activations", 4, 3));
        assert_eq!(Tables::from_values(isa, &[[0.0; 16]; 3], 2, 2).unwrap_err(), length("tables", 4, 3));
        let (tables, codes) = (Tables::new(&[[0; 16]; 2], &[1.0], 2).unwrap(), Codes::new(&[0; 6], [3, 2]).unwrap());
        let mut y = [0.0; 3];
        let short = product(isa, &tables, &codes, Write::Set, Out { data: &mut y[..2], stride: 3 }, false);
        assert_eq!(short, Err(length("output", 3, 2)));
        let other = Codes::new(&[0; 3], [3, 1]).unwrap();
        let blocks = product(isa, &tables, &other, Write::Set, Out { data: &mut y, stride: 3 }, false);
        assert_eq!(blocks, Err(length("blocks of the tables", 1, 2)));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let mut values = [[1f32; 16]; 4];
            (values[1][3], values[2][0]) = (bad, bad);
            let refused = Tables::from_values(Isa::detect(), &values, 2, 2).unwrap_err();
            assert!(matches!(refused, Fault::NonFinite { index: 19, .. }));
            let refused = Tables::of_codebook(Isa::detect(), &[1.0, bad], 1, &[1.0]).unwrap_err();
            assert!(matches!(refused, Fault::NonFinite { index: 1, .. }));
        }
    }

    /// A line has room for 64 rows. Where the matrix ends inside of it, parts of 16 rows begin past the last row: with
    /// the output cut off there, they have no address inside of the slice. `Cells::put` asserts in debug builds that it
    /// is not asked for such a part.
    #[test]
    fn rows_past_the_last_one_have_no_address() {
        for rows in [1, 15, 16, 17, 47, 48, 65, 80, 81, 127] {
            let codes = Codes::new(&vec![1; rows * 2], [rows, 2]).unwrap();
            let tables = Tables::new(&[std::array::from_fn(|n| n as i16); 4], &[1.0, 2.0], 2).unwrap();
            for isa in Isa::available() {
                for parallel in [false, true] {
                    let mut y = vec![0f32; 2 * rows];
                    let out = Out { data: &mut y, stride: rows };
                    product(isa, &tables, &codes, Write::Set, out, parallel).unwrap();
                    assert!(y[..rows].iter().all(|v| *v == 2.0) && y[rows..].iter().all(|v| *v == 4.0));
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri ends when more memory is asked for than there is")]
    fn sizes_without_data_are_refused_or_served() {
        let many = Tables::from_values(Isa::SCALAR, &[], 1 << 50, 0);
        assert!(matches!(many, Err(Fault::Overflow { .. })));
        assert!(Tables::from_values(Isa::SCALAR, &[], 3, 0).is_ok());
        assert_eq!(Codes::of_bits(&[], [usize::MAX, 0], 4).map(|c| (c.rows(), c.blocks())), Ok((usize::MAX, 0)));
        assert!(matches!(Codes::of_bits(&[], [0, usize::MAX], 4), Err(Fault::Overflow { .. })));
        assert!(matches!(Tables::of_bits(&[], &[], usize::MAX, 4), Err(Fault::Overflow { .. })));
    }
}
