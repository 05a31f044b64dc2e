//! [`Panels`]: weights in the order in which the micro-kernels read them.

use super::{Padding, TokenLayout};
use crate::convert::{f16_bits, f16_value};
use crate::{Fault, Isa, bits, fault};

/// The number of weight rows of a panel (16), that is of rows whose codes are stored together because a kernel computes them together.
pub const LANES: usize = 16;

/// The largest number of columns of a group: the integer sum of 8-bit products over them stays below 2^31.
const MAX_GROUP: usize = 1 << 15;

/// 64 bytes at a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

/// A weight matrix `[rows, cols]` of integer codes of 1 to 8 bits with a scale and a zero point for each row and group of columns, the
/// right operand of [`integer::product`](super::product): a weight is `scale * (code - zero)`. Codes are stored in panels of 16 rows.
///
/// ```
/// use tersor_kernels::{Isa, integer::Panels};
/// // Two rows of four 8-bit codes, each row one group.
/// let w = Panels::new(Isa::detect(), &[1, 2, 3, 4, 5, 6, 7, 8], 8, [2, 4], 4, |row, _group| ([0.1, 0.2][row], 128)).unwrap();
/// let mut codes = [0u8; 4];
/// w.row_codes(1, &mut codes);
/// assert_eq!((w.rows(), codes), (2, [5, 6, 7, 8]));
/// ```
///
/// In memory, a panel is cut into groups, and a group into blocks of columns. A line of 64 bytes has, for each of the 16 rows, four
/// neighbouring columns: byte `4 r + j` is column `j` of row `r`. Codes of 8 bits take one such line for 4 columns. Of 4 bits, a line has
/// the codes of columns 0 to 3 in its low halves and those of columns 4 to 7 in its high halves; of 2 bits, the codes of 16 columns share a
/// line in the same way. Codes of 3 bits take two lines of their low 2 bits and one of their high bits for 32 columns. Codes of 1 bit are
/// stored in 2 bits, codes of 5 to 7 bits in 8.
#[derive(Clone, Debug, PartialEq)]
pub struct Panels {
    rows: usize,
    padding: Padding,
    groups: usize,
    /// See [`Panels::cuts`].
    cuts: [usize; 3],
    /// Lines of a panel.
    each: usize,
    bits: u32,
    lines: Vec<Line>,
    /// `[panel, group, 16]`.
    scales: Scales,
    /// `[panel, group, 16]`, or empty if all zero points are the same.
    zeros: Vec<[u8; LANES]>,
    /// The zero point of all rows and groups, if they have the same.
    same_zero: Option<u8>,
}

/// Scales of groups: in f16 if that holds them exactly, as it does those of most files. With groups of 32, f32 scales would be a quarter of
/// all bytes read.
#[derive(Clone, Debug, PartialEq)]
enum Scales {
    Half(Vec<[u16; LANES]>),
    Single(Vec<[f32; LANES]>),
    /// Integer scales of groups, and `[panel, 16]` f32 scales of rows.
    Dual(Vec<[u8; LANES]>, Vec<[f32; LANES]>),
}

