//! [`IntegerRows`]: cached rows as integers with a scale and a minimum per token.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use tersor_core::cache::{CacheLoading, Prepared, copy_rows};
use tersor_core::tensors::{join, read_expected};
use tersor_core::{
    Bits, DType, Error, Exec, KvStore, MatView, OpSpec, ParamError, Result, Rotation, TensorInfo, TensorSink,
    check_finite,
};
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::{Isa, bits, cached_rows, vector};

use super::{merged, retain_rows};

/// A store of the cached keys, or the cached values, of one attention head as integers. The row of a token is cut into parts of given
/// widths. Each part has its own number of bits, and in each row a scale and a minimum in f16: a value is `minimum + scale * code`. With a
/// rotation, rows are rotated before they are quantized, queries are rotated alike, and weighted sums of values are rotated back.
///
/// The bytes of a row are those of its parts, one after the other: packed codes, scale, minimum. Saved as the tensor `rows` (u8,
/// `[tokens, bytes of a row]`) and, with a rotation, its tensors under `rotation`.
///
/// ```
/// use tersor_core::{KvStore, MatView};
/// use tersor_operators::{Exec, IntegerRows};
/// # fn main() -> tersor_operators::Result<()> {
/// // Four dimensions in 2 bits, then two in 8 bits.
/// let mut store = IntegerRows::new(&[(4, 2), (2, 8)], None)?;
/// let row = [0.0, 1.0, 2.0, 3.0, -1.0, 1.0];
/// let block = MatView::new(&row, [1, 6])?;
/// store.admit(block)?;
/// store.append(block, &[0], &Exec::new());
/// assert_eq!(store.bytes(), (1 + 4) + (2 + 4));
/// let mut back = [0.0; 6];
/// store.read(0..1, &mut back, &Exec::new())?;
/// assert_eq!(back[..4], row[..4]);
/// # Ok(())
/// # }
/// ```
pub struct IntegerRows {
    /// Width and bits of each part.
    parts: Vec<(usize, u32)>,
    dim: usize,
    rotation: Option<Arc<Rotation>>,
    bytes: Vec<u8>,
}

impl IntegerRows {
    /// The `kind` of this store in an [`OpSpec`], the description of a store without its rows. A `CacheRegistry` finds the store's loader
    /// by it.
    pub const KIND: &'static str = "integer-rows";

    /// Returns a store without tokens. `parts` has the width (the number of values) and the bits of each part of a row, in order; a row has
    /// as many values as all parts together. Rows are rotated by `rotation`, if there is one, before they are quantized. Errors if there is
    /// no part, a width is 0, bits are not 1 to 8, a row does not fit the address space, or the rotation does not have the width of a row.
    pub fn new(parts: &[(usize, u32)], rotation: Option<Arc<Rotation>>) -> Result<Self> {
        let mut dim = 0usize;
        for &(n, b) in parts {
            Bits::new(b)?;
            dim = dim.checked_add(n).filter(|_| n > 0).ok_or_else(|| {
                ParamError::new("part of a cached row", n, "must be at least 1 and fit the address space")
            })?;
        }
        if parts.is_empty() {
            return Err(Error::shape("parts of a cached row", "at least one", 0));
        }
        if let Some(r) = rotation.as_ref().filter(|r| r.dim() != dim) {
            return Err(Error::shape("rotation of cached rows", dim, r.dim()));
        }
        tersor_core::view::elements([dim, 2])?;
        Ok(Self { parts: parts.to_vec(), dim, rotation, bytes: Vec::new() })
    }

    fn row_bytes(&self) -> usize {
        cached_rows::row_bytes(&self.parts)
    }

    /// Errors if a scale or minimum of a row, in the basis of the stored rows, does not fit f16.
    fn check_ranges(&self, isa: Isa, values: &[f32], row: usize) -> Result<()> {
        let mut rest = values;
        for (group, &(n, b)) in self.parts.iter().enumerate() {
            let (part, after) = rest.split_at(n.min(rest.len()));
            rest = after;
            let (lo, hi) = affine::min_max(isa, part);
            let [scale, minimum] = grid(lo, hi, b);
            if !scale.is_finite() || !minimum.is_finite() {
                return Err(Error::ScaleRange { row, group, value: hi - lo, dtype: "F16" });
            }
        }
        Ok(())
    }

