//! Rows of values as integers, one after the other.

use std::ops::Range;

use half::f16;
use tersor_core::{Error, Result};
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::{Isa, bits};

/// Rows, each in parts of their own width and bits. A part is packed codes, a scale and a minimum: a value is `minimum + scale * code`.
pub(super) struct Rows {
    parts: Vec<(usize, u32)>,
    bytes: Vec<u8>,
}

/// Bytes of a row.
pub(super) fn row_bytes(parts: &[(usize, u32)]) -> usize {
    parts.iter().map(|(n, b)| bits::packed_len(*n, *b) + 4).sum()
}

impl Rows {
    pub fn new(parts: Vec<(usize, u32)>) -> Self {
        Self { parts, bytes: Vec::new() }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn truncate(&mut self, rows: usize) {
        self.bytes.truncate(rows * row_bytes(&self.parts));
    }

    /// Packs a row. Error, with nothing added, when a value is not finite or f16 cannot hold the range.
    pub fn push(&mut self, isa: Isa, row: &[f32]) -> Result<()> {
        let before = self.bytes.len();
        let mut rest = row;
        for &(n, b) in &self.parts {
            let (part, after) = rest.split_at(n.min(rest.len()));
            rest = after;
            if let Err(e) = pack(isa, part, b, &mut self.bytes) {
                self.bytes.truncate(before);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Rows in f32, as many as fill `out`.
    pub fn read(&self, isa: Isa, rows: Range<usize>, out: &mut [f32]) {
        let (width, stored) = (self.parts.iter().map(|p| p.0).sum::<usize>(), row_bytes(&self.parts));
        let bytes = self.bytes.get(rows.start * stored..).unwrap_or_default();
        let mut codes = vec![0u8; width];
        for (row, bytes) in out.chunks_exact_mut(width.max(1)).zip(bytes.chunks_exact(stored.max(1))).take(rows.len()) {
            let (mut at, mut first) = (0, 0);
            for &(n, b) in &self.parts {
                let len = bits::packed_len(n, b);
                let half = |i: usize| f16::from_le_bytes([bytes[at + i], bytes[at + i + 1]]).to_f32();
                bits::unpack(isa, &bytes[at..at + len], b, 0, &mut codes[..n]);
                affine::dequantize_with_offset(
                    isa,
                    &codes[..n],
                    [half(len), half(len + 2)],
                    &mut row[first..first + n],
                );
                at += len + 4;
                first += n;
            }
        }
    }
}

/// Scale and minimum are rounded to f16 before the codes, the scale so that the range is not cut.
fn pack(isa: Isa, part: &[f32], b: u32, out: &mut Vec<u8>) -> Result<()> {
    let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
    for (i, v) in part.iter().enumerate() {
        if !v.is_finite() {
            return Err(Error::NonFinite { row: 0, col: i, value: *v });
        }
        (lo, hi) = (lo.min(*v), hi.max(*v));
    }
    let most = ((1u32 << b) - 1) as f32;
    let least = f16::from_f32(lo);
    let range = (hi - least.to_f32()).max(0.0) / most;
    let mut scale = f16::from_f32(range);
    if scale.to_f32() < range {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if !least.is_finite() || !scale.is_finite() {
        return Err(Error::ScaleRange { row: 0, group: 0, value: hi - lo, dtype: "F16" });
    }
    let mut codes = vec![0u8; part.len()];
    let (scale_f32, least_f32) = (scale.to_f32(), least.to_f32());
    if scale_f32 > 0.0 {
        let above: Vec<f32> = part.iter().map(|v| v - least_f32).collect();
        affine::quantize(isa, &above, Affine { scale: scale_f32, zero: 0 }, 0..=most as u8, &mut codes);
    }
    let at = out.len();
    out.resize(at + bits::packed_len(part.len(), b), 0);
    bits::pack(isa, &codes, b, &mut out[at..]);
    out.extend(scale.to_le_bytes());
    out.extend(least.to_le_bytes());
    Ok(())
}
