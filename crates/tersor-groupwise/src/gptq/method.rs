//! GPTQ as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    ColumnCoder, Compressed, Context, DType, Extent, Layout, Method, Prepared, Report, Result, RowSource, StatNeeds,
    StatSet, TensorInfo, read_masked,
};
use tersor_linalg::{Gram, HessianFactor};
use tersor_operators::GroupedLinear;

use super::CheckedGptq;
use crate::coder::in_own_order;

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
    /// Returns the factor that all matrices of a site share. Errors if the statistics have no Gram matrix, or as [`CheckedGptq::factor`].
    pub(crate) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        let (gram, features) = (stats.require_gram()?, stats.features());
        let factor = self.factor(gram, features)?;
        // The layout promised an order: without a factor it is the natural one.
        let natural = || (0..features as u32).collect();
        let order = self.permutes().then(|| factor.order().map_or_else(natural, <[u32]>::to_vec));
        Ok(Ready { method: self, factor, order, tokens: stats.tokens(), gram: Gram::new(gram, features, 1.0)? })
    }
}

/// The factor of a site, for all its matrices.
pub(crate) struct Ready<'s> {
    method: &'s CheckedGptq,
    factor: HessianFactor,
    /// The order in which the result is stored, where it is not the matrix' own.
    order: Option<Vec<u32>>,
    tokens: u64,
    gram: Gram,
}

impl Ready<'_> {
    /// Quantizes rows; of a method that stores columns in another order, in that.
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
        let done = cx.run(|| self.method.grouped(&values, shape, mask.as_ref(), factor, rows.start, &cx.exec));
        let (op, mut report) = done?;
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
        Ok(Compressed { op: in_own_order(op, self.order.as_deref())?, report })
    }
}
