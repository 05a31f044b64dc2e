//! QQQ as a [`Method`].

use std::ops::Range;

use tersor_core::{
    Compressed, Context, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet, metrics,
    read_finite,
};
use tersor_operators::TableLinear;
use tersor_operators::packing::check_group;

use super::CheckedQqq;

impl Method for CheckedQqq {
    fn name(&self) -> String {
        "qqq".into()
    }

    fn needs(&self) -> StatNeeds {
        self.gptq.needs()
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        check_group(self.group, shape[1])?;
        Ok(TableLinear::layout(self.group, shape))
    }

    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(self.ready(stats)?))
    }

    fn plain(&self) -> Option<&dyn Method> {
        self.gptq.plain()
    }
}

impl CheckedQqq {
    /// Returns the method with the factor of a site. Errors as GPTQ's.
    pub(super) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        Ok(Ready(self.gptq.ready(stats)?))
    }
}

pub(super) struct Ready<'s>(crate::gptq::Ready<'s>);

impl Ready<'_> {
    /// Quantizes rows. Errors as the method's `compress`.
    pub(super) fn table(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<(TableLinear, Report)> {
        let (grouped, report) = self.0.grouped(w, rows.clone(), cx)?;
        let op = TableLinear::of_grouped(&grouped, &cx.exec)?;
        let values = read_finite(w, rows.clone())?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        let report = Report { squared_error: metrics::squared_error(&values, &back), ..report };
        Ok((op, report))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.table(w, rows, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
