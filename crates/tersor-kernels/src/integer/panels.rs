//! Weights in the order in which the micro-kernels read them.

use super::Padding;
use crate::bits;
use half::f16;

/// Rows of a panel.
pub const LANES: usize = 16;

/// Columns of a group are at most so many: the integer sum of 8-bit products over them stays below 2^31.
const LONGEST: usize = 1 << 15;

/// 64 bytes at a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

/// A matrix `[rows, cols]` of codes in panels of 16 rows.
///
/// A panel is cut into groups, a group into blocks of columns. A line of 64 bytes has, for each of the 16 rows, four neighbouring
/// columns: byte `4 r + j`. Codes of 8 bits are one such line for 4 columns. Of 4 bits, the line of columns 0..4 has its codes in the
/// low halves, that of columns 4..8 in the high halves; of 2 bits, four lines share one likewise. Codes of 3 bits are two lines of
/// their low 2 bits and one of their high bits, for 32 columns. Other widths are kept in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Panels {
    rows: usize,
    padding: Padding,
    bits: u32,
    lines: Vec<Line>,
    /// `[panel, group, 16]`.
    scales: Scales,
    /// `[panel, group, 16]`.
    zeros: Vec<u8>,
}

/// Scales in two bytes where those hold them exactly, as those of most files do: with groups of 32 the rest would be a quarter of all
/// that is read.
#[derive(Clone, Debug, PartialEq)]
enum Scales {
    Half(Vec<u16>),
    Single(Vec<f32>),
}

