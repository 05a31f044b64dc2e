//! [`RowwiseInt8`]: rows of 8-bit integers with a scale each, as LLM.int8 (arXiv 2208.07339, section 2.2) stores weights.

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

/// Codes are multiplied by this when they are dequantized, as bitsandbytes does; the paper divides by 127.
const STEP: f32 = 7.874_016e-3;

/// Added to codes for the kernels, which take unsigned ones.
const MIDDLE: u8 = 128;

/// A matrix `[out_features, in_features]`: a weight is `code * absmax / 127`, where `absmax` is the largest magnitude of its row.
///
/// Stored as the codes under the matrix' own name (i8, `[rows, cols]`) and `SCB` (f32, `[rows]`); see
/// `tersor_blockwise::bitsandbytes::write_int8` for bitsandbytes' names.
#[derive(Clone, Debug, PartialEq)]
pub struct RowwiseInt8 {
    shape: [usize; 2],
    panels: Panels,
    absmax: Vec<f32>,
}

impl RowwiseInt8 {
    /// The kind in specifications.
    pub const KIND: &'static str = "rowwise_int8";

    /// Puts together what was stored: codes row by row, and the largest magnitude of each row. Error when a length is wrong, or a magnitude is
    /// negative or not finite.
    pub fn from_parts(codes: Vec<i8>, absmax: Vec<f32>, shape: [usize; 2]) -> Result<Self> {
        let want = (elements(shape)?, shape[0]);
        if (codes.len(), absmax.len()) != want {
            return Err(Error::shape("codes and scales of a matrix", want, (codes.len(), absmax.len())));
        }
        if let Some(row) = absmax.iter().position(|s| !s.is_finite() || *s < 0.0) {
            return Err(Error::NonFinite { row, col: 0, value: absmax[row] });
        }
        let shifted: Vec<u8> = codes.iter().map(|c| (*c as u8).wrapping_add(MIDDLE)).collect();
        let fit = |row: usize, _| (absmax.get(row).copied().unwrap_or(0.0) / MAX_CODE, MIDDLE);
        let panels = Panels::new(Isa::detect(), &shifted, 8, shape, shape[1].max(1), fit)?;
        Ok(Self { shape, panels, absmax })
    }

    /// The largest magnitude of each row.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The codes, row by row.
    pub fn codes(&self) -> Vec<i8> {
        let mut out = Vec::with_capacity(self.shape[0] * self.shape[1]);
        let mut row = vec![0u8; self.shape[1]];
        for r in 0..self.shape[0] {
            self.panels.row_codes(r, &mut row);
            out.extend(row.iter().map(|c| c.wrapping_sub(MIDDLE) as i8));
        }
        out
    }

    /// Writes codes and largest magnitudes under these two names; the rows are the block `at` of a matrix.
    pub fn save_as(&self, names: [&str; 2], at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let codes: Vec<u8> = self.codes().iter().map(|c| *c as u8).collect();
        let absmax: Vec<u8> = self.absmax.iter().flat_map(|v| v.to_le_bytes()).collect();
        let [w, s] = Self::infos([at.total, self.shape[1]]);
        sink.write_rows(names[0], &w, at.first, &codes)?;
        sink.write_rows(names[1], &s, at.first, &absmax)
    }

    /// Reads codes and largest magnitudes that are stored under these two names. Errors as [`RowwiseInt8::from_parts`], or if a tensor is
    /// missing or misshapen.
    pub fn load_as(names: [&str; 2], shape: [usize; 2], source: &dyn TensorSource) -> Result<Self> {
        elements(shape)?;
        let [w, s] = Self::infos(shape);
        let codes = read_expected(source, names[0], w.dtype, &w.shape)?;
        let absmax = read_floats(source, names[1], &s.shape)?;
        let codes = codes.into_iter().map(|c| c as i8).collect();
        Self::from_parts(codes, absmax, shape).map_err(|e| e.in_tensor(names[1]))
    }

    fn infos([rows, cols]: [usize; 2]) -> [TensorInfo; 2] {
        [TensorInfo { dtype: DType::I8, shape: vec![rows, cols] }, TensorInfo { dtype: DType::F32, shape: vec![rows] }]
    }

    /// Returns the tensors that a matrix of this shape is stored in.
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
            // The product with the code would leave f32, and the last step may by a rounding.
            let most = f64::from(f32::MAX);
            let value = |c: &u8| (f64::from(code(c)) * f64::from(max) * f64::from(STEP)).clamp(-most, most) as f32;
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
