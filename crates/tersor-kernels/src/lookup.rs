//! Products by look-up: a table for each block of a token, a code for each row and block, and sums of what the codes find.
//!
//! `y[t, r] = scale[t] * Σ_b table[t, b][code[r, b]]`, codes of at most 4 bits, tables of 16-bit integers: sums are exact. The shuffle
//! instruction is the look-up, 32 at once. What a table holds is the caller's: partial sums over the bits of four columns (weights of few
//! bits, [`Tables::of_bits`]), products with the entries of a codebook ([`Tables::of_codebook`]), or scores of a query with them.

use crate::dense::{Out, Write};
use crate::integer::{Cells, Line};
use crate::{Isa, par};

/// Rows of a line.
pub(crate) const ROWS: usize = 64;

/// Blocks over which sums of 16-bit numbers stay below 2^31.
const LONGEST: usize = 1 << 16;

/// Blocks of a byte's sums in 16 bits: `255 * 256 < 2^16`.
pub(crate) const RUN: usize = 256;

/// Codes `[rows, blocks]` of 4 bits. A line of 64 bytes has a byte for each of 64 rows: the code of an even block in the low half, of the
/// odd one after it in the high half.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    rows: usize,
    blocks: usize,
    /// `[64 rows, two blocks]`.
    lines: Vec<Line>,
}

impl Codes {
    /// Packs codes, row by row. None when their number is not `rows * blocks`, one is above 15, or there are more than 65 536 blocks.
    pub fn new(codes: &[u8], [rows, blocks]: [usize; 2]) -> Option<Self> {
        if rows.checked_mul(blocks) != Some(codes.len()) || blocks > LONGEST || codes.iter().any(|c| *c > 15) {
            return None;
        }
        let each = blocks.div_ceil(2);
        let mut lines = vec![Line([0; 64]); rows.div_ceil(ROWS) * each];
        for (r, row) in codes.chunks_exact(blocks.max(1)).enumerate() {
            for (b, code) in row.iter().enumerate() {
                lines[r / ROWS * each + b / 2].0[r % ROWS] |= code << (4 * (b % 2));
            }
        }
        Some(Self { rows, blocks, lines })
    }

    /// Weights of few bits, `[rows, cols]`, as blocks of one bit of four columns: bit by bit, and for each all columns. None when the number
    /// of codes is wrong, `bits` is not 1 to 4, or one has more.
    pub fn of_bits(codes: &[u8], [rows, cols]: [usize; 2], bits: u32) -> Option<Self> {
        if rows.checked_mul(cols) != Some(codes.len())
            || !(1..=4).contains(&bits)
            || codes.iter().any(|c| c >> bits != 0)
        {
            return None;
        }
        let mut blocks = Vec::with_capacity(rows * bits as usize * cols.div_ceil(4));
        for row in codes.chunks_exact(cols.max(1)) {
            for bit in 0..bits {
                let joined = |four: &[u8]| four.iter().enumerate().map(|(j, c)| (c >> bit & 1) << j).sum::<u8>();
                blocks.extend(row.chunks(4).map(joined));
            }
        }
        Self::new(&blocks, [rows, bits as usize * cols.div_ceil(4)])
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Codes of a row.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.lines.len() * 64
    }
    /// Lines of 64 rows.
    pub(crate) fn lines(&self, tile: usize) -> &[Line] {
        let each = self.blocks.div_ceil(2);
        &self.lines[tile * each..(tile + 1) * each]
    }
}

/// Tables of tokens: `[tokens, blocks]` of 16 numbers, and a scale a token.
#[derive(Clone, Debug)]
pub struct Tables {
    tokens: usize,
    blocks: usize,
    /// `[token, two blocks]`; of each block the low bytes of its 16 numbers, then the high bytes offset by 128.
    bytes: Vec<[[[u8; 16]; 2]; 2]>,
    scales: Vec<f32>,
}

