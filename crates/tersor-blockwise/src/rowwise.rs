//! Rows of 8-bit integers with a scale each, as LLM.int8 (arXiv 2208.07339, section 2.2) stores weights.

use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use tersor_core::op;
use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::view::elements;
use tersor_core::{
    Compressed, Context, DType, Element, Error, Exec, Input, IntoMat, Layout, LinearOp, MatViewMut, Method, OpSpec,
    Prepared, Registry, Report, Result, RowSlot, RowSource, StatNeeds, StatSet, TensorInfo, TensorSink, TensorSource,
    check_finite, read_finite,
};
use tersor_kernels::dense::Write;
use tersor_kernels::integer::{Activations, Panels};

/// The largest code.
const MOST: f32 = 127.0;

/// bitsandbytes multiplies with this where the paper divides by 127.
const STEP: f32 = 7.874_016e-3;

/// What kernels add to codes, so that they are unsigned.
const MIDDLE: u8 = 128;

/// A matrix `[out_features, in_features]`: a weight is `code * absmax / 127`, where `absmax` is the largest magnitude of its row.
///
/// Stored as the codes under the matrix' own name (i8, `[rows, cols]`) and `SCB` (f32, `[rows]`); see
/// [`write_int8`](crate::bitsandbytes::write_int8) for bitsandbytes' names.
#[derive(Clone, Debug, PartialEq)]
pub struct RowwiseInt8 {
    shape: [usize; 2],
    panels: Panels,
    absmax: Vec<f32>,
}

impl RowwiseInt8 {
    /// The kind in specifications.
    pub const KIND: &'static str = "rowwise_int8";

    /// Quantizes a matrix. Error on a value that is not finite. A row whose largest magnitude is below 127 over the largest float counts as zeros.
    pub fn quantize<T: Element>(w: &impl IntoMat<T>) -> Result<Self> {
        w.with_mat(|m| Self::of(&m.to_f32(), m.shape()))
    }

    fn of(w: &[f32], shape: [usize; 2]) -> Result<Self> {
        let cols = shape[1].max(1);
        check_finite(w, cols, 0)?;
        let (mut codes, mut absmax) = (vec![0i8; w.len()], vec![0f32; shape[0]]);
        for ((row, out), absmax) in w.chunks(cols).zip(codes.chunks_mut(cols)).zip(&mut absmax) {
            let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = MOST / most;
            if scale.is_finite() {
                *absmax = most;
                out.iter_mut().zip(row).for_each(|(c, v)| *c = (v * scale).round_ties_even() as i8);
            }
        }
        Self::from_parts(codes, absmax, shape)
    }

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
        let fit = |row: usize, _| (absmax.get(row).copied().unwrap_or(0.0) / MOST, MIDDLE);
        let panels = Panels::new(&shifted, 8, shape, shape[1].max(1), fit);
        let panels = panels.ok_or_else(|| Error::shape("bytes of codes", want.0, shifted.len()))?;
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

    pub(crate) fn write(&self, names: [&str; 2], at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let codes: Vec<u8> = self.codes().iter().map(|c| *c as u8).collect();
        let absmax: Vec<u8> = self.absmax.iter().flat_map(|v| v.to_le_bytes()).collect();
        let [w, s] = Self::infos([at.total, self.shape[1]]);
        sink.write_rows(names[0], &w, at.first, &codes)?;
        sink.write_rows(names[1], &s, at.first, &absmax)
    }

    pub(crate) fn read(names: [&str; 2], shape: [usize; 2], source: &dyn TensorSource) -> Result<Self> {
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

    fn layout(shape: [usize; 2]) -> Layout {
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

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let mut codes = vec![0u8; self.shape[1]];
        for (r, out) in rows.zip(out.chunks_exact_mut(self.shape[1].max(1))) {
            self.panels.row_codes(r, &mut codes);
            let most = self.absmax[r];
            out.iter_mut().zip(&codes).for_each(|(v, c)| *v = f32::from(c.wrapping_sub(MIDDLE) as i8) * most * STEP);
        }
        Ok(())
    }

    fn apply_add(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        op::multiply(&self.panels, self.shape, x, y, Write::Add, exec)
    }

    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        op::multiply(&self.panels, self.shape, x, y, Write::Set, exec)
    }

    fn integer<'w>(&'w self, x: &Input<'_>, exec: &Exec) -> Result<Option<(Rc<Activations>, &'w Panels)>> {
        Ok(Some((x.activations(exec.isa(), self.panels.padding())?, &self.panels)))
    }

    fn spec(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]])
    }

    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.write([prefix, &join(prefix, "SCB")], at, sink)
    }
}

/// Reopens a matrix. Error as of [`RowwiseInt8::from_parts`].
pub(crate) fn load(spec: &OpSpec, prefix: &str, source: &dyn TensorSource, _: &Registry) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(RowwiseInt8::read([prefix, &join(prefix, "SCB")], spec.shape, source)?))
}

/// The method that makes [`RowwiseInt8`] of matrices: it has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LlmInt8;

impl Method for LlmInt8 {
    fn name(&self) -> String {
        "int8".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds::default()
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        elements(shape)?;
        Ok(RowwiseInt8::layout(shape))
    }

    fn prepare<'s>(&'s self, _: Option<&StatSet>, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(*self))
    }
}

impl Prepared for LlmInt8 {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let start = Instant::now();
        let values = read_finite(w, rows.clone())?;
        let op = RowwiseInt8::of(&values, [rows.len(), w.shape()[1]])?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back)?;
        Ok(Compressed { op: Box::new(op), report: Report::of(&values, &back, start.elapsed()) })
    }
}
