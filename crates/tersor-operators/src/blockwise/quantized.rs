//! [`Quantized`]: values as codes of a codebook, with a scale for each block.

use std::borrow::Cow;
use std::ops::Range;

use tersor_core::{DType, Element, Error, Exec, Isa, Result};
use tersor_kernels::{blockwise, par};

use super::Map;

/// Number of consecutive block scales that share one outer scale in double quantization, where the scales of blocks are quantized too
/// ([`Scales::Nested`]).
pub const NESTED_BLOCK: usize = 256;

/// Number of values from which on results are written past the caches.
const PAST_CACHES: usize = 16 << 20;

/// Number of values that are decoded before they are written past the caches: as many as fit the first-level cache.
const PIECE: usize = 1 << 12;

/// Number of values of a unit of parallel work.
const UNIT: usize = 1 << 16;

/// The scales of a [`Quantized`] tensor, one for each block of consecutive values, usually the largest magnitude of the block. They are
/// stored in f32 ([`Scales::Plain`]), or quantized to one byte each ([`Scales::Nested`], double quantization). There is no default.
#[derive(Clone, PartialEq, Debug)]
pub enum Scales {
    /// The scale of each block in f32, `[blocks]`.
    Plain(Vec<f32>),
    /// Quantized scales (double quantization, arXiv 2305.14314, section 3): their differences from `offset` as codes of the signed dynamic
    /// map ([`Map::dynamic`]), with one outer scale for each 256 differences. A scale is `offset + absmax * map[code]`.
    Nested {
        /// The code of each block's scale, one a byte, `[blocks]`.
        codes: Vec<u8>,
        /// The outer scales: the largest magnitude of each 256 consecutive differences, `[ceil(blocks / 256)]`.
        absmax: Vec<f32>,
        /// The mean of the scales, which is subtracted before they are quantized.
        offset: f32,
    },
}

impl Scales {
    /// Returns the scale of each block in f32, `[blocks]`. Those of [`Scales::Plain`] are borrowed, those of [`Scales::Nested`] dequantized
    /// with the instruction set `isa`. Does not fail.
    pub fn values(&self, isa: Isa) -> Cow<'_, [f32]> {
        match self {
            Scales::Plain(s) => Cow::Borrowed(s),
            Scales::Nested { codes, absmax, offset } => {
                let mut out = vec![0f32; codes.len()];
                let map = Map::dynamic(true);
                let parts = codes.chunks(NESTED_BLOCK).zip(out.chunks_mut(NESTED_BLOCK)).zip(absmax);
                parts.for_each(|((codes, out), max)| map.decode(isa, codes, *max, out));
                out.iter_mut().for_each(|s| *s += offset);
                Cow::Owned(out)
            }
        }
    }

    /// Returns the number of bits that the scales of all blocks take as they are stored: 32 for each one of [`Scales::Plain`]; for
    /// [`Scales::Nested`] 8 for the code of each block's scale, 32 for each outer scale, which 256 consecutive blocks share, and 32 for the
    /// offset, the mean of the scales, which all blocks share.
    pub fn bits(&self) -> u64 {
        match self {
            Scales::Plain(s) => s.len() as u64 * 32,
            Scales::Nested { codes, absmax, .. } => codes.len() as u64 * 8 + absmax.len() as u64 * 32 + 32,
        }
    }
}

/// A tensor of block-wise quantized values, stored in one sequence without a shape. Each value is the code of a value in a codebook
/// ([`Map`]), and each block of consecutive values has a scale: `value = scale * codebook[code]`.
///
/// ```
/// use tersor_operators::{DType, Map, Quantized, Scales};
/// # fn main() -> tersor_operators::Result<()> {
/// let q = Quantized::from_parts(Map::linear(true), 2, 3, DType::F32, vec![254, 127, 0], Scales::Plain(vec![2.0, 5.0]))?;
/// assert_eq!(q.dequantize::<f32>()?, [2.0, 0.0, -5.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Quantized {
    map: Map,
    block: usize,
    len: usize,
    dtype: DType,
    /// Packed codes; of two 4-bit codes the first is in the high half of the byte.
    codes: Vec<u8>,
    scales: Scales,
    /// The values of `scales`.
    absmax: Vec<f32>,
}

