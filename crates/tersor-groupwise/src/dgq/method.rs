//! Dual-grained quantization as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Compressed, Context, Error, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet,
    read_finite,
};
use tersor_operators::DualLinear;
use tersor_operators::packing::check_group;

use super::CheckedDgq;
use crate::search::GramBlocks;

impl Method for CheckedDgq {
    fn name(&self) -> String {
        "dgq".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { gram: true, ..StatNeeds::default() }
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        check_group(self.group, shape[1])?;
        Ok(DualLinear::layout(self.group, shape))
    }

    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(self.ready(stats)?))
    }

    fn plain(&self) -> Option<&dyn Method> {
        Some(&self.rtn)
    }
}

impl CheckedDgq {
    /// Returns the method with the Gram matrix of a site's inputs. Errors if the statistics lack it or have seen no token.
    pub(super) fn ready(&self, stats: &StatSet) -> Result<Ready<'_>> {
        let gram = GramBlocks::of(stats, |features| self.group.width(features))?;
        Ok(Ready { method: self, gram, weight: stats.weight() })
    }
}

/// DGQ prepared for a site.
pub(super) struct Ready<'m> {
    method: &'m CheckedDgq,
    gram: GramBlocks,
    /// Sum of the weights of the tokens.
    weight: f64,
}

impl Ready<'_> {
    /// Quantizes `rows` of `w`. Errors as [`Prepared::compress`].
    pub(super) fn dual(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<(DualLinear, Report)> {
        cx.cancel.check()?;
        let (start, cols) = (Instant::now(), w.shape()[1]);
        if cols != self.gram.features() {
            return Err(Error::shape("features of the statistics", cols, self.gram.features()));
        }
        let values = read_finite(w, rows.clone())?;
        let (op, loss) = cx.run(|| self.method.search(&values, &self.gram, rows.start, cx.isa()))?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..rows.len(), &mut back, &cx.exec)?;
        let mut report = Report::of(&values, &back, start.elapsed());
        report.data_error = Some(loss * self.weight);
        report.data_energy = Some(self.gram.loss(&values)? * self.weight);
        Ok((op, report))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.dual(w, rows, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
