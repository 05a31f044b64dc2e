//! Products of packed integer weights with integer activations, exact in 32 bits.
//!
//! A weight is `scale * (code - zero)` with a scale and a zero for each row and group of columns. Activations are one plane of 8-bit
//! codes (a scale a token), or three planes that together hold 24 bits: as good as f32, and products with them are three times the
//! integer work rather than a detour through floats. Sums of codes are integers and therefore exact; groups are added in f32, in
//! order, by fused multiply-add: every instruction set gives the same bits.

mod activations;
mod panels;
mod scalar;
pub mod tables;

pub use activations::{Activations, Padding, quantize_rows};
pub use panels::{LANES, Panels};
pub(crate) use panels::{Line, PanelScales};

use crate::dense::{Out, Write};
use crate::{Isa, par};

/// Where a block of panels goes: a disjoint part of the output.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    pub(crate) data: *mut f32,
    pub(crate) stride: usize,
}
// SAFETY: units of work write disjoint columns (see `product`), and the borrow of the output outlives them all.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

impl Cells {
    pub(crate) fn get(&self) -> Self {
        *self
    }

    /// Where the value of a token and row goes: there is one, or there is something before it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn at(self, token: usize, row: usize) -> *mut f32 {
        self.data.wrapping_add(token * self.stride + row)
    }

    /// Puts the values of one token and one panel where they belong.
    ///
    /// # Safety
    /// Elements `token * stride + row` for the rows of the panel may be written and are not touched by anyone else.
    #[inline]
    pub(crate) unsafe fn put(self, token: usize, first: usize, rows: usize, values: &[f32; LANES], write: Write) {
        let count = rows.saturating_sub(first).min(LANES);
        // SAFETY: the caller vouches for these elements.
        let cells = unsafe { std::slice::from_raw_parts_mut(self.data.add(token * self.stride + first), count) };
        match (write, cells.first_chunk_mut::<LANES>()) {
            (Write::Set, Some(cells)) => *cells = *values,
            (Write::Set, None) => cells.copy_from_slice(&values[..count]),
            (Write::Add, _) => cells.iter_mut().zip(values).for_each(|(c, v)| *c += v),
        }
    }
}

/// Tokens that a micro-kernel takes at once.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub first: usize,
    pub tokens: usize,
}

/// Activations in the order in which a micro-kernel reads them.
pub(crate) struct Tokens<'a> {
    pub x: &'a Activations,
    pub tiles: Vec<Tile>,
    /// Tile after tile, `[quad, token, plane]` of four codes each.
    quads: Vec<[i8; 4]>,
    /// The same in 16 bits, columns 0, 2, 1, 3: where bytes cannot be multiplied as they are.
    pairs: Vec<[i16; 4]>,
    /// Zero of all groups and bits of the weights that this is for.
    of: (Option<u8>, u32),
    /// Quads of a token's plane.
    each: usize,
    /// What the sums of a group begin with, `[token, plane, group]`: the negative sum of its codes, times the zero where all groups have
    /// the same.
    offsets: Vec<i32>,
}

impl<'a> Tokens<'a> {
    fn new(isa: Isa, x: &'a Activations, w: &Panels) -> Self {
        let zero = w.same_zero().map_or(1, i32::from);
        let offsets = x.sums().iter().map(|s| s.wrapping_mul(-zero)).collect();
        let (planes, each) = (x.planes(), x.width() / 4);
        let (mut tiles, mut first) = (Vec::new(), 0);
        for &tokens in isa.tiles(w.bits(), planes) {
            while x.tokens() - first >= tokens {
                tiles.push(Tile { first, tokens });
                first += tokens;
            }
        }
        let codes = x.codes().as_chunks::<4>().0;
        let mut quads = vec![[0i8; 4]; codes.len()];
        for tile in &tiles {
            let (from, count) = (tile.first * planes, tile.tokens * planes);
            let span = from * each..(from + count) * each;
            for (v, row) in codes[span.clone()].chunks_exact(each.max(1)).enumerate() {
                quads[span.clone()].iter_mut().skip(v).step_by(count).zip(row).for_each(|(out, q)| *out = *q);
            }
        }
        let mut pairs = Vec::new();
        if isa.multiplies_pairs() && w.bits() == 8 {
            pairs = quads.iter().map(|q| [q[0], q[2], q[1], q[3]].map(i16::from)).collect();
        }
        Self { x, tiles, quads, pairs, of: (w.same_zero(), w.bits()), each, offsets }
    }

    /// Whether this is what a product of `x` with `w` needs.
    fn serves(&self, x: &Activations, w: &Panels) -> bool {
        std::ptr::eq(self.x, x) && self.of == (w.same_zero(), w.bits())
    }

    /// Where a tile's codes begin.
    fn start(&self, tile: Tile) -> usize {
        tile.first * self.x.planes() * self.each
    }

    /// Codes of a tile, `[quad, token, plane]`.
    pub fn quads(&self, tile: Tile) -> &[[i8; 4]] {
        let n = tile.tokens * self.x.planes() * self.each;
        &self.quads[self.start(tile)..][..n]
    }

