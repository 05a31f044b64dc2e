//! The loops: the largest magnitude of each block, then its codes.

use tersor_core::{DType, Element, Error, Exec, Result};
use tersor_kernels::{blockwise, par};
use tersor_operators::{NESTED_BLOCK, Quantized, Scales, inverse_scale};

use super::{Blockwise, CheckedBlockwise, Stream};

/// Values of one unit of work; see [`CheckedBlockwise::unit`].
const UNIT: usize = 1 << 16;

/// Values whose scales are found before their codes: as many as the first cache holds.
const PIECE: usize = 1 << 12;

/// Values whose codes are found between two prefetches.
const STEP: usize = 512;

impl CheckedBlockwise {
    /// Returns the bytes of the packed codes of `len` values.
    pub fn code_bytes(&self, len: usize) -> usize {
        if self.map().bits() == 4 { len.div_ceil(2) } else { len }
    }

    /// Quantizes values, as flat blocks. Errors on a value that is not finite, with its index as the column.
    pub fn quantize_values<T: Element>(&self, x: &[T]) -> Result<Quantized> {
        let mut codes = vec![0u8; self.code_bytes(x.len())];
        let mut absmax = vec![0f32; x.len().div_ceil(self.block())];
        self.quantize_into(x, &mut codes, &mut absmax)?;
        self.finish(x.len(), T::DTYPE, codes, absmax)
    }

    /// Quantizes values that came as `dtype`, the first of which has the number `first` in the whole. Errors as
    /// [`quantize_values`](Self::quantize_values).
    pub(super) fn quantize_from(&self, x: &[f32], first: usize, dtype: DType, exec: &Exec) -> Result<Quantized> {
        let mut codes = vec![0u8; self.code_bytes(x.len())];
        let mut absmax = vec![0f32; x.len().div_ceil(self.block())];
        self.encode(x, first, &mut codes, &mut absmax, exec)?;
        self.finish(x.len(), dtype, codes, absmax)
    }

    /// Quantizes `x` into buffers of yours: packed codes ([`CheckedBlockwise::code_bytes`] of them, the first of two in the high half) and the largest
    /// magnitude of each block. Errors if a length is wrong, or on a value that is not finite; the
    /// content of the buffers is then unspecified.
    pub fn quantize_into<T: Element>(&self, x: &[T], codes: &mut [u8], absmax: &mut [f32]) -> Result<()> {
        self.encode(x, 0, codes, absmax, &Exec::new())
    }

    /// Quantizes as [`CheckedBlockwise::quantize_into`] values of which the first has the number `first` in the whole.
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
            return Err(Error::shape("bytes of codes, and blocks", want, (codes.len(), absmax.len())));
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
            // As many blocks at once as make a piece, or a part of one.
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
                // The next piece comes while codes are found.
                let mut next = values.get((p + 1) * piece..).unwrap_or_default().chunks(STEP);
                // Whole blocks, or parts of one.
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
                                self.map().encode_drawn(isa, part, *scale, |i| draw(key, at + i as u64), out);
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

    /// Returns the number of values of one unit of work: whole blocks, an even number of values.
    fn unit(&self) -> usize {
        let blocks = (UNIT / self.block()).max(1);
        self.block() * if (self.block() * blocks).is_multiple_of(2) { blocks } else { blocks + 1 }
    }

    pub(super) fn finish(&self, len: usize, dtype: DType, codes: Vec<u8>, absmax: Vec<f32>) -> Result<Quantized> {
        let scales = if self.0.nested { nest(absmax)? } else { Scales::Plain(absmax) };
        Quantized::from_parts(self.map().clone(), self.block(), len, dtype, codes, scales)
    }

    /// Returns a quantizer that takes values a piece at a time.
    pub fn stream<T: Element>(&self) -> Stream<T> {
        Stream::new(self.clone())
    }
}

/// Quantizes scales: less their mean, by the signed dynamic map in blocks of [`NESTED_BLOCK`]. Errors if a difference is not finite.
fn nest(scales: Vec<f32>) -> Result<Scales> {
    let mean = scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let differences: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let inner = Blockwise::dynamic().block(NESTED_BLOCK).quantize_values(&differences)?;
    Ok(Scales::Nested { codes: inner.codes().to_vec(), absmax: inner.absmax().to_vec(), offset })
}

/// Uniform in 0 to 1 (without 1), by key and index (SplitMix64).
fn draw(key: u64, index: u64) -> f32 {
    (mix(key.wrapping_add(index.wrapping_mul(GAMMA))) >> 40) as f32 / (1u32 << 24) as f32
}

/// The step of SplitMix64's counter.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer. Seeds pass through it before anything is added: those of neighbours would give related draws.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
