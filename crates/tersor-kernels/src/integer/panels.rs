//! Weights in the order in which the micro-kernels read them.

use super::{Padding, TokenLayout};
use crate::convert::{f16_bits, f16_value};
use crate::{Fault, Isa, bits, fault};

/// Rows of a panel.
pub const LANES: usize = 16;

/// Columns of a group are at most so many: the integer sum of 8-bit products over them stays below 2^31.
const MAX_GROUP: usize = 1 << 15;

/// 64 bytes at a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

/// A matrix `[rows, cols]` of codes in panels of 16 rows.
///
/// A panel is cut into groups, a group into blocks of columns. A line of 64 bytes has, for each of the 16 rows, four
/// neighbouring columns: byte `4 r + j`. Codes of 8 bits are one such line for 4 columns. Of 4 bits, the line of
/// columns 0..4 has its codes in the low halves, that of columns 4..8 in the high halves; of 2 bits, four lines share
/// one likewise. Codes of 3 bits are two lines of their low 2 bits and one of their high bits, for 32 columns. Other
/// widths are kept in 8 bits.
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
    /// `[panel, group, 16]`, or one array where all are the same.
    zeros: Vec<[u8; LANES]>,
    /// The zero of all groups, if they have the same.
    same_zero: Option<u8>,
}

/// Scales in two bytes where those hold them exactly, as those of most files do: with groups of 32 the rest would be a
/// quarter of all that is read.
#[derive(Clone, Debug, PartialEq)]
enum Scales {
    Half(Vec<[u16; LANES]>),
    Single(Vec<[f32; LANES]>),
    /// Integers, and `[panel, 16]` floats of the rows.
    Dual(Vec<[u8; LANES]>, Vec<[f32; LANES]>),
}

/// Scales of the rows of a panel, group by group.
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
    /// Of one group, as f32.
    pub(crate) fn to_f32(self, group: usize) -> [f32; LANES] {
        match self {
            PanelScales::Half(h) => h[group].map(f16_value),
            PanelScales::Single(s) => s[group],
            PanelScales::Whole(s) => s[group].map(f32::from),
        }
    }
}

/// The largest magnitude of an integer weight `scale * (code - zero)`, and the number of columns over which sums of its
/// products with 8-bit codes stay below 2^31.
const DUAL_MAX_WEIGHT: u32 = 127;
const DUAL_MAX_COLS: usize = 1 << 17;

/// Bits in which codes of a width are kept, columns of a block, lines of a block.
fn form(bits: u32) -> (u32, usize, usize) {
    match bits {
        0..=2 => (2, 16, 1),
        3 => (3, 32, 3),
        4 => (4, 8, 1),
        _ => (8, 4, 1),
    }
}

impl Panels {
    /// Repacks codes, one row after the other, each packed as by [`bits::pack`] into `ceil(cols * bits / 8)` bytes.
    /// `fit(row, group)` gives scale and zero: a weight is `scale * (code - zero)`. Fails with `Fault::Length` when
    /// there are too few codes, with `Fault::Range` when `bits` is not 1 to 8, or a group has no columns or more than
    /// 32 768 that are neither all columns nor a multiple of that, and with `Fault::Overflow` when no slice has so many
    /// codes.
    pub fn new(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        fit: impl Fn(usize, usize) -> (f32, u8),
    ) -> Result<Self, Fault> {
        let (mut new, scales) = Self::repack(isa, packed, bits, [rows, cols], group, fit)?;
        let halves: Vec<[u16; LANES]> = scales.iter().map(|s| s.map(f16_bits)).collect();
        let same = |s: &[f32; LANES], h: &[u16; LANES]| s.iter().zip(h).all(|(s, h)| f16_value(*h) == *s);
        let exact = scales.iter().zip(&halves).all(|(s, h)| same(s, h));
        new.scales = if exact { Scales::Half(halves) } else { Scales::Single(scales) };
        Ok(new)
    }

    /// The same with two levels of scales: a weight is `row_scales[row] * (scale * (code - zero))`, where the scale of
    /// a group is an integer and the integer in brackets is at most 127 in magnitude. A row is then one sum in
    /// integers. Fails also with `Fault::Range` when such an integer is larger, or there are more than 131 072 columns,
    /// and with `Fault::Length` when there is not one scale for each row.
    pub fn dual(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        fit: impl Fn(usize, usize) -> (u8, u8),
        row_scales: &[f32],
    ) -> Result<Self, Fault> {
        fault::at_most("columns of weights with integer scales", DUAL_MAX_COLS, cols)?;
        fault::equal("scales of rows", rows, row_scales.len())?;
        let float = |row: usize, group: usize| (f32::from(fit(row, group).0), fit(row, group).1);
        let (mut new, scales) = Self::repack(isa, packed, bits, [rows, cols], group, float)?;
        let mut codes = vec![0u8; cols];
        let width = bits::packed_len(cols, bits);
        for (r, packed) in packed.chunks_exact(width.max(1)).take(rows).enumerate() {
            bits::unpack(isa, packed, bits, 0, &mut codes);
            for (k, code) in codes.iter().enumerate() {
                let (scale, zero) = fit(r, k / group);
                let weight = u32::from(scale) * u32::from(code.abs_diff(zero));
                fault::at_most("magnitude of an integer weight", DUAL_MAX_WEIGHT as usize, weight as usize)?;
            }
        }
        let mut rows = vec![[0f32; LANES]; new.panels()];
        rows.as_flattened_mut()[..row_scales.len()].copy_from_slice(row_scales);
        new.scales = Scales::Dual(scales.iter().map(|s| s.map(|s| s as u8)).collect(), rows);
        Ok(new)
    }

