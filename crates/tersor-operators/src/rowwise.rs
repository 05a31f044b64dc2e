//! [`RowwiseInt8`]: rows of 8-bit integers with one scale each, as LLM.int8 stores weights (arXiv 2208.07339, section 2.2).

use std::ops::Range;

use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::view::elements;
use tersor_core::{
    DType, Error, Exec, GemmTask, Input, Isa, Layout, LinearOp, Loading, MatViewMut, OpSpec, Result, RowSlot,
    TensorInfo, TensorSink, TensorSource, Write,
};
use tersor_kernels::integer::Panels;

use crate::integer::{multiply, task};

/// The largest code.
const MAX_CODE: f32 = 127.0;

/// Factor of `code * absmax` when dequantizing, 1 / 127 as rounded by bitsandbytes.
const STEP: f32 = 7.874_016e-3;

/// Added to signed codes: the kernels take unsigned ones.
const MIDDLE: u8 = 128;

/// A matrix `[out_features, in_features]` of signed 8-bit codes with one scale for each row: `weight = code * absmax / 127`, with `absmax`
/// the largest magnitude of the row (LLM.int8, arXiv 2208.07339, section 2.2).
///
/// Stored as the codes under the operator's own name (i8, `[rows, cols]`) and `SCB` (f32, `[rows]`, the largest magnitudes). For
/// bitsandbytes' names see `tersor_blockwise::bitsandbytes::write_int8`.
///
/// ```
/// use tersor_operators::{Exec, LinearOp, RowwiseInt8};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = RowwiseInt8::from_parts(vec![127, -127], vec![2.0], [1, 2])?;
/// let mut row = [0f32; 2];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert!((row[0] - 2.0).abs() < 1e-5 && (row[1] + 2.0).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RowwiseInt8 {
    shape: [usize; 2],
    panels: Panels,
    absmax: Vec<f32>,
}

impl RowwiseInt8 {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "rowwise_int8";

    /// Returns the matrix of the given shape, `[rows, cols]`, with the signed `codes`, `[rows, cols]` row-major, and the largest magnitude
    /// of each row, `absmax`, `[rows]`. Errors if a length is wrong, or a magnitude is negative or not finite.
    pub fn from_parts(codes: Vec<i8>, absmax: Vec<f32>, shape: [usize; 2]) -> Result<Self> {
        let want = (elements(shape)?, shape[0]);
        if (codes.len(), absmax.len()) != want {
            return Err(Error::shape("codes and scales of a matrix", want, (codes.len(), absmax.len())));
        }
        if let Some(row) = absmax.iter().position(|s| !s.is_finite() || *s < 0.0) {
            return Err(Error::NonFinite { row, col: 0, value: absmax[row] });
        }
        let shifted: Vec<u8> = codes.iter().map(|c| (*c as u8).wrapping_add(MIDDLE)).collect();
        let params = |row: usize, _| (absmax.get(row).copied().unwrap_or(0.0) / MAX_CODE, MIDDLE);
        let panels = Panels::new(Isa::detect(), &shifted, 8, shape, shape[1].max(1), params)?;
        Ok(Self { shape, panels, absmax })
    }

    /// Returns the largest magnitude of each row, `[rows]`: the weight that code 127 stands for.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Returns the signed codes, `[rows, cols]` row-major.
    pub fn codes(&self) -> Vec<i8> {
        let mut out = Vec::with_capacity(self.shape[0] * self.shape[1]);
        let mut row = vec![0u8; self.shape[1]];
        for r in 0..self.shape[0] {
            self.panels.row_codes(r, &mut row);
            out.extend(row.iter().map(|c| c.wrapping_sub(MIDDLE) as i8));
        }
        out
    }