/// Scales of the rows of a panel in one group.
#[derive(Clone, Copy)]
pub(crate) enum Lane<'w> {
    /// Bits of f16.
    Half(&'w [u16; LANES]),
    /// f32.
    Single(&'w [f32; LANES]),
}

impl Lane<'_> {
    /// As f32.
    pub(crate) fn to_f32(self) -> [f32; LANES] {
        match self {
            Lane::Half(h) => h.map(|b| f16::from_bits(b).to_f32()),
            Lane::Single(s) => *s,
        }
    }
}

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
    /// Repacks codes, one row after the other, each packed as by [`bits::pack`] into `ceil(cols * bits / 8)` bytes. `fit(row, group)` gives scale
    /// and zero. None when the codes are too short, or `bits` is not 1 to 8.
    pub fn new(
        packed: &[u8],
        bits: u32,
        [rows, cols]: [usize; 2],
        group: usize,
        fit: impl Fn(usize, usize) -> (f32, u8),
    ) -> Option<Self> {
        let width = bits::packed_len(cols, bits);
        if !(1..=8).contains(&bits) || packed.len() < rows.checked_mul(width)? || group == 0 {
            return None;
        }
        let (kept, block, _) = form(bits);
        // A long group becomes several with the same scale.
        let whole = group.min(cols.max(1));
        let parts = whole.div_ceil(LONGEST);
        let short =
            if parts > 1 && !whole.is_multiple_of(LONGEST) && whole < cols { return None } else { whole.min(LONGEST) };
        let padding = Padding { cols, group: short, block };
        let (panels, groups) = (rows.div_ceil(LANES), padding.groups());
        let mut scales = vec![0f32; panels * groups * LANES];
        let mut new = Self {
            rows,
            padding,
            bits: kept,
            lines: Vec::with_capacity(panels * Self::lines_of(&padding, kept)),
            scales: Scales::Single(Vec::new()),
            zeros: vec![0; panels * groups * LANES],
        };
        let mut codes = vec![[0u8; LANES]; padding.width()];
        let mut row = vec![0u8; cols];
        for panel in 0..panels {
            codes.iter_mut().for_each(|c| *c = [0; LANES]);
            for lane in 0..LANES.min(rows - panel * LANES) {
                let r = panel * LANES + lane;
                bits::unpack(&packed[r * width..(r + 1) * width], bits, 0, &mut row);
                let mut at = 0;
                for g in 0..groups {
                    let cols = g * short..((g + 1) * short).min(cols);
                    for (out, code) in codes[at..].iter_mut().zip(&row[cols]) {
                        out[lane] = *code;
                    }
                    at += padding.blocks(g) * block;
                    let (scale, zero) = fit(r, g * short / group);
                    scales[(panel * groups + g) * LANES + lane] = scale;
                    new.zeros[(panel * groups + g) * LANES + lane] = zero;
                }
            }
            for codes in codes.chunks_exact(block) {
                new.push(codes);
            }
        }
        let halves: Vec<u16> = scales.iter().map(|s| f16::from_f32(*s).to_bits()).collect();
        let exact = scales.iter().zip(&halves).all(|(s, h)| f16::from_bits(*h).to_f32() == *s);
        new.scales = if exact { Scales::Half(halves) } else { Scales::Single(scales) };
        Some(new)
    }

    fn lines_of(padding: &Padding, bits: u32) -> usize {
        padding.width() / form(bits).1 * form(bits).2
    }

    /// A block of columns of a panel.
    fn push(&mut self, codes: &[[u8; LANES]]) {
        // `part(quad, shift)` has for each row the codes of four columns, shifted.
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
        match self.bits {
            8 => self.lines.push(Line(part(0, &|c| c))),
            4 => self.lines.push(join(&[part(0, &|c| c), part(1, &|c| c << 4)])),
            2 => self.lines.push(join(&[0, 1, 2, 3].map(|q| part(q, &|c| c << (2 * q))))),
            _ => {
                for half in 0..2 {
                    self.lines.push(join(&[0, 1, 2, 3].map(|q| part(half * 4 + q, &|c| (c & 3) << (2 * q)))));
                }
                self.lines.push(join(&[0, 1, 2, 3, 4, 5, 6, 7].map(|q| part(q, &|c| (c >> 2) << q))));
            }
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Layout that activations need for a product.
    pub fn padding(&self) -> Padding {
        self.padding
    }
    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let scale = if matches!(self.scales, Scales::Half(_)) { 2 } else { 4 };
        self.lines.len() * 64 + self.zeros.len() * (scale + 1)
    }
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
    pub(crate) fn panel_bytes(&self) -> usize {
        Self::lines_of(&self.padding, self.bits) * 64
    }
    /// Lines of a panel.
    pub(crate) fn lines(&self, panel: usize) -> &[Line] {
        let n = Self::lines_of(&self.padding, self.bits);
        &self.lines[panel * n..(panel + 1) * n]
    }
    /// Scales and zeros of a panel's group.
    pub(crate) fn grid(&self, panel: usize, group: usize) -> (Lane<'_>, &[u8; LANES]) {
        let at = panel * self.padding.groups() + group;
        let scales = match &self.scales {
            Scales::Half(s) => Lane::Half(&s.as_chunks().0[at]),
            Scales::Single(s) => Lane::Single(&s.as_chunks().0[at]),
        };
        (scales, &self.zeros.as_chunks().0[at])
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

    /// The codes of one row.
    pub fn row_codes(&self, row: usize, out: &mut [u8]) {
        let (panel, lane) = (row / LANES, row % LANES);
        if row >= self.rows {
            return;
        }
        let lines = self.lines(panel);
        let (quads, mut block, mut at) = (self.padding.block / 4, 0, 0);
        for g in 0..self.padding.groups() {
            let end = ((g + 1) * self.padding.group).min(self.padding.cols);
            for _ in 0..self.padding.blocks(g) {
                for q in 0..quads {
                    let codes = Self::quad(lines, self.bits, block, q);
                    for code in &codes[lane * 4..lane * 4 + 4] {
                        if at < end && at < out.len() {
                            out[at] = *code;
                        }
                        at += 1;
                    }
                }
                block += 1;
            }
            at = end;
        }
    }
}