impl Tables {
    /// Integers `[tokens, blocks]`, a scale a token. None when a number of them is wrong.
    pub fn new(tables: &[[i16; 16]], scales: &[f32], blocks: usize) -> Option<Self> {
        let tokens = scales.len();
        if tokens.checked_mul(blocks) != Some(tables.len()) || blocks > LONGEST {
            return None;
        }
        let split = |t: [i16; 16]| [t.map(|v| v as u8), t.map(|v| (v >> 8) as u8 ^ 128)];
        let mut bytes = Vec::with_capacity(tokens * blocks.div_ceil(2));
        for tables in tables.chunks_exact(blocks.max(1)) {
            bytes.extend(tables.chunks(2).map(|p| [split(p[0]), split(p.get(1).copied().unwrap_or([0; 16]))]));
        }
        Some(Self { tokens, blocks, bytes, scales: scales.to_vec() })
    }

    /// Floats `[tokens, blocks]`, rounded to 1/32767 of the token's largest magnitude. None when their number is wrong. Values must be finite.
    pub fn from_values(values: &[[f32; 16]], tokens: usize, blocks: usize) -> Option<Self> {
        if tokens.checked_mul(blocks) != Some(values.len()) {
            return None;
        }
        let mut scales = Vec::with_capacity(tokens);
        let mut tables = Vec::with_capacity(values.len());
        for values in values.chunks(blocks.max(1)) {
            let most = values.as_flattened().iter().fold(0f32, |m, v| m.max(v.abs())) / 32767.0;
            let scale = if most >= f32::MIN_POSITIVE { most } else { 1.0 };
            tables.extend(values.iter().map(|t| t.map(|v| (v / scale).round_ties_even() as i16)));
            scales.push(scale);
        }
        scales.resize(tokens, 1.0);
        Self::new(&tables, &scales, blocks)
    }

    /// For [`Codes::of_bits`]: activations `[tokens, cols]` in 8 bits with a scale a token. The product is exact. None when a number is wrong.
    pub fn of_bits(x: &[i8], scales: &[f32], cols: usize, bits: u32) -> Option<Self> {
        if scales.len().checked_mul(cols) != Some(x.len()) || !(1..=4).contains(&bits) {
            return None;
        }
        let mut tables = Vec::with_capacity(scales.len() * bits as usize * cols.div_ceil(4));
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
        Self::new(&tables, scales, bits as usize * cols.div_ceil(4))
    }

    /// For codes of single columns: the products of activations `[tokens, cols]` with up to 16 values that codes stand for. None when a number
    /// is wrong. Values must be finite.
    pub fn of_codebook(x: &[f32], tokens: usize, codebook: &[f32]) -> Option<Self> {
        if codebook.len() > 16 || !x.len().is_multiple_of(tokens.max(1)) {
            return None;
        }
        let entry = |x: f32, n: usize| codebook.get(n).map_or(0.0, |c| c * x);
        let values: Vec<[f32; 16]> = x.iter().map(|x| std::array::from_fn(|n| entry(*x, n))).collect();
        Self::from_values(&values, tokens, x.len() / tokens.max(1))
    }

    /// Tables of a token.
    pub(crate) fn of_token(&self, token: usize) -> &[[[[u8; 16]; 2]; 2]] {
        let each = self.blocks.div_ceil(2);
        &self.bytes[token * each..(token + 1) * each]
    }
}