    /// Everything but the scales, and the scales `[panel, group, 16]`.
    fn repack(
        isa: Isa,
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        fit: impl Fn(usize, usize) -> (f32, u8),
    ) -> Result<(Self, Vec<[f32; LANES]>), Fault> {
        fault::bits(bits, 8)?;
        let width = bits::packed_len(cols, bits);
        fault::at_least("packed codes", fault::product("packed codes", rows, width)?, packed.len())?;
        if group == 0 {
            return Err(Fault::Range { what: "columns of a group", limit: 1, found: 0 });
        }
        let (kept, block, _) = form(bits);
        // A long group becomes several with the same scale.
        let whole = group.min(cols.max(1));
        if whole > MAX_GROUP && !whole.is_multiple_of(MAX_GROUP) && whole < cols {
            return Err(Fault::Range { what: "columns of a group", limit: MAX_GROUP, found: whole });
        }
        let short = whole.min(MAX_GROUP);
        let padding = Padding { cols, group: short, block };
        let (panels, groups) = (rows.div_ceil(LANES), padding.groups());
        let mut scales = vec![[0f32; LANES]; panels * groups];
        let mut zeros = vec![[0u8; LANES]; panels * groups];
        let mut lines = Vec::with_capacity(panels * Self::lines_of(&padding, kept));
        let mut codes = vec![[0u8; LANES]; padding.width()];
        let mut row = vec![0u8; cols];
        for panel in 0..panels {
            codes.iter_mut().for_each(|c| *c = [0; LANES]);
            for lane in 0..LANES {
                // What stands past the last row has its zeros and no more.
                let r = (panel * LANES + lane).min(rows - 1);
                let there = panel * LANES + lane < rows;
                bits::unpack(isa, &packed[r * width..(r + 1) * width], bits, 0, &mut row);
                let mut at = 0;
                for g in 0..groups {
                    let cols = g * short..((g + 1) * short).min(cols);
                    let (scale, zero) = fit(r, g * short / group);
                    zeros[panel * groups + g][lane] = zero;
                    if there {
                        codes[at..].iter_mut().zip(&row[cols]).for_each(|(out, code)| out[lane] = *code);
                        scales[panel * groups + g][lane] = scale;
                    }
                    at += padding.blocks(g) * block;
                }
            }
            for codes in codes.chunks_exact(block) {
                push(kept, codes, &mut lines);
            }
        }
        let first = zeros.first().map_or(0, |z| z[0]);
        let same_zero = zeros.iter().flatten().all(|z| *z == first).then_some(first);
        if same_zero.is_some() {
            zeros.clear();
        }
        let each = Self::lines_of(&padding, kept);
        let cuts = [groups, padding.blocks(0), padding.blocks(groups.saturating_sub(1))];
        let new = Self {
            rows,
            padding,
            groups,
            cuts,
            each,
            bits: kept,
            lines,
            scales: Scales::Single(Vec::new()),
            zeros,
            same_zero,
        };
        Ok((new, scales))
    }

    fn lines_of(padding: &Padding, bits: u32) -> usize {
        padding.width() / form(bits).1 * form(bits).2
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// How the columns of activations must be laid out for a product.
    #[must_use]
    pub fn padding(&self) -> Padding {
        self.padding
    }
    /// How products of this matrix read tokens: what packed [`Tokens`](super::Tokens) can be cached under.
    #[must_use]
    pub fn token_layout(&self, isa: Isa) -> TokenLayout {
        TokenLayout::new(isa, self)
    }
    /// Bytes in memory.
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
    /// Lines of a panel.
    pub(crate) fn lines(&self, panel: usize) -> &[Line] {
        &self.lines[panel * self.each..(panel + 1) * self.each]
    }
    /// Scales of a panel's groups.
    pub(crate) fn scales(&self, panel: usize) -> PanelScales<'_> {
        let span = panel * self.groups..(panel + 1) * self.groups;
        match &self.scales {
            Scales::Half(s) => PanelScales::Half(&s[span]),
            Scales::Single(s) => PanelScales::Single(&s[span]),
            Scales::Dual(s, _) => PanelScales::Whole(&s[span]),
        }
    }
    /// Floats of a panel's rows, where the groups have integers.
    pub(crate) fn row_scales(&self, panel: usize) -> Option<&[f32; LANES]> {
        match &self.scales {
            Scales::Dual(_, rows) => Some(&rows[panel]),
            _ => None,
        }
    }
    /// The zero of every group, if they have the same.
    pub(crate) fn same_zero(&self) -> Option<u8> {
        self.same_zero
    }
    /// Zeros of a panel's groups; none where all are the same.
    pub(crate) fn zeros(&self, panel: usize) -> &[[u8; LANES]] {
        self.zeros.get(panel * self.groups..(panel + 1) * self.groups).unwrap_or(&[])
    }
    /// Number of groups, and of blocks in each but the last, and in the last.
    pub(crate) fn cuts(&self) -> [usize; 3] {
        self.cuts
    }

    /// The four codes of each row in quad `quad` of block `block`, as bytes `4 r + j`.
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

    /// The codes of one row, as many as `out` takes.
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

/// Packs a block of columns of a panel.
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
