//! The packed result.

use std::borrow::Cow;
use std::ops::Range;

use tersor_core::{DType, Element, Error, Isa, Result};
use tersor_kernels::{blockwise, par};

use super::Blockwise;
use crate::Map;

/// Blocks of scales that share a scale when scales are quantized.
pub(crate) const NESTED_BLOCK: usize = 256;

/// Values from which on results are written past the caches: more than these hold.
const BEYOND: usize = 16 << 20;

/// Values that are decoded before they are written past the caches: as the first cache holds.
const PIECE: usize = 1 << 12;

/// Values that are decoded between two looks at the buffer, at most.
const UNIT: usize = 1 << 16;

/// The largest magnitude of each block.
#[derive(Clone, PartialEq, Debug)]
pub enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// Less `offset`, by the signed dynamic map in blocks of 256.
    Nested {
        /// A code a block.
        codes: Vec<u8>,
        /// The largest magnitude of each 256 scales less the offset.
        absmax: Vec<f32>,
        /// The mean of the scales.
        offset: f32,
    },
}

impl Scales {
    /// Quantizes scales. Error when their mean less one of them is not finite.
    pub fn nest(scales: Vec<f32>) -> Result<Self> {
        let mean = scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64;
        let offset = mean as f32;
        let less: Vec<f32> = scales.iter().map(|s| s - offset).collect();
        let inner = Blockwise::dynamic().block(NESTED_BLOCK).quantize(&less)?;
        let (codes, absmax) = (inner.codes, inner.scales.values().into_owned());
        Ok(Scales::Nested { codes, absmax, offset })
    }

    /// The scales, one a block.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Scales::Plain(s) => Cow::Borrowed(s),
            Scales::Nested { codes, absmax, offset } => {
                let mut out = vec![0f32; codes.len()];
                let (map, isa) = (Map::dynamic(true), Isa::detect());
                let parts = codes.chunks(NESTED_BLOCK).zip(out.chunks_mut(NESTED_BLOCK)).zip(absmax);
                parts.for_each(|((codes, out), most)| map.decode(isa, codes, *most, out));
                out.iter_mut().for_each(|s| *s += offset);
                Cow::Owned(out)
            }
        }
    }

    /// Bits that they take, offset included.
    pub fn bits(&self) -> u64 {
        match self {
            Scales::Plain(s) => s.len() as u64 * 32,
            Scales::Nested { codes, absmax, .. } => codes.len() as u64 * 8 + absmax.len() as u64 * 32 + 32,
        }
    }
}

/// A tensor as codes and a scale for every block of its flat values.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantized {
    map: Map,
    block: usize,
    len: usize,
    dtype: DType,
    /// Of 4 bits the first of two lies in the high half of the byte.
    codes: Vec<u8>,
    scales: Scales,
    /// `scales`, widened.
    absmax: Vec<f32>,
}

