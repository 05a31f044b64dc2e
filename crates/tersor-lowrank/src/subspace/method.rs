//! Matrices in spans of columns as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::method::ROW_UNIT;
use tersor_core::{
    Compressed, Context, Error, Extent, Layout, LinearOp, Mask, Masked, MatView, Method, Prepared, Report, Result,
    RowSource, StatNeeds, StatSet, read_masked,
};
use tersor_linalg::{Gram, matmul};
use tersor_operators::{Split, split_layout};

use super::CheckedSubspaces;
use super::algorithm::{columns, couple};

impl Method for CheckedSubspaces {
    fn name(&self) -> String {
        let part = |(share, m): &(f64, Box<dyn Method>)| format!("{share} {}", m.name());
        format!("subspaces ({})", self.parts.iter().map(part).collect::<Vec<_>>().join(", "))
    }
    fn needs(&self) -> StatNeeds {
        self.parts.iter().fold(StatNeeds::default(), |needs, (_, m)| needs.union(m.needs()))
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        let part = |(part, span): &(usize, Range<usize>)| self.parts[*part].1.layout([shape[0], span.len()]);
        Ok(split_layout(self.spans(shape[1])?.iter().map(part).collect::<Result<Vec<_>>>()?))
    }

    fn extent(&self) -> Extent {
        self.parts.iter().fold(Extent::Blocks, |extent, (_, m)| extent.union(m.extent()))
    }

    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        if !self.needs().any_data() || stats.tokens() == 0 {
            // A part that needs data refuses statistics without it, naming what is missing.
            let part = |(_, method): &'s (f64, Box<dyn Method>)| {
                Ok(Some(Part { prepared: method.prepare(stats, cx)?, coupling: None }))
            };
            let parts = self.parts.iter().map(part).collect::<Result<_>>()?;
            return Ok(Box::new(Ready { method: self, parts, gram: None }));
        }
        let mut parts: Vec<Option<Part<'s>>> = Vec::new();
        parts.resize_with(self.parts.len(), || None);
        for (number, span) in self.spans(stats.features())? {
            let mut own = stats.columns(span.clone())?;
            let mut coupling = None;
            if let Some(gram) = stats.gram()
                && span.end < stats.features()
            {
                let (rest, coupled) = couple(gram, stats.features(), span, self.damping)?;
                own = own.with_gram(rest)?;
                coupling = Some(coupled);
            }
            parts[number] = Some(Part { prepared: self.parts[number].1.prepare(&own, cx)?, coupling });
        }
        let gram = stats.gram().map(|gram| Gram::new(gram, stats.features(), 1.0)).transpose()?;
        Ok(Box::new(Ready { method: self, parts, gram }))
    }
}

/// The method of a span, prepared for a site.
struct Part<'s> {
    prepared: Box<dyn Prepared + 's>,
    /// The coupling by which later columns compensate the errors of the span, `[span.len(), rest]`; `None` without a Gram matrix or later columns.
    coupling: Option<Vec<f64>>,
}

/// All parts prepared for a site; `None` for a part without columns.
struct Ready<'s> {
    method: &'s CheckedSubspaces,
    parts: Vec<Option<Part<'s>>>,
    gram: Option<Gram>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (n, cols, start) = (rows.len(), w.shape()[1], Instant::now());
        if let Some(gram) = &self.gram
            && cols != gram.features()
        {
            return Err(Error::shape("features of the statistics", cols, gram.features()));
        }
        let (values, mask) = read_masked(w, rows)?;
        let mut updated = values.clone();
        let (mut report, mut ops) = (Report::default(), Vec::new());
        for (number, span) in self.method.spans(cols)? {
            let part = self.parts[number].as_ref();
            let part = part.ok_or_else(|| Error::shape("features of the matrix", "those of the statistics", cols))?;
            let own = columns(&updated, cols, &span);
            let view = MatView::new(&own, [n, span.len()])?;
            // Compensation may have updated weights that the mask drops: setting them to zero is compensated as any other error.
            let kept = |mask: &Mask| Mask::from_fn([n, span.len()], |r, c| mask.keeps(r, span.start + c));
            let done = match mask.as_ref().map(kept).transpose()? {
                Some(kept) => part.prepared.compress(&Masked::new(&view, &kept)?, 0..n, cx)?,
                None => part.prepared.compress(&view, 0..n, cx)?,
            };
            if let Some(coupling) = &part.coupling {
                let mut lost = vec![0f32; own.len()];
                done.op.decompress_rows(0..n, &mut lost, &cx.exec)?;
                let lost: Vec<f64> = own.iter().zip(&lost).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
                let rest = cols - span.end;
                // In units of rows, so that sums do not depend on the block of rows that is compressed.
                let units = updated.chunks_mut(ROW_UNIT * cols).zip(lost.chunks(ROW_UNIT * span.len()));
                for (updated, lost) in units {
                    let more = cx.run(|| matmul(lost, [lost.len() / span.len(), span.len()], coupling, rest))?;
                    for (row, more) in updated.chunks_exact_mut(cols).zip(more.chunks_exact(rest)) {
                        row[span.end..].iter_mut().zip(more).for_each(|(w, m)| *w = (f64::from(*w) + m) as f32);
                    }
                }
            }
            report.merge(&done.report);
            ops.push(done.op);
        }
        let op = Split::new(ops)?;
        let mut error = vec![0f32; values.len()];
        op.decompress_rows(0..n, &mut error, &cx.exec)?;
        let own = Report::of(&values, &error, start.elapsed());
        (report.squared_error, report.energy, report.seconds) = (own.squared_error, own.energy, own.seconds);
        (report.data_error, report.data_energy) = (None, None);
        if let Some(gram) = &self.gram {
            error.iter_mut().zip(&values).for_each(|(e, w)| *e = w - *e);
            report.data_error = Some(cx.run(|| gram.loss(&error))?);
            report.data_energy = Some(cx.run(|| gram.loss(&values))?);
        }
        Ok(Compressed { op: Box::new(op), report })
    }
}