    /// Pairs of a tile, `[quad, token, plane]`.
    pub fn pairs(&self, tile: Tile) -> &[[i16; 4]] {
        let n = tile.tokens * self.x.planes() * self.each;
        &self.pairs[self.start(tile)..][..n]
    }

    /// Offsets of a tile, `[token, plane, group]`.
    pub fn offsets(&self, tile: Tile) -> &[i32] {
        let each = self.x.planes() * self.x.padding().groups();
        &self.offsets[tile.first * each..][..tile.tokens * each]
    }
}

/// Bytes of weights below which one token's product is not worth forking.
const FORK_BYTES: usize = 1 << 17;

/// Bytes of weights of one unit of work, for one token and for many: a third of what a thread has to do, within these. One token's product is
/// bound by memory, which is read fastest in long pieces.
const UNIT_BYTES: [[usize; 2]; 2] = [[1 << 12, 1 << 20], [1 << 12, 1 << 16]];

/// One product: `y[t, r] (+)= Σ_k x[t, k] * w[r, k]`.
pub struct Product<'a> {
    /// Tokens.
    pub x: &'a Activations,
    /// Weights.
    pub w: &'a Panels,
    /// Whether the output is replaced or added to.
    pub write: Write,
    /// `[tokens, rows]`.
    pub y: Out<'a>,
}

/// One product; see [`products`].
pub fn product(isa: Isa, x: &Activations, w: &Panels, write: Write, y: Out<'_>, parallel: bool) -> bool {
    products(isa, vec![Product { x, w, write, y }], parallel)
}

/// A product that is cut into units of work.
struct Work<'a> {
    w: &'a Panels,
    write: Write,
    cells: Cells,
    /// Number of its tokens.
    tokens: usize,
    /// Panels of a unit.
    step: usize,
    /// Units of this and of all before it.
    end: usize,
}

/// Several products as one piece of parallel work: those with few rows share threads. Returns false, with all outputs unchanged, when
/// shapes do not fit.
pub fn products(isa: Isa, tasks: Vec<Product<'_>>, parallel: bool) -> bool {
    let fits = |t: &Product<'_>| {
        let (tokens, rows) = (t.x.tokens(), t.w.rows());
        let last = tokens.saturating_sub(1).checked_mul(t.y.stride).and_then(|v| v.checked_add(rows));
        let inside = last.is_some_and(|l| l <= t.y.data.len()) && t.y.stride >= rows;
        tokens == 0 || rows == 0 || t.x.padding() == &t.w.padding() && inside
    };
    if !tasks.iter().all(fits) {
        return false;
    }
    let (mut works, mut packed): (Vec<Work<'_>>, Vec<Tokens<'_>>) = (Vec::new(), Vec::new());
    let (mut units, mut bytes) = (0, 0usize);
    for Product { x, w, write, y } in tasks.into_iter().filter(|t| t.x.tokens() > 0 && t.w.rows() > 0) {
        // Neighbours that read the same tokens in the same way have them packed once.
        if packed.last().is_none_or(|p| !p.serves(x, w)) {
            packed.push(Tokens::new(isa, x, w));
        }
        // Work is cut by shape: so many panels that a unit is worth its start.
        let size = w.panels() * w.panel_bytes();
        let [least, most] = UNIT_BYTES[usize::from(x.tokens() > 1)];
        let step = (size / (3 * par::threads())).clamp(least, most) / w.panel_bytes().max(1);
        let step = step.max(1).next_multiple_of(PANELS);
        units += w.panels().div_ceil(step);
        bytes = bytes.saturating_add(size.saturating_mul(x.tokens()));
        let cells = Cells { data: y.data.as_mut_ptr(), stride: y.stride };
        works.push(Work { w, write, cells, tokens: packed.len() - 1, step, end: units });
    }
    let fork = parallel && par::worth(bytes, FORK_BYTES);
    let unit = |i: usize, (): &mut ()| {
        let at = works.partition_point(|w| w.end <= i);
        let Work { w, write, cells, tokens, step, .. } = &works[at];
        let first = (i - at.checked_sub(1).map_or(0, |before| works[before].end)) * step;
        let panels = first..w.panels().min(first + step);
        let (x, cells, write) = (&packed[*tokens], cells.get(), *write);
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_avx512_vnni() {
                // SAFETY: `isa` proves the instructions; cells of these panels are this unit's alone, and `fits` has checked that they
                // are there.
                unsafe { crate::arch::vnni::product(x, w, panels, write, cells) };
                return;
            }
            if isa.has_avx2() {
                // SAFETY: as above.
                unsafe { crate::arch::avx2_integer::product(x, w, panels, write, cells) };
                return;
            }
        }
        let _ = isa;
        // SAFETY: as above.
        unsafe { scalar::product(x, w, panels, write, cells) };
    };
    par::map(units, fork, || (), unit);
    true
}

/// Panels that a micro-kernel takes at once.
pub(crate) const PANELS: usize = 2;

#[cfg(test)]
mod tests;
