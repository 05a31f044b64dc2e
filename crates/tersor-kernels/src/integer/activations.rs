//! [`Activations`]: tokens as planes of 8-bit codes.

use crate::{Fault, Isa, blockwise, fault};

/// How the columns of activations are laid out in memory for an integer product. The columns are cut into groups, the quantization groups
/// of the weights, and each group is padded with zeros to a whole number of blocks, the columns that a loop reads at once.
/// [`Panels::padding`](super::Panels::padding) returns the layout that a weight matrix needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Padding {
    /// The number of columns (features) of the activations, without padding.
    pub cols: usize,
    /// The number of neighbouring columns of a group, that is of a quantization group of the weights; the last group has the remaining
    /// columns. The constructors of [`Activations`] fail with `Fault::Range` if it is 0.
    pub group: usize,
    /// The number of columns of a block, which a loop reads at once; each group of columns is padded with zeros to a whole number of
    /// blocks. The layouts that weight matrices need have blocks of 4, 8, 16 or 32 columns. The constructors of [`Activations`] fail with
    /// `Fault::Range` if the number is 0. Products fail with `Fault::Length` if the number is not that of the layout of the weights.
    pub block: usize,
}

impl Padding {
    /// Returns the number of groups that the columns are cut into, `ceil(cols / group)`; a `group` of 0 counts as 1.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }
    /// Fails with `Fault::Length` unless the two layouts are the same.
    pub(crate) fn check(&self, given: &Self) -> Result<(), Fault> {
        fault::equal("columns of the activations", self.cols, given.cols)?;
        fault::equal("columns of a group of activations", self.group, given.group)?;
        fault::equal("columns of a block of activations", self.block, given.block)
    }
    /// Returns the number of blocks of a group.
    pub(crate) fn blocks(&self, group: usize) -> usize {
        let cols = self.group.min(self.cols - (group * self.group).min(self.cols));
        cols.div_ceil(self.block)
    }
    /// Returns the number of columns with padding.
    pub(crate) fn width(&self) -> usize {
        let Some(last) = self.groups().checked_sub(1) else { return 0 };
        let full = self.group.div_ceil(self.block).saturating_mul(last);
        full.saturating_add(self.blocks(last)).saturating_mul(self.block)
    }
}

/// Activations `[tokens, cols]` as 8-bit integer codes, the left operand of integer products:
/// `x[t, k] = scale[t] * Σ_p 256^p * code[p, t, k]`. There is one plane of codes (`p` is 0) for activations that are quantized to 8 bits,
/// or there are three (`p` is 0 to 2) that hold 24 bits together, which is about the accuracy of f32.
///
/// ```
/// use tersor_kernels::{Isa, integer::{Activations, Padding, quantize_rows}};
/// let (x, padding) = ([1.0f32, -2.0, 4.0, 0.5], Padding { cols: 4, group: 4, block: 4 });
/// // 8 bits with a scale for each token, or as exact as f32.
/// let (mut codes, mut scales) = ([0i8; 4], [0f32; 1]);
/// quantize_rows(Isa::detect(), &x, 4, 127, &mut codes, &mut scales).unwrap();
/// assert_eq!(codes, [32, -64, 127, 16]);
/// assert_eq!(Activations::from_codes(&codes, &scales, padding).unwrap().tokens(), 1);
/// assert!(Activations::exact(Isa::detect(), &[f32::NAN; 4], 1, padding).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Activations {
    padding: Padding,
    /// Columns with padding.
    width: usize,
    tokens: usize,
    planes: usize,
    /// `[token, plane, width]`.
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// Sum of the codes of each group, `[token, plane, group]`.
    sums: Vec<i32>,
}

/// The integer that a token's largest magnitude is mapped to in three planes: less than they hold, because rounding may go up.
const MAX: f32 = 127.0 * 65536.0;

