//! Quantization of slices: the largest magnitude of each block, then its codes.

use tersor_core::{DType, Element, Error, Exec, Result};
use tersor_kernels::{blockwise, par};
use tersor_operators::{NESTED_BLOCK, Quantized, Scales, inverse_scale};

use super::{Blockwise, CheckedBlockwise, Stream};

/// Approximate number of values of a unit of parallel work; see [`CheckedBlockwise::unit`].
const UNIT: usize = 1 << 16;

/// Number of values whose scales are computed before their codes: as many as fit the first-level cache.
const PIECE: usize = 1 << 12;

/// Number of values whose codes are computed between two prefetches.
const STEP: usize = 512;

impl CheckedBlockwise {
    /// Returns the number of bytes that the packed codes of `len` values take: `len` with 8-bit codes, `ceil(len / 2)` with 4-bit codes
    /// (codebooks of at most 16 values).
    pub fn code_bytes(&self, len: usize) -> usize {
        if self.map().bits() == 4 { len.div_ceil(2) } else { len }
    }

    /// Quantizes the values `x`, a tensor of any shape in row-major order. Consecutive values form blocks, of which the last may be
    /// shorter. Returns for each block its scale, which is its largest magnitude, and for each value its code: that of the codebook value
    /// nearest to the value divided by the scale, or with [`Blockwise::stochastic`] that of one of the two neighbours. In a block of zeros,
    /// whose scale is 0, the quotient counts as 0. The result is empty if `x` is.
    ///
    /// Errors with [`Error::NonFinite`], whose column is the index in `x`, if a value is not finite. With double quantization
    /// ([`Blockwise::nested`]), errors also if a dequantized scale overflows f32.
    pub fn quantize_values<T: Element>(&self, x: &[T]) -> Result<Quantized> {
        let mut codes = vec![0u8; self.code_bytes(x.len())];
        let mut absmax = vec![0f32; x.len().div_ceil(self.block())];
        self.quantize_into(x, &mut codes, &mut absmax)?;
        self.finish(x.len(), T::DTYPE, codes, absmax)
    }

    /// Quantizes the values `x`, originally of the type `dtype`; the first of them has the index `first` in the whole tensor. Errors as
    /// [`CheckedBlockwise::quantize_values`].
    pub(super) fn quantize_from(&self, x: &[f32], first: usize, dtype: DType, exec: &Exec) -> Result<Quantized> {
        let mut codes = vec![0u8; self.code_bytes(x.len())];
        let mut absmax = vec![0f32; x.len().div_ceil(self.block())];
        self.encode(x, first, &mut codes, &mut absmax, exec)?;
        self.finish(x.len(), dtype, codes, absmax)
    }

    /// Quantizes the values `x` into the caller's buffers. `codes` receives the packed codes and must have as many bytes as
    /// [`CheckedBlockwise::code_bytes`] returns for `x.len()`; of two 4-bit codes in a byte, the first is in the high half. `absmax`
    /// receives the scale of each block, its largest magnitude, and must have `ceil(x.len() / block)` elements for blocks of `block`
    /// values. Scales are f32 even with double quantization ([`Blockwise::nested`]).
    ///
    /// Errors if a buffer has another length, or with [`Error::NonFinite`], whose column is the index in `x`, if a value is not finite; the
    /// content of the buffers is unspecified then.
    pub fn quantize_into<T: Element>(&self, x: &[T], codes: &mut [u8], absmax: &mut [f32]) -> Result<()> {
        self.encode(x, 0, codes, absmax, &Exec::new())
    }