    /// Writes the codes to the tensor `names[0]` (i8, `[rows, cols]`) and the largest magnitudes of rows to `names[1]` (f32, `[rows]`). The
    /// rows of this matrix become those from number `at.first` on, counted from 0, of a stored matrix with `at.total` rows; with
    /// `RowSlot::whole(rows)` the stored matrix is this one alone. Errors if `sink` does, for example because the rows do not lie inside of
    /// the stored matrix.
    pub fn save_as(&self, names: [&str; 2], at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let codes: Vec<u8> = self.codes().iter().map(|c| *c as u8).collect();
        let absmax: Vec<u8> = self.absmax.iter().flat_map(|v| v.to_le_bytes()).collect();
        let [w, s] = Self::infos([at.total, self.shape[1]]);
        sink.write_rows(names[0], &w, at.first, &codes)?;
        sink.write_rows(names[1], &s, at.first, &absmax)
    }

    /// Reads a matrix of the given shape, `[rows, cols]`, from `source`: the codes from the tensor `names[0]` (i8, `[rows, cols]`), the
    /// largest magnitudes of rows from `names[1]` (f32, `[rows]`). Errors if a tensor is missing or has another type or shape, or a
    /// magnitude is negative or not finite.
    pub fn load_as(names: [&str; 2], shape: [usize; 2], source: &dyn TensorSource) -> Result<Self> {
        elements(shape)?;
        let [w, s] = Self::infos(shape);
        let codes = read_expected(source, names[0], w.dtype, &w.shape)?;
        let absmax = read_floats(source, names[1], &s.shape)?;
        let codes = codes.into_iter().map(|c| c as i8).collect();
        Self::from_parts(codes, absmax, shape).map_err(|e| e.in_tensor(names[1]))
    }

    /// Returns the types and shapes of codes and magnitudes.
    fn infos([rows, cols]: [usize; 2]) -> [TensorInfo; 2] {
        [TensorInfo { dtype: DType::I8, shape: vec![rows, cols] }, TensorInfo { dtype: DType::F32, shape: vec![rows] }]
    }

    /// Returns the name, type and shape of each tensor that stores a matrix of the shape `[rows, cols]`: the codes, with an empty name that
    /// stands for the operator's own (i8, `[rows, cols]`), and `SCB`, the largest magnitudes of rows (f32, `[rows]`). Does not fail;
    /// [`Layout::bits`] errors later if a size overflows.
    pub fn layout(shape: [usize; 2]) -> Layout {
        let [w, s] = Self::infos(shape);
        Layout { tensors: vec![(String::new(), w), ("SCB".into(), s)], exact: true }
    }
}

impl LinearOp for RowwiseInt8 {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn storage_bits(&self) -> u64 {
        Self::layout(self.shape).bits().unwrap_or(u64::MAX)
    }

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let mut codes = vec![0u8; self.shape[1]];
        for (r, out) in rows.zip(out.chunks_exact_mut(self.shape[1].max(1))) {
            self.panels.row_codes(r, &mut codes);
            let max = self.absmax[r];
            let code = |c: &u8| c.wrapping_sub(MIDDLE) as i8;
            if max <= f32::MAX / 128.0 {
                out.iter_mut().zip(&codes).for_each(|(v, c)| *v = f32::from(code(c)) * max * STEP);
                continue;
            }
            // `code * absmax` overflows f32: computed in f64, and limited because rounding may exceed the largest f32.
            let max_value = f64::from(f32::MAX);
            let value =
                |c: &u8| (f64::from(code(c)) * f64::from(max) * f64::from(STEP)).clamp(-max_value, max_value) as f32;
            out.iter_mut().zip(&codes).for_each(|(v, c)| *v = value(c));
        }
        Ok(())
    }

    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        multiply(&self.panels, self.shape, x, y, write, exec)
    }

    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        task(&self.panels, x, exec)
    }

    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]])
    }

    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.save_as([prefix, &join(prefix, "SCB")], at, sink)
    }
}

/// Loads a matrix. Errors as [`RowwiseInt8::from_parts`].
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(RowwiseInt8::load_as([prefix, &join(prefix, "SCB")], spec.shape, loading.source())?))
}