    /// Appends the stored form of a row in the basis of the stored rows.
    fn encode(&self, isa: Isa, row: &[f32], codes: &mut Vec<u8>, shifted: &mut Vec<f32>, out: &mut Vec<u8>) {
        let mut rest = row;
        for &(n, b) in &self.parts {
            let (part, after) = rest.split_at(n.min(rest.len()));
            rest = after;
            let (lo, hi) = affine::min_max(isa, part);
            let [scale, minimum] = grid(lo, hi, b);
            codes.clear();
            codes.resize(part.len(), 0);
            let (step, offset) = (scale.to_f32(), minimum.to_f32());
            if step > 0.0 {
                shifted.clear();
                shifted.extend(part.iter().map(|v| v - offset));
                affine::quantize(isa, shifted, Affine { scale: step, zero: 0 }, 0..=max_code(b), codes);
            }
            let at = out.len();
            out.resize(at + bits::packed_len(part.len(), b), 0);
            bits::pack(isa, codes, b, &mut out[at..]);
            out.extend(scale.to_le_bytes());
            out.extend(minimum.to_le_bytes());
        }
    }
}

fn max_code(bits: u32) -> u8 {
    u8::MAX >> (8 - bits.clamp(1, 8))
}

/// The scale and the minimum of values from `lo` to `hi`. Both are rounded to f16 before codes are chosen, the scale up so that the range is covered.
fn grid(lo: f32, hi: f32, bits: u32) -> [f16; 2] {
    let minimum = f16::from_f32(lo);
    let step = (hi - minimum.to_f32()).max(0.0) / f32::from(max_code(bits));
    let mut scale = f16::from_f32(step);
    if scale.to_f32() < step {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    [scale, minimum]
}

/// Magnitude below which any scale and minimum fit f16: the range is at most twice as much.
const SAFE: f32 = 30_000.0;

impl KvStore for IntegerRows {
    fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }
    fn dim(&self) -> usize {
        self.dim
    }
    fn admit(&self, block: MatView<'_, f32>) -> Result<()> {
        let isa = Isa::detect();
        for t in 0..block.shape()[0] {
            let row = block.row(t);
            check_finite(&row, self.dim, t)?;
            match &self.rotation {
                // A rotation does not change the norm, which no coordinate exceeds.
                Some(_) if vector::dot(isa, &row, &row) < SAFE * SAFE => {}
                Some(rotation) => {
                    let mut row = row.into_owned();
                    rotation.forward(isa, &mut row);
                    self.check_ranges(isa, &row, t)?;
                }
                None => self.check_ranges(isa, &row, t)?,
            }
        }
        Ok(())
    }
    fn append(&mut self, block: MatView<'_, f32>, _: &[u32], exec: &Exec) {
        let isa = exec.isa();
        let (mut codes, mut shifted, mut rotated) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = std::mem::take(&mut self.bytes);
        for t in 0..block.shape()[0] {
            let row = block.row(t);
            match &self.rotation {
                Some(rotation) => {
                    rotated.clear();
                    rotated.extend_from_slice(&row);
                    rotation.forward(isa, &mut rotated);
                    self.encode(isa, &rotated, &mut codes, &mut shifted, &mut bytes);
                }
                None => self.encode(isa, &row, &mut codes, &mut shifted, &mut bytes),
            }
        }
        self.bytes = bytes;
    }
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        let stored = self.row_bytes();
        let bytes = &self.bytes[rows.start * stored..rows.end * stored];
        Ok(cached_rows::dequantize(exec.isa(), bytes, &self.parts, out)?)
    }
    fn read(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.decode(rows, out, exec)?;
        self.finish(out, exec);
        Ok(())
    }
    fn prepare(&self, queries: MatView<'_, f32>, scale: f32, out: &mut Prepared, exec: &Exec) -> Result<()> {
        copy_rows(queries, &mut out.floats)?;
        if let Some(rotation) = &self.rotation {
            rotation.forward(exec.isa(), &mut out.floats);
        }
        vector::scale(exec.isa(), scale, &mut out.floats);
        Ok(())
    }
    fn finish(&self, out: &mut [f32], exec: &Exec) {
        if let Some(rotation) = &self.rotation {
            rotation.inverse(exec.isa(), out);
        }
    }
    fn retain(&mut self, keep: &[u32]) -> Result<()> {
        let stored = self.row_bytes();
        retain_rows(&mut self.bytes, stored, keep)
    }
    fn merge(&mut self, into: u32, own: f32, from: &[(u32, f32)], exec: &Exec) -> Result<()> {
        let (row, stored) = (merged(self, into, own, from, exec)?, self.row_bytes());
        self.check_ranges(exec.isa(), &row, into as usize)?;
        let mut bytes = Vec::with_capacity(stored);
        self.encode(exec.isa(), &row, &mut Vec::new(), &mut Vec::new(), &mut bytes);
        self.bytes[into as usize * stored..(into as usize + 1) * stored].copy_from_slice(&bytes);
        Ok(())
    }
    fn truncate(&mut self, rows: usize) -> Result<()> {
        self.bytes.truncate(rows.saturating_mul(self.row_bytes()));
        Ok(())
    }
    fn clear(&mut self) {
        self.bytes.clear();
    }
    fn bytes(&self) -> usize {
        self.bytes.len()
    }
    fn spec(&self) -> OpSpec {
        let parts: Vec<String> = self.parts.iter().map(|(n, b)| format!("{n}x{b}")).collect();
        let spec = OpSpec::new(Self::KIND, [self.len(), self.dim]).text("parts", &parts.join(" "));
        match &self.rotation {
            Some(r) => spec.part("rotation", r.describe(OpSpec::new("rotation", [self.dim; 2]))),
            None => spec,
        }
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let info = TensorInfo { dtype: DType::U8, shape: vec![self.len(), self.row_bytes()] };
        sink.write_shared(&join(prefix, "rows"), &info, &self.bytes)?;
        match &self.rotation {
            Some(r) => r.save(&join(prefix, "rotation"), sink),
            None => Ok(()),
        }
    }
}

