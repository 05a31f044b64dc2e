//! The algorithm, and its face as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Compressed, Context, Element, Error, GroupSize, IntoMat, Isa, Layout, LinearOp, Method, Prepared, Report, Result,
    RowSource, StatNeeds, StatSet, check_finite, read_finite,
};

use crate::linear::spans;
use crate::{CheckedRtn, GroupSpec, GroupedLinear};

impl CheckedRtn {
    /// Quantizes a matrix `[out_features, in_features]`. Error on a value that is not finite, or a scale that its type
    /// cannot hold.
    pub fn quantize<T: Element>(&self, w: &impl IntoMat<T>) -> Result<GroupedLinear> {
        w.with_mat(|m| round(&self.spec, &m.to_f32(), m.shape(), &[]))
    }
}

/// Rows on their own, in the current pool. Error on a value that is not finite.
fn round(spec: &GroupSpec, w: &[f32], shape: [usize; 2], importance: &[f32]) -> Result<GroupedLinear> {
    let (cols, isa) = (shape[1], Isa::detect());
    if spec.group == GroupSize::Tensor {
        check_finite(w, cols, 0)?;
        let fits = if w.is_empty() { Vec::new() } else { vec![spec.fit_weighted(isa, w, importance)?] };
        return GroupedLinear::round(*spec, shape, w, &fits, isa);
    }
    GroupedLinear::encode(*spec, shape, w, isa, |r, row, fits| {
        check_finite(row, cols, r)?;
        for ((g, span), fit) in spans(spec, cols).enumerate().zip(fits) {
            let weights = importance.get(span.clone()).unwrap_or_default();
            *fit = spec.fit_at(isa, &row[span], weights, [r, g])?;
        }
        Ok(())
    })
}

impl Method for CheckedRtn {
    fn name(&self) -> String {
        "rtn".into()
    }

    fn needs(&self) -> StatNeeds {
        let whole_matrix = self.spec.group == GroupSize::Tensor;
        StatNeeds { squares: self.importance, whole_matrix, ..StatNeeds::default() }
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        Ok(GroupedLinear::layout(&self.spec, shape))
    }

    fn prepare<'s>(&'s self, stats: Option<&StatSet>, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        let mut importance = Vec::new();
        if self.importance {
            let missing =
                || Error::Missing { name: "sums of squares".into(), place: "the statistics of the inputs".into() };
            let stats = stats.filter(|s| s.tokens() > 0).ok_or_else(missing)?;
            let squares = stats.squares().ok_or_else(missing)?;
            // On average 1: only ratios count, and so f32 will do.
            let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
            importance.extend(squares.iter().map(|v| if mean > 0.0 { (v / mean) as f32 } else { 1.0 }));
        }
        Ok(Box::new(Ready { method: self, importance }))
    }
}

/// With the importance of each input feature, where errors are weighed.
struct Ready<'m> {
    method: &'m CheckedRtn,
    importance: Vec<f32>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let ([all, cols], start) = (w.shape(), Instant::now());
        let spec = &self.method.spec;
        if !self.importance.is_empty() && self.importance.len() != cols {
            return Err(Error::shape("features of the statistics", cols, self.importance.len()));
        }
        if spec.group == GroupSize::Tensor && rows != (0..all) {
            return Err(Error::shape("rows of a matrix with one scale", 0..all, rows));
        }
        let values = read_finite(w, rows.clone())?;
        let shape = [rows.len(), cols];
        let op = cx.run(|| round(spec, &values, shape, &self.importance)).map_err(|e| match e {
            Error::ScaleRange { row, group, value, dtype } => {
                Error::ScaleRange { row: rows.start + row, group, value, dtype }
            }
            other => other,
        })?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back)?;
        Ok(Compressed { op: Box::new(op), report: Report::of(&values, &back, start.elapsed()) })
    }
}
