//! The correction as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Compressed, Context, Error, Extent, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds,
    StatSet,
};
use tersor_linalg::Gram;
use tersor_operators::Residual;

use super::CheckedCorrected;
use super::algorithm::factor_error;
use crate::Norm;
use crate::factor::{Weights, bits_of, compress_factors, factor_layout, whole};

impl Method for CheckedCorrected {
    fn name(&self) -> String {
        let how = match self.norm {
            Norm::Plain => "lqer",
            Norm::Magnitude => "l2qer",
            Norm::Gram => "lqer in the Gram norm",
        };
        format!("{} {how}", self.base.name())
    }

    fn needs(&self) -> StatNeeds {
        self.base.needs().union(self.norm.needs())
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        let mut layout = self.base.layout(shape)?.nested("base");
        let factors = factor_layout(&*self.factors, self.rank, shape)?.nested("low_rank");
        layout.tensors.extend(factors.tensors);
        layout.exact &= factors.exact;
        Ok(layout)
    }

    fn extent(&self) -> Extent {
        Extent::Whole
    }

    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let gram = stats.gram().map(|gram| Gram::new(gram, stats.features(), 1.0)).transpose()?;
        let weights = Weights::of(self.norm, stats)?;
        Ok(Box::new(Ready { method: self, base: self.base.prepare(stats, cx)?, weights, gram }))
    }

    fn plain(&self) -> Option<&dyn Method> {
        self.base.plain()
    }
}

/// The correction prepared for a site.
struct Ready<'s> {
    method: &'s CheckedCorrected,
    base: Box<dyn Prepared + 's>,
    weights: Weights,
    gram: Option<Gram>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (shape, start, how) = (whole(w, &rows)?, Instant::now(), self.method);
        if let Some(gram) = self.gram.as_ref().filter(|g| g.features() != shape[1]) {
            return Err(Error::shape("features of the Gram matrix", shape[1], gram.features()));
        }
        let values = crate::read_unmasked(w, rows.clone(), &how.name())?;
        let done = self.base.compress(w, rows, cx)?;
        let mut back = vec![0f32; values.len()];
        done.op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        let rank = (how.rank, bits_of(&*how.factors)?);
        let found = cx.run(|| factor_error(&values, back, shape, &self.weights, rank, cx))?;
        let op = Residual::new(done.op, compress_factors(&*how.factors, &found, shape, cx)?)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        let mut report = Report { seconds: 0.0, ..done.report };
        let own = Report::of(&values, &back, start.elapsed());
        (report.squared_error, report.energy, report.seconds) = (own.squared_error, own.energy, own.seconds);
        if let Some(gram) = &self.gram {
            let error: Vec<f32> = values.iter().zip(&back).map(|(w, b)| w - b).collect();
            report.data_error = Some(cx.run(|| gram.loss(&error))?);
            report.data_energy = Some(cx.run(|| gram.loss(&values))?);
        }
        Ok(Compressed { op: Box::new(op), report })
    }
}