pub(super) fn load(spec: &OpSpec, prefix: &str, loading: &CacheLoading<'_>) -> Result<Box<dyn KvStore>> {
    let text = spec.get_text("parts")?;
    let part = |s: &str| -> Option<(usize, u32)> {
        let (n, b) = s.split_once('x')?;
        Some((n.parse().ok()?, b.parse().ok()?))
    };
    let parts: Option<Vec<_>> = text.split(' ').map(part).collect();
    let parts =
        parts.ok_or_else(|| Error::Unsupported { what: "parts of a cached row", value: format!("`{text}`") })?;
    let rotation = match spec.parts.get("rotation") {
        Some(r) => Some(Arc::new(Rotation::load(r, &join(prefix, "rotation"), loading.source())?)),
        None => None,
    };
    let mut store = IntegerRows::new(&parts, rotation)?;
    if store.dim() != spec.shape[1] {
        return Err(Error::shape("parts of a cached row", spec.shape[1], store.dim()));
    }
    let stored = store.row_bytes();
    store.bytes = read_expected(loading.source(), &join(prefix, "rows"), DType::U8, &[spec.shape[0], stored])?;
    for (row, bytes) in store.bytes.chunks_exact(stored).enumerate() {
        let mut at = 0;
        for (group, &(n, b)) in store.parts.iter().enumerate() {
            at += bits::packed_len(n, b) + 4;
            let half = |i: usize| f16::from_le_bytes([bytes[at - i], bytes[at - i + 1]]);
            if let Some(bad) = [half(4), half(2)].iter().find(|v| !v.is_finite()) {
                return Err(Error::ScaleRange { row, group, value: bad.to_f32(), dtype: "F16" });
            }
        }
    }
    Ok(Box::new(store))
}