impl Quantized {
    /// Puts together what was stored: `len` values that were of type `dtype`. Error when a length is wrong, a scale is not finite, or a code stands
    /// for nothing.
    pub fn from_parts(
        map: Map,
        block: usize,
        len: usize,
        dtype: DType,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Result<Self> {
        let want = if map.bits() == 4 { len.div_ceil(2) } else { len };
        if block == 0 || codes.len() != want {
            return Err(Error::shape("bytes of codes", want, codes.len()));
        }
        let blocks = len.div_ceil(block);
        if let Scales::Nested { codes, absmax, offset } = &scales {
            let outer = (blocks, blocks.div_ceil(NESTED_BLOCK));
            if (codes.len(), absmax.len()) != outer {
                return Err(Error::shape("codes and scales of scales", outer, (codes.len(), absmax.len())));
            }
            check_scales(absmax)?;
            check_scales(&[*offset])?;
        }
        let absmax = scales.values().into_owned();
        if absmax.len() != blocks {
            return Err(Error::shape("scales", blocks, absmax.len()));
        }
        check_scales(&absmax)?;
        let known = map.values().len();
        let unknown = |c: &u8| match map.bits() {
            4 => usize::from(c >> 4) >= known || usize::from(c & 15) >= known,
            _ => usize::from(*c) >= known,
        };
        if known != 16 && known != 256 && codes.iter().any(unknown) {
            return Err(Error::shape("codes", format!("below {known}"), "a larger one"));
        }
        Ok(Self { map, block, len, dtype, codes, scales, absmax })
    }

    /// What codes stand for.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Values of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type that the values came in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The packed codes: a byte a value, or of 4 bits two, the first in the high half.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales as they are stored.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Whether scales are quantized too.
    pub fn is_nested(&self) -> bool {
        matches!(self.scales, Scales::Nested { .. })
    }

    /// Quantizes other values with these scales held; what is larger than the scale of its block takes the outermost code. Error on another length,
    /// or a value that is not finite.
    pub fn requantize(&self, x: &[f32]) -> Result<Self> {
        if x.len() != self.len {
            return Err(Error::shape("values", self.len, x.len()));
        }
        crate::check_finite(x, 0)?;
        let isa = Isa::detect();
        let mut codes = vec![0u8; self.len];
        for ((x, out), most) in x.chunks(self.block).zip(codes.chunks_mut(self.block)).zip(&self.absmax) {
            self.map.encode(isa, x, super::inverse(*most), out);
        }
        if self.map.bits() == 4 {
            let mut packed = vec![0u8; self.codes.len()];
            blockwise::pack_nibbles(isa, &codes, self.map.zero(), &mut packed);
            codes = packed;
        }
        Ok(Self { codes, ..self.clone() })
    }

    /// The largest magnitude of each block, as decoding takes it.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Bits of codes and scales over the number of values; 0 for none. The map is counted by who stores it.
    pub fn bits_per_value(&self) -> f64 {
        let bits = self.codes.len() as u64 * 8 + self.scales.bits();
        if self.len == 0 { 0.0 } else { bits as f64 / self.len as f64 }
    }

    /// The values, rounded to `T`.
    pub fn dequantize<T: Element>(&self) -> Result<Vec<T>> {
        let mut out = vec![T::ZERO; self.len];
        self.dequantize_into(&mut out)?;
        Ok(out)
    }

    /// Writes the values into `out`, in the current pool. Error on another length.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T]) -> Result<()> {
        if out.len() != self.len {
            return Err(Error::shape("output", self.len, out.len()));
        }
        let (mut units, past_caches, isa) = (vec![(); self.len.div_ceil(UNIT)], self.len >= BEYOND, Isa::detect());
        par::pairs(out, UNIT, &mut units, 1, true, |index, out, _| {
            let mut wide = Vec::new();
            match T::as_f32_mut(out) {
                Some(out) if past_caches => {
                    wide.resize(PIECE, 0.0);
                    // From the first whole line of memory on.
                    let head = out.as_ptr().align_offset(64).min(out.len());
                    let (first, rest) = out.split_at_mut(head);
                    self.decode(index * UNIT, first);
                    for (i, out) in rest.chunks_mut(PIECE).enumerate() {
                        let piece = &mut wide[..out.len()];
                        self.decode(index * UNIT + head + i * PIECE, piece);
                        blockwise::copy_past_caches(isa, piece, out);
                    }
                }
                Some(out) => self.decode(index * UNIT, out),
                None => {
                    wide.resize(out.len(), 0.0);
                    self.decode(index * UNIT, &mut wide);
                    T::narrow(&wide, out);
                }
            }
        });
        Ok(())
    }

    /// Writes a run of values. Error unless it lies inside and `out` is as long.
    pub fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        if range.start > range.end || range.end > self.len || range.len() != out.len() {
            let found = (&range, out.len());
            return Err(Error::shape("range and its output", format!("inside 0..{}", self.len), found));
        }
        self.decode(range.start, out);
        Ok(())
    }

    /// Values from `start` on; `start + out.len()` is at most the length.
    fn decode(&self, start: usize, out: &mut [f32]) {
        let isa = Isa::detect();
        // Up to the next block, then blocks.
        let head = ((self.block - start % self.block) % self.block).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        for (at, out) in [(start, first), (start + head, rest)].into_iter().filter(|p| !p.1.is_empty()) {
            let scales = &self.absmax[at / self.block..];
            if self.map.bits() == 4 {
                self.map.decode_packed(isa, &self.codes, at, scales, self.block, out);
                continue;
            }
            let codes = self.codes[at..at + out.len()].chunks(self.block);
            for ((codes, out), most) in codes.zip(out.chunks_mut(self.block)).zip(scales) {
                self.map.decode(isa, codes, *most, out);
            }
        }
    }
}

fn check_scales(scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !s.is_finite()) {
        Some(i) => Err(Error::NonFinite { row: 0, col: i, value: scales[i] }),
        None => Ok(()),
    }
}