impl Quantized {
    /// Returns the tensor of `len` values, originally of the type `dtype`, from its stored parts. With a map of at most 16 values, `codes`
    /// has two codes a byte, the first in the high half, `ceil(len / 2)` bytes; with a larger map it has one code a byte, `len` bytes. Each
    /// `block` consecutive values share a scale, so there are `ceil(len / block)` scales; a negative scale is allowed. Errors if `block` is
    /// 0, a length is wrong, a scale is not finite, or the map has no value for a code. The unused half of a last byte counts as a code.
    pub fn from_parts(
        map: Map,
        block: usize,
        len: usize,
        dtype: DType,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Result<Self> {
        let want = if map.bits() == 4 { len.div_ceil(2) } else { len };
        if block == 0 {
            return Err(Error::range("values of a block", "1 or more", block));
        }
        if codes.len() != want {
            return Err(Error::shape("bytes of codes", want, codes.len()));
        }
        let blocks = len.div_ceil(block);
        if let Scales::Nested { codes, absmax, offset } = &scales {
            let outer = (blocks, blocks.div_ceil(NESTED_BLOCK));
            if (codes.len(), absmax.len()) != outer {
                return Err(Error::shape(
                    "codes and outer scales of quantized scales",
                    outer,
                    (codes.len(), absmax.len()),
                ));
            }
            check_scales(absmax)?;
            check_scales(&[*offset])?;
        }
        let absmax = scales.values(Isa::SCALAR).into_owned();
        if absmax.len() != blocks {
            return Err(Error::shape("scales of blocks", blocks, absmax.len()));
        }
        check_scales(&absmax)?;
        let known = map.values().len();
        let unknown = |c: &u8| match map.bits() {
            4 => usize::from(c >> 4) >= known || usize::from(c & 15) >= known,
            _ => usize::from(*c) >= known,
        };
        if known != 16 && known != 256 && codes.iter().any(unknown) {
            return Err(Error::shape("codes", format!("below {known}"), "one that is not"));
        }
        Ok(Self { map, block, len, dtype, codes, scales, absmax })
    }

    /// Returns the codebook: the value of each code. A quantized value is the codebook's value of its code times the scale of its block.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Returns the number of consecutive values that share a scale; the last block may have fewer.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Returns the number of values of the tensor.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the type that the values had before they were quantized.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the packed codes: with a 4-bit map two a byte, the first in the high half, `ceil(len / 2)` bytes; otherwise one a byte,
    /// `len` bytes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Returns the scales of blocks as they are stored, in f32 or quantized. [`Quantized::absmax`] returns them in f32.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Returns whether the scales of blocks are quantized too ([`Scales::Nested`], double quantization).
    pub fn is_nested(&self) -> bool {
        matches!(self.scales, Scales::Nested { .. })
    }

    /// Quantizes other values `x`, `[len]`, with the codebook and the scales of this tensor, and returns the new tensor. Each `x[i]`,
    /// divided by the scale of its block, gets the code of the nearest value of the codebook; of two that are equally near, that of the
    /// lower value. A quotient outside of the codebook's range gets the code of the smallest or the largest value. In the division a scale
    /// below 1e-38, also a negative one, counts as 1e-38. `isa` is the instruction set to compute with. Errors if `x` has another length
    /// than this tensor or a value is not finite.
    pub fn requantize(&self, x: &[f32], isa: Isa) -> Result<Self> {
        if x.len() != self.len {
            return Err(Error::shape("values to quantize", self.len, x.len()));
        }
        tersor_core::check_finite(x, x.len(), 0)?;
        let mut codes = vec![0u8; self.len];
        for ((x, out), max) in x.chunks(self.block).zip(codes.chunks_mut(self.block)).zip(&self.absmax) {
            self.map.encode(isa, x, inverse_scale(*max), out);
        }
        if self.map.bits() == 4 {
            let mut packed = vec![0u8; self.codes.len()];
            blockwise::pack_nibbles(isa, &codes, self.map.zero(), &mut packed);
            codes = packed;
        }
        Ok(Self { codes, ..self.clone() })
    }

    /// Returns the scale of each block in f32, `[ceil(len / block)]`; scales that are stored quantized are dequantized.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Returns the stored bits of codes and scales, without those of the codebook, divided by the number of values; 0 for an empty tensor.
    pub fn bits_per_value(&self) -> f64 {
        let bits = self.codes.len() as u64 * 8 + self.scales.bits();
        if self.len == 0 { 0.0 } else { bits as f64 / self.len as f64 }
    }

    /// Returns all values, `[len]`, rounded to the type `T`: f32, f16 or bf16. Does not fail.
    pub fn dequantize<T: Element>(&self) -> Result<Vec<T>> {
        let mut out = vec![T::ZERO; self.len];
        self.dequantize_into(&mut out, &Exec::new())?;
        Ok(out)
    }

    /// Writes all values to `out`, `[len]`, rounded to the type `T` (f32, f16 or bf16), in parallel in the thread pool of `exec`. Errors if
    /// `out` does not have as many elements as the tensor has values.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T], exec: &Exec) -> Result<()> {
        if out.len() != self.len {
            return Err(Error::shape("length of the output", self.len, out.len()));
        }
        let (mut units, past_caches, isa) = (vec![(); self.len.div_ceil(UNIT)], self.len >= PAST_CACHES, exec.isa());
        let unit = |index: usize, out: &mut [T], _: &mut [()]| {
            let mut wide = Vec::new();
            match T::as_f32_mut(out) {
                Some(out) if past_caches => {
                    wide.resize(PIECE, 0.0);
                    // Whole cache lines are written past the caches, from the first aligned one on.
                    let head = out.as_ptr().align_offset(64).min(out.len());
                    let (first, rest) = out.split_at_mut(head);
                    self.decode(isa, index * UNIT, first);
                    for (i, out) in rest.chunks_mut(PIECE).enumerate() {
                        let piece = &mut wide[..out.len()];
                        self.decode(isa, index * UNIT + head + i * PIECE, piece);
                        blockwise::copy_past_caches(isa, piece, out);
                    }
                }
                Some(out) => self.decode(isa, index * UNIT, out),
                None => {
                    wide.resize(out.len(), 0.0);
                    self.decode(isa, index * UNIT, &mut wide);
                    T::narrow(isa, &wide, out);
                }
            }
        };
        exec.run(|| par::pairs(out, UNIT, &mut units, 1, exec.parallel(), unit));
        Ok(())
    }

