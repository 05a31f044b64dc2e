//! Factorization of weights as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Compressed, Context, Extent, Layout, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet,
};

use super::{CheckedLowRank, Weights, bits_of, compress_factors, decompose, factor_layout, whole};

impl Method for CheckedLowRank {
    fn name(&self) -> String {
        "low-rank".into()
    }
    fn needs(&self) -> StatNeeds {
        self.norm.needs()
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        factor_layout(&*self.factors, self.rank, shape)
    }
    fn extent(&self) -> Extent {
        Extent::Whole
    }
    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready { method: self, weights: Weights::of(self.norm, stats)? }))
    }
    fn plain(&self) -> Option<&dyn Method> {
        (!self.norm.needs().any_data()).then_some(self as &dyn Method)
    }
}

/// The factorization prepared for a site.
struct Ready<'s> {
    method: &'s CheckedLowRank,
    weights: Weights,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let (shape, start, how) = (whole(w, &rows)?, Instant::now(), self.method);
        let values = crate::read_unmasked(w, rows, "low-rank")?;
        let bits = bits_of(&*how.factors)?;
        let found = cx.run(|| decompose(&values, shape, &self.weights, how.rank, bits, cx))?;
        let op = compress_factors(&*how.factors, &found, shape, cx)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        Ok(Compressed { op, report: Report::of(&values, &back, start.elapsed()) })
    }
}
