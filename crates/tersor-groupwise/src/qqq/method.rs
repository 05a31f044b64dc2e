//! QQQ as a [`Method`].

use std::ops::Range;

use tersor_core::{
    Compressed, Context, Layout, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet, read_finite,
};
use tersor_operators::TableLinear;
use tersor_operators::packing::check_group;

use super::CheckedQqq;
use super::algorithm::to_tables;

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
    /// Returns the method with the Hessian factor that the matrices of a site share. Errors as [`CheckedGptq::ready`](crate::gptq::CheckedGptq).
    pub(super) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        Ok(Ready(self.gptq.ready(stats)?))
    }
}

/// GPTQ prepared for a site.
pub(super) struct Ready<'s>(crate::gptq::Ready<'s>);

impl Ready<'_> {
    /// Quantizes `rows` of `w`. Errors as [`Prepared::compress`].
    pub(super) fn table(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<(TableLinear, Report)> {
        let (grouped, report) = self.0.grouped(w, rows.clone(), cx)?;
        let values = read_finite(w, rows)?;
        let (op, squared_error) = to_tables(&grouped, &values, &cx.exec)?;
        let data_error = Some(self.0.data_error(&op, &values, cx)?);
        Ok((op, Report { squared_error, data_error, ..report }))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.table(w, rows, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