    /// Writes the values with the indices `range`, counted from 0, to `out` in f32, `[range.len()]`. `isa` is the instruction set to
    /// compute with. Errors if the range is not inside of `0..len` or `out` has another length.
    pub fn read(&self, range: Range<usize>, out: &mut [f32], isa: Isa) -> Result<()> {
        if range.start > range.end || range.end > self.len || range.len() != out.len() {
            return Err(Error::range(
                "values to read, with the length of the output",
                0..self.len,
                (&range, out.len()),
            ));
        }
        self.decode(isa, range.start, out);
        Ok(())
    }

    /// Writes the values from `start` on to `out`; `start + out.len()` must be at most the length.
    fn decode(&self, isa: Isa, start: usize, out: &mut [f32]) {
        // The rest of the first block, then whole blocks.
        let head = ((self.block - start % self.block) % self.block).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        for (at, out) in [(start, first), (start + head, rest)].into_iter().filter(|p| !p.1.is_empty()) {
            let scales = &self.absmax[at / self.block..];
            if self.map.bits() == 4 {
                self.map.decode_packed(isa, &self.codes, at, scales, self.block, out);
                continue;
            }
            let codes = self.codes[at..at + out.len()].chunks(self.block);
            for ((codes, out), max) in codes.zip(out.chunks_mut(self.block)).zip(scales) {
                self.map.decode(isa, codes, *max, out);
            }
        }
    }
}

/// Lower bound of the scale that values are divided by.
const MIN_SCALE: f32 = 1e-38;

/// Returns the factor `1 / absmax` that brings the values of a block, whose largest magnitude is `absmax`, to the range from -1 to 1. An
/// `absmax` below 1e-38, or NaN, counts as 1e-38, so the factor is finite. Does not fail.
pub fn inverse_scale(absmax: f32) -> f32 {
    1.0 / absmax.max(MIN_SCALE)
}

/// Errors if a scale is not finite, naming its index as the column.
fn check_scales(scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !s.is_finite()) {
        Some(i) => Err(Error::NonFinite { row: 0, col: i, value: scales[i] }),
        None => Ok(()),
    }
}
