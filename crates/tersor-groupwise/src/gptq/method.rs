//! GPTQ as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    ColumnCoder, Compressed, Context, DType, Element, Error, Extent, IntoMat, Layout, LinearOp, Method, Prepared,
    Report, Result, RowSource, StatNeeds, StatSet, TensorInfo, check_finite, read_masked,
};
use tersor_linalg::{Gram, HessianFactor};
use tersor_operators::GroupedLinear;

use super::CheckedGptq;
use crate::coder::with_column_order;

impl Method for CheckedGptq {
    fn name(&self) -> String {
        "gptq".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { gram: true, ..StatNeeds::default() }
    }

    fn extent(&self) -> Extent {
        self.rtn.extent()
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        let grouped = self.rtn.layout(shape)?;
        if !self.permutes() {
            return Ok(grouped);
        }
        let mut layout = grouped.nested("op");
        layout.tensors.push(("order".into(), TensorInfo { dtype: DType::U32, shape: vec![shape[1]] }));
        Ok(layout)
    }

    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(self.ready(stats)?))
    }

    fn plain(&self) -> Option<&dyn Method> {
        self.rtn.plain()
    }

    fn coder<'s>(
        &'s self,
        w: &'s dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Option<Result<Box<dyn ColumnCoder + 's>>> {
        self.rtn.coder(w, rows, cx)
    }
}

impl CheckedGptq {
    /// Quantizes `w`, `[out_features, in_features]`, with the factored Hessian `factor` of its inputs, which [`CheckedGptq::factor`] made.
    /// Matrices with the same inputs can share a factor, also for other bits or group sizes, but only with the same
    /// [`Gptq::act_order`](super::Gptq::act_order), since the factor holds the order of the columns. If the factorization failed, weights
    /// are rounded to nearest. `cx` has the instruction set and threads to compute with.
    ///
    /// Returns the operator, and a report with the squared errors of weights and outputs; it lacks the sum of squares of the original
    /// outputs ([`Report::data_energy`] is None), and the error of the outputs if the factorization failed. Errors if the factor has
    /// another number of features, or was made with another `act_order`, a weight is not finite, a scale becomes infinite or 0 in its
    /// stored type, the group size is not allowed for `w` (see [`Gptq::group`](super::Gptq::group)), or the propagated errors overflow f32.
    pub fn quantize_with<T: Element>(
        &self,
        w: &impl IntoMat<T>,
        factor: &HessianFactor,
        cx: &Context,
    ) -> Result<(Box<dyn LinearOp>, Report)> {
        w.with_mat(|m| {
            let start = Instant::now();
            let values = m.to_f32();
            check_finite(&values, m.shape()[1], 0)?;
            if factor.upper().is_some() && factor.order().is_some() != self.damping.order() {
                let found = if factor.order().is_some() { "with act_order" } else { "without act_order" };
                return Err(Error::order(
                    "columns of the Hessian factor",
                    "made with the same act_order as the method",
                    found,
                ));
            }
            let order = factor.order().filter(|_| self.permutes());
            let done = cx.run(|| self.quantize_rows(&values, m.shape(), None, (factor, order), 0, &cx.exec));
            let (op, report) = done?;
            Ok((with_column_order(op, order)?, Report { seconds: start.elapsed().as_secs_f64(), ..report }))
        })
    }

    /// Returns the method with the Hessian factor that the matrices of a site share. Errors if the statistics have no Gram matrix, or as
    /// [`CheckedGptq::factor`].
    pub(crate) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        let (gram, features) = (stats.require_gram()?, stats.features());
        let factor = self.factor(gram, features)?;
        // The layout has a tensor for the order: without a factor it holds the natural one.
        let natural = || (0..features as u32).collect();
        let order = self.permutes().then(|| factor.order().map_or_else(natural, <[u32]>::to_vec));
        Ok(Ready { method: self, factor, order, tokens: stats.tokens(), gram: Gram::new(gram, features, 1.0)? })
    }
}

/// GPTQ prepared for a site.
pub(crate) struct Ready<'s> {
    method: &'s CheckedGptq,
    factor: HessianFactor,
    /// The order in which columns are stored; `None` for the natural one.
    order: Option<Vec<u32>>,
    tokens: u64,
    gram: Gram,
}

impl Ready<'_> {
    /// Returns the squared error of the outputs, on the calibration data, of the operator that replaces the rows `values`. Errors as
    /// [`LinearOp::decompress_rows`].
    pub(crate) fn data_error(&self, op: &dyn LinearOp, values: &[f32], cx: &Context) -> Result<f64> {
        let mut errors = vec![0f32; values.len()];
        op.decompress_rows(0..op.shape()[0], &mut errors, &cx.exec)?;
        errors.iter_mut().zip(values).for_each(|(e, v)| *e = v - *e);
        cx.run(|| self.gram.loss(&errors))
    }

    /// Quantizes `rows` of `w`, with columns in the stored order. Errors as [`Prepared::compress`].
    pub(crate) fn grouped(
        &self,
        w: &dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Result<(GroupedLinear, Report)> {
        cx.cancel.check()?;
        let (start, cols) = (Instant::now(), w.shape()[1]);
        let (values, mask) = read_masked(w, rows.clone())?;
        let (shape, factor) = ([rows.len(), cols], (&self.factor, self.order.as_deref()));
        let done = cx.run(|| self.method.quantize_rows(&values, shape, mask.as_ref(), factor, rows.start, &cx.exec));
        let (op, mut report) = done?;
        if report.data_error.is_none() {
            // Rounded to nearest: columns are in their natural order.
            report.data_error = Some(self.data_error(&op, &values, cx)?);
        }
        report.seconds = start.elapsed().as_secs_f64();
        report.data_energy = Some(cx.run(|| self.gram.loss(&values))?);
        if self.tokens < cols as u64 {
            let n = self.tokens;
            report.fallbacks.push(format!("{n} tokens for {cols} features: the Hessian has rank {n} at most"));
        }
        Ok((op, report))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.grouped(w, rows, cx)?;
        Ok(Compressed { op: with_column_order(op, self.order.as_deref())?, report })
    }
}
