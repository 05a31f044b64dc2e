//! The correction as a [`Method`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tersor_core::compose::Residual;
use tersor_core::{
    Compressed, Context, Layout, LinearOp, Method, Prepared, Report, Result, RowSource, StatNeeds, StatSet, read_finite,
};

use super::CheckedCorrected;
use crate::Norm;
use crate::factor::{Weights, bits_of, compress_factors, decompose, factor_layout, whole};
use crate::gram::in_gram;

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

    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let own = stats.filter(|_| self.base.needs().any_data());
        Ok(Box::new(Ready {
            method: self,
            base: self.base.prepare(own, cx)?,
            weights: Weights::of(self.norm, stats)?,
            gram: stats.and_then(StatSet::shared_gram),
        }))
    }
}

struct Ready<'s> {
    method: &'s CheckedCorrected,
    base: Box<dyn Prepared + 's>,
    weights: Weights,
    gram: Option<Arc<Vec<f64>>>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (shape, start, how) = (whole(w, &rows)?, Instant::now(), self.method);
        let done = self.base.compress(w, rows.clone(), cx)?;
        let values = read_finite(w, rows)?;
        let mut error = vec![0f32; values.len()];
        done.op.decompress_rows(0..shape[0], &mut error)?;
        error.iter_mut().zip(&values).for_each(|(e, w)| *e = w - *e);
        let bits = bits_of(&*how.factors)?;
        let found = cx.run(|| decompose(&error, shape, &self.weights, how.rank, bits, cx))?;
        let op = Residual::new(done.op, compress_factors(&*how.factors, &found, shape, cx)?)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back)?;
        let mut report = Report { seconds: 0.0, ..done.report };
        let own = Report::of(&values, &back, start.elapsed());
        (report.squared_error, report.energy, report.seconds) = (own.squared_error, own.energy, own.seconds);
        if let Some(gram) = &self.gram {
            error.iter_mut().zip(values.iter().zip(&back)).for_each(|(e, (w, b))| *e = w - b);
            report.data_error = Some(cx.run(|| in_gram(&error, shape, gram))?);
            report.data_energy = Some(cx.run(|| in_gram(&values, shape, gram))?);
        }
        Ok(Compressed { op: Box::new(op), report })
    }
}