    /// Quantizes as [`CheckedBlockwise::quantize_into`]; the first value of `x` has the index `first` in the whole tensor.
    pub(super) fn encode<T: Element>(
        &self,
        x: &[T],
        first: usize,
        codes: &mut [u8],
        absmax: &mut [f32],
        exec: &Exec,
    ) -> Result<()> {
        let (block, want) = (self.block(), (self.code_bytes(x.len()), x.len().div_ceil(self.block())));
        if (codes.len(), absmax.len()) != want {
            return Err(Error::shape("bytes of codes, and number of scales", want, (codes.len(), absmax.len())));
        }
        let (unit, isa) = (self.unit(), exec.isa());
        let key = self.0.seed.map(|seed| mix(seed.wrapping_add(GAMMA)));
        let work = |index: usize, codes: &mut [u8], absmax: &mut [f32]| -> Result<()> {
            let start = index * unit;
            let x = &x[start..(start + unit).min(x.len())];
            let (mut wide, mut bytes) = (Vec::new(), Vec::new());
            let values = T::as_f32(x).unwrap_or_else(|| {
                wide.resize(x.len(), 0.0);
                T::widen(isa, x, &mut wide);
                &wide
            });
            let packed = self.map().bits() == 4;
            if packed {
                bytes.resize(x.len(), 0);
            }
            let out = if packed { &mut bytes[..] } else { &mut *codes };
            // A piece is several whole blocks, or one longer block.
            let piece = block * (PIECE / block).max(1);
            let scales = &mut vec![0f32; piece / block];
            for (p, ((part, out), max)) in
                values.chunks(piece).zip(out.chunks_mut(piece)).zip(absmax.chunks_mut(piece / block)).enumerate()
            {
                for ((b, block), (max, scale)) in part.chunks(block).enumerate().zip(max.iter_mut().zip(&mut *scales)) {
                    *max = blockwise::abs_max(isa, block);
                    if !max.is_finite() {
                        let at = block.iter().position(|v| !v.is_finite()).unwrap_or(0);
                        let col = first + start + p * piece + b * self.block() + at;
                        return Err(Error::NonFinite { row: 0, col, value: block[at] });
                    }
                    *scale = inverse_scale(*max);
                }
                // The next piece is prefetched while codes are computed.
                let mut next = values.get((p + 1) * piece..).unwrap_or_default().chunks(STEP);
                // A step is whole blocks, or a part of one block.
                let step = if piece == block { STEP } else { block * (STEP / block).max(1) };
                for (i, (part, out)) in part.chunks(step).zip(out.chunks_mut(step)).enumerate() {
                    blockwise::fetch(isa, next.next().unwrap_or_default());
                    let scales = &scales[i * step / block..];
                    match key {
                        None => self.map().encode_blocks(isa, part, scales, block, out),
                        Some(key) => {
                            let at = first + start + p * piece + i * step;
                            let blocks = part.chunks(block).zip(out.chunks_mut(block)).zip(scales);
                            for (b, ((part, out), scale)) in blocks.enumerate() {
                                let at = (at + b * block) as u64;
                                self.map().encode_stochastic(isa, part, *scale, |i| draw(key, at + i as u64), out);
                            }
                        }
                    }
                }
            }
            if packed {
                blockwise::pack_nibbles(isa, &bytes, self.map().zero(), codes);
            }
            Ok(())
        };
        let bytes = self.code_bytes(unit);
        par::pairs(codes, bytes, absmax, unit / block, exec.parallel(), work).into_iter().collect()
    }

    /// Returns the number of values of a unit of parallel work: whole blocks, and an even number, so that units begin at whole bytes.
    fn unit(&self) -> usize {
        let blocks = (UNIT / self.block()).max(1);
        self.block() * if (self.block() * blocks).is_multiple_of(2) { blocks } else { blocks + 1 }
    }

    /// Returns the quantized values with the scales in their stored form. Errors if a scale does not fit it.
    pub(super) fn finish(&self, len: usize, dtype: DType, codes: Vec<u8>, absmax: Vec<f32>) -> Result<Quantized> {
        let scales = if self.0.nested { nest(absmax)? } else { Scales::Plain(absmax) };
        Quantized::from_parts(self.map().clone(), self.block(), len, dtype, codes, scales)
    }

    /// Returns a quantizer with these parameters that receives the values of one tensor, of the type `T`, in consecutive pieces.
    pub fn stream<T: Element>(&self) -> Stream<T> {
        Stream::new(self.clone())
    }
}

/// Quantizes scales (double quantization): subtracts their mean and quantizes the differences by the signed dynamic map in blocks of
/// [`NESTED_BLOCK`]. Errors if a difference is not finite.
fn nest(scales: Vec<f32>) -> Result<Scales> {
    let mean = scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let differences: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let inner = Blockwise::dynamic().block(NESTED_BLOCK).quantize_values(&differences)?;
    Ok(Scales::Nested { codes: inner.codes().to_vec(), absmax: inner.absmax().to_vec(), offset })
}

/// Returns a number drawn uniformly from `[0, 1)`, determined by `key` and `index` (SplitMix64).
fn draw(key: u64, index: u64) -> f32 {
    (mix(key.wrapping_add(index.wrapping_mul(GAMMA))) >> 40) as f32 / (1u32 << 24) as f32
}

/// Increment of SplitMix64's counter.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer. Seeds are mixed by it before an index is added: otherwise consecutive seeds would give related draws.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