/// The scales of a panel's rows, group by group.
#[derive(Clone, Copy)]
pub(crate) enum PanelScales<'w> {
    /// Bits of f16.
    Half(&'w [[u16; LANES]]),
    /// f32.
    Single(&'w [[f32; LANES]]),
    /// Integers.
    Whole(&'w [[u8; LANES]]),
}

impl PanelScales<'_> {
    /// Returns the scales of one group in f32.
    pub(crate) fn to_f32(self, group: usize) -> [f32; LANES] {
        match self {
            PanelScales::Half(h) => h[group].map(f16_value),
            PanelScales::Single(s) => s[group],
            PanelScales::Whole(s) => s[group].map(f32::from),
        }
    }
}

/// The largest magnitude of an integer weight `scale * (code - zero)`.
const DUAL_MAX_WEIGHT: u32 = 127;
/// The number of columns over which sums of products of such integer weights with 8-bit codes stay below 2^31.
const DUAL_MAX_COLS: usize = 1 << 17;

/// Returns the width in which codes of `bits` bits are stored, and the columns and lines of a block.
fn form(bits: u32) -> (u32, usize, usize) {
    match bits {
        0..=2 => (2, 16, 1),
        3 => (3, 32, 3),
        4 => (4, 8, 1),
        _ => (8, 4, 1),
    }
}

impl Panels {
    /// Repacks a matrix of codes of `bits` bits (1 to 8), `[rows, cols]`. Each row of `packed` begins at a whole byte and has
    /// `ceil(cols * bits / 8)` bytes, packed as by [`bits::pack`]; bytes after the last row are ignored. `group` is the number of columns
    /// of a group; the last group of a row has the remaining columns. `grid(row, group)` returns the scale and the zero point of a group,
    /// with both indices counted from 0: a weight is `scale * (code - zero)`. `isa` is used for the repacking alone; the result serves
    /// every level.
    ///
    /// Fails with `Fault::Length` if `packed` is too short, with `Fault::Range` if `bits` is not 1 to 8 or `group` is 0, and with
    /// `Fault::Overflow` if the size of `packed` does not fit in `usize`. A group of more than 32 768 columns is refused with
    /// `Fault::Range`, unless it is the whole row or a multiple of 32 768.
    pub fn new(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        grid: impl Fn(usize, usize) -> (f32, u8),
    ) -> Result<Self, Fault> {
        let (mut new, scales) = Self::repack(isa, packed, bits, [rows, cols], group, grid)?;
        let halves: Vec<[u16; LANES]> = scales.iter().map(|s| s.map(f16_bits)).collect();
        let same = |s: &[f32; LANES], h: &[u16; LANES]| s.iter().zip(h).all(|(s, h)| f16_value(*h) == *s);
        let exact = scales.iter().zip(&halves).all(|(s, h)| same(s, h));
        new.scales = if exact { Scales::Half(halves) } else { Scales::Single(scales) };
        Ok(new)
    }

    /// Repacks a matrix with two levels of scales (DGQ, arXiv 2310.04836): a weight is `row_scales[row] * (scale * (code - zero))`. The
    /// integer `scale * (code - zero)` must be at most 127 in magnitude for every weight, so that the product of a row is one sum of
    /// integers. `row_scales` has one f32 scale a row. `grid(row, group)` returns the scale of a group, an integer from 0 to 255, and its
    /// zero point, with both indices counted from 0. `group` is the number of columns of a group; the last group of a row has the remaining
    /// columns. The codes of `bits` bits (1 to 8) are `[rows, cols]`. Each row of `packed` begins at a whole byte and has
    /// `ceil(cols * bits / 8)` bytes, packed as by [`bits::pack`]; bytes after the last row are ignored. `isa` is used for the repacking
    /// alone; the result serves every level.
    ///
    /// Fails with `Fault::Length` if `packed` is too short or `row_scales` does not have `rows` elements, and with `Fault::Overflow` if the
    /// size of `packed` does not fit in `usize`. Fails with `Fault::Range`
    ///
    /// - if `bits` is not 1 to 8;
    /// - if there are more than 131 072 columns;
    /// - if `group` is 0;
    /// - if `group` is more than 32 768, less than `cols` and not a multiple of 32 768;
    /// - if `scale * (code - zero)` is larger than 127 in magnitude for a weight.
    pub fn dual(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        grid: impl Fn(usize, usize) -> (u8, u8),
        row_scales: &[f32],
    ) -> Result<Self, Fault> {
        fault::at_most("columns of weights with integer scales", DUAL_MAX_COLS, cols)?;
        fault::equal("scales of rows", rows, row_scales.len())?;
        let float = |row: usize, group: usize| (f32::from(grid(row, group).0), grid(row, group).1);
        let (mut new, scales) = Self::repack(isa, packed, bits, [rows, cols], group, float)?;
        let mut codes = vec![0u8; cols];
        let width = bits::packed_len(cols, bits);
        for (r, packed) in packed.chunks_exact(width.max(1)).take(rows).enumerate() {
            bits::unpack(isa, packed, bits, 0, &mut codes);
            for (k, code) in codes.iter().enumerate() {
                let (scale, zero) = grid(r, k / group);
                let weight = u32::from(scale) * u32::from(code.abs_diff(zero));
                fault::at_most("magnitude of an integer weight", DUAL_MAX_WEIGHT as usize, weight as usize)?;
            }
        }
        let mut rows = vec![[0f32; LANES]; new.panels()];
        rows.as_flattened_mut()[..row_scales.len()].copy_from_slice(row_scales);
        new.scales = Scales::Dual(scales.iter().map(|s| s.map(|s| s as u8)).collect(), rows);
        Ok(new)
    }

    /// Returns the panels without scales, and the scales `[panel, group, 16]`.
    fn repack(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        grid: impl Fn(usize, usize) -> (f32, u8),
    ) -> Result<(Self, Vec<[f32; LANES]>), Fault> {
        fault::bits(bits, 8)?;
        let width = bits::packed_len(cols, bits);
        fault::at_least("packed codes", fault::product("packed codes", rows, width)?, packed.len())?;
        if group == 0 {
            return Err(Fault::Range { what: "columns of a group", limit: 1, found: 0 });
        }
        let (stored, block, _) = form(bits);
        // A long group is stored as several groups with the same scale.
        let whole = group.min(cols.max(1));
        if whole > MAX_GROUP && !whole.is_multiple_of(MAX_GROUP) && whole < cols {
            return Err(Fault::Range { what: "columns of a group", limit: MAX_GROUP, found: whole });
        }
        let short = whole.min(MAX_GROUP);
        let padding = Padding { cols, group: short, block };
        let (panels, groups) = (rows.div_ceil(LANES), padding.groups());
        let mut scales = vec![[0f32; LANES]; panels * groups];
        let mut zeros = vec![[0u8; LANES]; panels * groups];
        let lines = fault::product("lines of panels", panels, Self::lines_of(&padding, stored))?;
        let mut lines = Vec::with_capacity(lines);
        // A matrix without rows or columns has no codes, however large its other size is.
        let (panels, buffer) = if rows == 0 || cols == 0 { (0, 0) } else { (panels, cols) };
        let mut codes = vec![[0u8; LANES]; if buffer == 0 { 0 } else { padding.width() }];
        let mut row = vec![0u8; buffer];
        for panel in 0..panels {
            codes.iter_mut().for_each(|c| *c = [0; LANES]);
            for lane in 0..LANES {
                // Lanes past the last row have that row's zero points, and codes and scales of 0.
                let r = (panel * LANES + lane).min(rows - 1);
                let exists = panel * LANES + lane < rows;
                bits::unpack(isa, &packed[r * width..(r + 1) * width], bits, 0, &mut row);
                let mut at = 0;
                for g in 0..groups {
                    let cols = g * short..((g + 1) * short).min(cols);
                    let (scale, zero) = grid(r, g * short / group);
                    zeros[panel * groups + g][lane] = zero;
                    if exists {
                        codes[at..].iter_mut().zip(&row[cols]).for_each(|(out, code)| out[lane] = *code);
                        scales[panel * groups + g][lane] = scale;
                    }
                    at += padding.blocks(g) * block;
                }
            }
            for codes in codes.chunks_exact(block) {
                push(stored, codes, &mut lines);
            }
        }
        let first = zeros.first().map_or(0, |z| z[0]);
        let same_zero = zeros.iter().flatten().all(|z| *z == first).then_some(first);
        if same_zero.is_some() {
            zeros.clear();
        }
        let each = Self::lines_of(&padding, stored);
        let cuts = [groups, padding.blocks(0), padding.blocks(groups.saturating_sub(1))];
        let new = Self {
            rows,
            padding,
            groups,
            cuts,
            each,
            bits: stored,
            lines,
            scales: Scales::Single(Vec::new()),
            zeros,
            same_zero,
        };
        Ok((new, scales))
    }

    /// Returns the number of lines of a panel.
    fn lines_of(padding: &Padding, bits: u32) -> usize {
        padding.width() / form(bits).1 * form(bits).2
    }

    /// Returns the number of rows of the weight matrix, without the rows of padding that fill up the last panel of 16 rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Returns the layout of columns that [`Activations`](super::Activations) must have for a product with this matrix: the number of
    /// columns, the size of the groups that they are cut into, and the size of the blocks to which each group is padded with zeros. The
    /// size of a group may be smaller than the one given to the constructor: it is at most 32 768 and at most the number of columns.
    #[must_use]
    pub fn padding(&self) -> Padding {
        self.padding
    }
    /// Returns the layout that activations must be packed in ([`Tokens::pack`](super::Tokens::pack)) for products of this matrix at the
    /// instruction-set level `isa`. Matrices with equal layouts can share packed activations.
    #[must_use]
    pub fn token_layout(&self, isa: Isa) -> TokenLayout {
        TokenLayout::new(isa, self)
    }
    /// Returns the number of bytes of memory that the codes, scales and zero points take, including the padding of rows and columns.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Half(s) => size_of_val(&s[..]),
            Scales::Single(s) => size_of_val(&s[..]),
            Scales::Dual(s, rows) => size_of_val(&s[..]) + size_of_val(&rows[..]),
        };
        self.lines.len() * 64 + size_of_val(&self.zeros[..]) + scales
    }
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
    pub(crate) fn panel_bytes(&self) -> usize {
        self.each * 64
    }
    /// Returns the lines of a panel.
    pub(crate) fn lines(&self, panel: usize) -> &[Line] {
        &self.lines[panel * self.each..(panel + 1) * self.each]
    }
    /// Returns the scales of a panel's groups.
    pub(crate) fn scales(&self, panel: usize) -> PanelScales<'_> {
        let span = panel * self.groups..(panel + 1) * self.groups;
        match &self.scales {
            Scales::Half(s) => PanelScales::Half(&s[span]),
            Scales::Single(s) => PanelScales::Single(&s[span]),
            Scales::Dual(s, _) => PanelScales::Whole(&s[span]),
        }
    }
    /// Returns the f32 scales of a panel's rows if its groups have integer scales.
    pub(crate) fn row_scales(&self, panel: usize) -> Option<&[f32; LANES]> {
        match &self.scales {
            Scales::Dual(_, rows) => Some(&rows[panel]),
            _ => None,
        }
    }
    /// Returns the zero point of all groups, if they have the same.
    pub(crate) fn same_zero(&self) -> Option<u8> {
        self.same_zero
    }
    /// Returns the zero points of a panel's groups; empty if all are the same.
    pub(crate) fn zeros(&self, panel: usize) -> &[[u8; LANES]] {
        self.zeros.get(panel * self.groups..(panel + 1) * self.groups).unwrap_or(&[])
    }
    /// Returns the number of groups, the blocks of each group but the last, and the blocks of the last.
    pub(crate) fn cuts(&self) -> [usize; 3] {
        self.cuts
    }

    /// Returns the codes of the four columns `quad` of block `block` for 16 rows, as bytes `4 r + j`.
    pub(crate) fn quad(lines: &[Line], bits: u32, block: usize, quad: usize) -> [u8; 64] {
        let line = |i: usize| lines[i].0;
        match bits {
            8 => line(block),
            4 => line(block).map(|b| b >> (4 * quad) & 15),
            2 => line(block).map(|b| b >> (2 * quad) & 3),
            _ => {
                let (low, high) = (line(block * 3 + quad / 4), line(block * 3 + 2));
                let mut out = [0u8; 64];
                for (i, o) in out.iter_mut().enumerate() {
                    *o = (low[i] >> (2 * (quad % 4)) & 3) | (high[i] >> quad & 1) << 2;
                }
                out
            }
        }
    }

    /// Unpacks codes of row `row`, counted from 0, in the order of the columns: writes them to `out`, one a byte, until `out` or the row
    /// ends. Later elements of `out` are unchanged, and so is all of `out` if there is no such row.
    pub fn row_codes(&self, row: usize, out: &mut [u8]) {
        let (panel, lane) = (row / LANES, row % LANES * 4);
        if row >= self.rows {
            return;
        }
        let (block, lines_of_block) = (self.padding.block, form(self.bits).2);
        let mut lines = self.lines(panel).chunks_exact(lines_of_block);
        let n = self.padding.cols.min(out.len());
        for out in out[..n].chunks_mut(self.padding.group) {
            for out in out.chunks_mut(block) {
                let Some(lines) = lines.next() else { return };
                let four = |i: usize| u32::from_le_bytes(std::array::from_fn(|j| lines[i].0[lane + j]));
                for (quad, out) in out.chunks_mut(4).enumerate() {
                    let codes = match self.bits {
                        8 => four(0),
                        4 => four(0) >> (4 * quad) & 0x0f0f_0f0f,
                        2 => four(0) >> (2 * quad) & 0x0303_0303,
                        _ => {
                            let low = four(quad / 4) >> (2 * (quad % 4)) & 0x0303_0303;
                            low | (four(2) >> quad & 0x0101_0101) << 2
                        }
                    };
                    out.copy_from_slice(&codes.to_le_bytes()[..out.len()]);
                }
            }
        }
    }
}