impl Activations {
    /// Converts f32 activations `x`, `[tokens, cols]` row-major with `cols` from `padding`, to integers of three signed 8-bit codes with a
    /// scale for each token: an activation is `scale * (c0 + 256 * c1 + 65536 * c2)` with its codes `c0`, `c1` and `c2`. This represents
    /// each value within 2^-22 of the largest magnitude of its token; a token whose largest magnitude is below about 1e-31 becomes zeros.
    ///
    /// Fails with `Fault::Length` if `x` does not have `tokens * cols` values, with `Fault::NonFinite` at the first value that is NaN or
    /// infinite, with `Fault::Range` if `block` or `group` of the padding is 0, and with `Fault::Overflow` if a size does not fit in
    /// `usize`.
    pub fn exact(isa: Isa, x: &[f32], tokens: usize, padding: Padding) -> Result<Self, Fault> {
        let mut new = Self::empty(tokens, 3, padding, x.len())?;
        let mut planes = vec![0i8; if tokens == 0 { 0 } else { 3 * padding.cols }];
        for (t, x) in x.chunks_exact(padding.cols.max(1)).enumerate() {
            let max = blockwise::abs_max(isa, x);
            if !max.is_finite() {
                fault::first_non_finite(x, t * padding.cols)?;
            }
            let scale = if max / MAX >= f32::MIN_POSITIVE { max / MAX } else { 1.0 };
            // A subnormal scale was replaced, so the inverse is finite.
            digits(isa, x, scale.recip(), &mut planes);
            new.scales[t] = scale;
            for (p, codes) in planes.chunks_exact(padding.cols).enumerate() {
                new.place(t, p, codes);
            }
        }
        Ok(new)
    }

    /// Takes activations that are quantized to 8 bits: `codes` is `[tokens, cols]`, row-major, with `cols` from `padding`, and `scales` has
    /// one scale for each token, so that an activation is `scales[t] * codes[t, k]`. The number of tokens is `scales.len()`. Any scales are
    /// accepted; one that is NaN or infinite makes the products of its token NaN or infinite.
    ///
    /// Fails with `Fault::Length` if `codes` does not have `tokens * cols` values, with `Fault::Range` if `block` or `group` of the padding
    /// is 0, and with `Fault::Overflow` if a size does not fit in `usize`.
    pub fn from_codes(codes: &[i8], scales: &[f32], padding: Padding) -> Result<Self, Fault> {
        let tokens = scales.len();
        let mut new = Self::empty(tokens, 1, padding, codes.len())?;
        new.scales.copy_from_slice(scales);
        for (t, row) in codes.chunks_exact(padding.cols.max(1)).enumerate() {
            new.place(t, 0, row);
        }
        Ok(new)
    }

    fn empty(tokens: usize, planes: usize, padding: Padding, len: usize) -> Result<Self, Fault> {
        fault::matrix("activations", [tokens, padding.cols], len)?;
        for (what, found) in [("columns of a block", padding.block), ("columns of a group", padding.group)] {
            if found == 0 {
                return Err(Fault::Range { what, limit: 1, found });
            }
        }
        let width = padding.width();
        let rows = fault::product("activations", tokens, planes)?;
        let codes = vec![0i8; fault::product("activations", rows, width)?];
        let sums = vec![0i32; fault::product("activations", rows, padding.groups())?];
        Ok(Self { padding, width, tokens, planes, codes, scales: vec![1.0; tokens], sums })
    }

    fn place(&mut self, token: usize, plane: usize, codes: &[i8]) {
        let (p, width, groups) = (self.padding, self.width, self.padding.groups());
        let row = &mut self.codes[(token * self.planes + plane) * width..][..width];
        let sums = &mut self.sums[(token * self.planes + plane) * groups..][..groups];
        let filled = !p.group.is_multiple_of(p.block);
        if !filled {
            row[..codes.len()].copy_from_slice(codes);
        }
        let mut at = 0;
        for (sum, codes) in sums.iter_mut().zip(codes.chunks(p.group)) {
            if filled {
                row[at..at + codes.len()].copy_from_slice(codes);
                at += codes.len().next_multiple_of(p.block);
            }
            *sum = codes.iter().map(|c| i32::from(*c)).sum();
        }
    }