/// `y[t, r] (+)= scale[t] * Σ_b table[t, b][code[r, b]]`. Returns false, with `y` unchanged, when the shapes do not fit.
pub fn product(isa: Isa, tables: &Tables, codes: &Codes, write: Write, y: Out<'_>, parallel: bool) -> bool {
    let (tokens, rows) = (tables.tokens, codes.rows);
    if tokens == 0 || rows == 0 {
        return true;
    }
    let last = (tokens - 1).checked_mul(y.stride).and_then(|v| v.checked_add(rows));
    if tables.blocks != codes.blocks || y.stride < rows || last.is_none_or(|l| l > y.data.len()) {
        return false;
    }
    let cells = Cells { data: y.data.as_mut_ptr(), stride: y.stride };
    let unit = |tile: usize, (): &mut ()| {
        let cells = cells.get();
        for token in 0..tokens {
            let sums = sums(isa, tables.of_token(token), codes.lines(tile), codes.blocks);
            let scale = tables.scales[token];
            for (i, sums) in sums.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: rows of this tile are this unit's alone, and `last` was checked.
                unsafe { cells.put(token, tile * ROWS + i * 16, rows, &sums.map(|s| s as f32 * scale), write) };
            }
        }
    };
    par::map(rows.div_ceil(ROWS), parallel && rows * codes.blocks * tokens >= 1 << 18, || (), unit);
    true
}

/// Sums of 64 rows.
fn sums(isa: Isa, tables: &[[[[u8; 16]; 2]; 2]], lines: &[Line], blocks: usize) -> [i32; ROWS] {
    debug_assert_eq!(tables.len(), lines.len());
    // High bytes are offset by 128; of an odd number of blocks the last line has a second one, of code 0 in a table of zeros.
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

    fn run(isa: Isa, tables: &Tables, codes: &Codes) -> Vec<f32> {
        let stride = codes.rows() + 1;
        let mut y = vec![0.25f32; tables.tokens * stride];
        assert!(product(isa, tables, codes, Write::Add, Out { data: &mut y, stride }, true));
        assert!(y.chunks(stride).all(|row| row[codes.rows()] == 0.25));
        y.chunks(stride).flat_map(|row| row[..codes.rows()].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn every_level_gives_the_definition(
            rows in 1usize..=300, blocks in 1usize..=300, tokens in 1usize..3, extreme in 0u8..3, salt: u64
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
            rows in 1usize..100, cols in 1usize..=300, bits in 1u32..=4, salt: u64
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
            let got = run(Isa::detect(), &Tables::of_codebook(&x, 1, &book).unwrap(), &Codes::new(&codes, [rows, cols]).unwrap());
            let most = x.iter().flat_map(|x| book.iter().map(move |b| (b * x).abs())).fold(0f32, f32::max);
            for (r, got) in got.iter().enumerate() {
                let want: f64 = (0..cols).map(|k| f64::from(book[usize::from(codes[r * cols + k])]) * f64::from(x[k])).sum();
                let tolerance = f64::from(most) / 65534.0 * cols as f64 + 1e-5;
                prop_assert!((f64::from(*got) - 0.25 - want).abs() <= tolerance, "{} for {}", got, want);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Codes::new(&[0; 5], [2, 3]).is_none() && Codes::new(&[16], [1, 1]).is_none());
        assert!(Codes::of_bits(&[2], [1, 1], 1).is_none() && Codes::of_bits(&[2], [1, 1], 5).is_none());
        assert!(
            Tables::new(&[[0; 16]; 3], &[1.0; 2], 2).is_none()
                && Tables::of_codebook(&[0.0; 4], 1, &[0.0; 17]).is_none()
        );
        assert!(
            Tables::of_bits(&[0; 3], &[1.0; 2], 2, 1).is_none() && Tables::from_values(&[[0.0; 16]; 3], 2, 2).is_none()
        );
        let (tables, codes) = (Tables::new(&[[0; 16]; 2], &[1.0], 2).unwrap(), Codes::new(&[0; 6], [3, 2]).unwrap());
        let mut y = [0.0; 3];
        assert!(!product(Isa::SCALAR, &tables, &codes, Write::Set, Out { data: &mut y[..2], stride: 3 }, false));
        let other = Codes::new(&[0; 3], [3, 1]).unwrap();
        assert!(!product(Isa::SCALAR, &tables, &other, Write::Set, Out { data: &mut y, stride: 3 }, false));
    }
}