/// Packs the codes of one block of columns of a panel.
fn push(bits: u32, codes: &[[u8; LANES]], lines: &mut Vec<Line>) {
    // `part(quad, of)` has for each row the codes of four columns, shifted.
    let part = |quad: usize, of: &dyn Fn(u8) -> u8| {
        let mut line = [0u8; 64];
        for (i, byte) in line.iter_mut().enumerate() {
            *byte = of(codes[quad * 4 + i % 4][i / 4]);
        }
        line
    };
    let join = |parts: &[[u8; 64]]| {
        let mut line = [0u8; 64];
        parts.iter().for_each(|p| line.iter_mut().zip(p).for_each(|(l, p)| *l |= p));
        Line(line)
    };
    match bits {
        8 => lines.push(Line(part(0, &|c| c))),
        4 => lines.push(join(&[part(0, &|c| c), part(1, &|c| c << 4)])),
        2 => lines.push(join(&[0, 1, 2, 3].map(|q| part(q, &|c| c << (2 * q))))),
        _ => {
            for half in 0..2 {
                lines.push(join(&[0, 1, 2, 3].map(|q| part(half * 4 + q, &|c| (c & 3) << (2 * q)))));
            }
            lines.push(join(&[0, 1, 2, 3, 4, 5, 6, 7].map(|q| part(q, &|c| (c >> 2) << q))));
        }
    }
}