    /// Returns the number of tokens, that is of rows of the activations.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }
    /// Returns the layout of the columns that the activations were made with: the number of columns, the size of the groups that they are
    /// cut into, and the size of the blocks to which each group is padded with zeros.
    #[must_use]
    pub fn padding(&self) -> &Padding {
        &self.padding
    }
    pub(crate) fn width(&self) -> usize {
        self.width
    }
    pub(crate) fn planes(&self) -> usize {
        self.planes
    }
    /// Returns the codes of one plane of a token, with padding.
    pub(crate) fn row(&self, token: usize, plane: usize) -> &[i8] {
        let width = self.width;
        &self.codes[(token * self.planes + plane) * width..][..width]
    }
    /// Returns all codes, `[token, plane, width]`.
    pub(crate) fn codes(&self) -> &[i8] {
        &self.codes
    }
    /// Returns the sum of the codes of one plane of a token.
    pub(crate) fn total(&self, token: usize, plane: usize) -> i32 {
        let groups = self.padding.groups();
        self.sums[(token * self.planes + plane) * groups..][..groups].iter().fold(0, |s, v| s.wrapping_add(*v))
    }
    /// Returns the sum of the codes of each group, `[token, plane, group]`.
    pub(crate) fn sums(&self) -> &[i32] {
        &self.sums
    }
    pub(crate) fn scale(&self, token: usize) -> f32 {
        self.scales[token]
    }
}

/// Quantizes a matrix `x` `[rows, cols]`, row-major, symmetrically with one scale a row: `scale = max|x| / max_code` over the row and
/// `code = clamp(round(x / scale), -max_code - 1, max_code)`, ties to even. `max_code` is 1 to 127, for example 127 for 8 bits and 7 for 4
/// bits; less than 1 counts as 1. Writes `codes`, `[rows, cols]`, and `scales`, `[rows]`. A row whose scale would be 0 or subnormal has the
/// scale 1.
///
/// Works on as many whole rows as the shortest of `x`, `codes` and `scales` has; a `cols` of 0 counts as 1. Fails with `Fault::NonFinite`
/// at the first of the values of these rows that is NaN or infinite; the rows before that value's row are written then, its own row and
/// later rows are not.
pub fn quantize_rows(
    isa: Isa,
    x: &[f32],
    cols: usize,
    max_code: i8,
    codes: &mut [i8],
    scales: &mut [f32],
) -> Result<(), Fault> {
    let (cols, max_code) = (cols.max(1), max_code.max(1));
    let rows = x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(scales);
    for (row, ((x, codes), out)) in rows.enumerate() {
        // The largest magnitude of a row is not finite where one of its values is not.
        let max = blockwise::abs_max(isa, x);
        if !max.is_finite() {
            fault::first_non_finite(x, row * cols)?;
        }
        let scale = max / f32::from(max_code);
        let scale = if scale >= f32::MIN_POSITIVE { scale } else { 1.0 };
        *out = scale;
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            // SAFETY: `isa` proves the instructions.
            done = unsafe { crate::arch::avx2::quantize_signed(x, scale, max_code, codes) };
        }
        let (low, high) = (-f32::from(max_code) - 1.0, f32::from(max_code));
        for (x, c) in x[done..].iter().zip(&mut codes[done..]) {
            *c = (x / scale).max(low).min(high).round_ties_even() as i8;
        }
    }
    Ok(())
}

/// Writes `round(x * inverse)`, below 2^23 in magnitude, as three digits of base 256 in -128..=127 to `planes` `[3, cols]`, the lowest
/// first.
fn digits(isa: Isa, x: &[f32], inverse: f32, planes: &mut [i8]) {
    let (low, rest) = planes.split_at_mut(x.len());
    let (middle, high) = rest.split_at_mut(x.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves the instructions.
        done = unsafe { crate::arch::avx2::digits(x, inverse, [low, middle, high]) };
    }
    let _ = isa;
    for (i, x) in x.iter().enumerate().skip(done) {
        // With 128 added to each digit, the digits are the bytes of the sum.
        let bytes = ((x * inverse).round_ties_even() as i32 + 0x80_8080).to_le_bytes();
        [low[i], middle[i], high[i]] = [0, 1, 2].map(|p| (bytes[p] ^ 128) as i8);
    }
}
