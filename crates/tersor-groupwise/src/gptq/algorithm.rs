//! The algorithm: the shared column sweep over grids of groups.

use std::time::Instant;

use tersor_core::{
    Context, Element, Error, Exec, GroupSize, IntoMat, LinearOp, Mask, Report, Result, check_finite, metrics,
};
use tersor_linalg::sweep::{in_row_spans, unpermute};
use tersor_linalg::{HessianFactor, Kept, Sweep};
use tersor_operators::GroupedLinear;

use super::{CheckedGptq, Dead, Groups, OnFailure};
use crate::coder::{GroupCoder, fit_rows, in_own_order};

impl CheckedGptq {
    /// Returns whether the result is stored in the order of the columns' importance.
    pub(super) fn permutes(&self) -> bool {
        self.damping.order() && self.groups == Groups::Dynamic && matches!(self.spec().group(), GroupSize::Size(_))
    }

    /// Factors a Hessian `XᵀX` (any positive multiple of it gives the same codes), `[features, features]` row-major. Errors if it is not finite or
    /// not symmetric, if a diagonal element is negative, and, with [`OnFailure::Error`], if no damping makes it positive definite.
    pub fn factor(&self, hessian: &[f64], features: usize) -> Result<HessianFactor> {
        let factor = self.damping.factor(hessian, features)?;
        match factor.failure() {
            Some(failure) if self.on_failure == OnFailure::Error => Err(Error::from(failure.clone())),
            _ => Ok(factor),
        }
    }

    /// Quantizes a matrix `[out_features, in_features]` with a factor that [`factor`](Self::factor) made: for callers that quantize several matrices, or
    /// at several widths, for the same inputs. The report has no energies of the data. Errors as [`Gptq::quantize`](super::Gptq::quantize).
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
            let order = factor.order().filter(|_| self.permutes());
            let done = cx.run(|| self.grouped(&values, m.shape(), None, (factor, order), 0, &cx.exec));
            let (op, report) = done?;
            Ok((in_own_order(op, order)?, Report { seconds: start.elapsed().as_secs_f64(), ..report }))
        })
    }

    /// Quantizes rows `w` `[rows, cols]`, of which the first has the number `first` in the matrix, in runs of rows in the current pool. Columns of the
    /// result are in `order` where that is given. Errors if the features differ, or a scale does not fit its type.
    pub(super) fn grouped(
        &self,
        w: &[f32],
        [rows, cols]: [usize; 2],
        mask: Option<&Mask>,
        (factor, order): (&HessianFactor, Option<&[u32]>),
        first: usize,
        exec: &Exec,
    ) -> Result<(GroupedLinear, Report)> {
        if cols != factor.features() {
            return Err(Error::shape("features of the Hessian", cols, factor.features()));
        }
        let run = |range: std::ops::Range<usize>| -> Result<Run> {
            let part = &w[range.start * cols..range.end * cols];
            let mask = mask.map(|m| m.rows(range.clone())).transpose()?;
            self.run(part, mask.as_ref(), (factor, order), first + range.start, exec)
        };
        let mut report = Report { dead_columns: factor.dead_columns(), ..Report::default() };
        if let Some(failure) = factor.failure() {
            report.fallbacks.push(format!(
                "the Hessian is not positive definite at feature {} with damping up to {}: rounded to nearest",
                failure.pivot,
                factor.damping()
            ));
        }
        let (mut parts, mut error) = (Vec::new(), 0f64);
        for run in in_row_spans(rows, exec.parallel(), run)? {
            report.squared_error += run.squared_error;
            error += run.data_error;
            parts.push(run.op);
        }
        report.energy = metrics::energy(w);
        if factor.upper().is_some() {
            (report.data_error, report.damping) = (Some(error), Some(factor.damping()));
        }
        Ok((GroupedLinear::stack(*self.spec(), [rows, cols], parts)?, report))
    }

    fn run(
        &self,
        original: &[f32],
        mask: Option<&Mask>,
        (factor, order): (&HessianFactor, Option<&[u32]>),
        first: usize,
        exec: &Exec,
    ) -> Result<Run> {
        let (spec, cols, isa) = (*self.spec(), factor.features(), exec.isa());
        let rows = original.len().checked_div(cols).unwrap_or(0);
        let mut w = original.to_vec();
        if self.dead == Dead::Zero {
            for row in w.chunks_exact_mut(cols.max(1)) {
                row.iter_mut().zip(factor.dead()).filter(|(_, d)| **d).for_each(|(v, _)| *v = 0.0);
            }
        }
        if factor.upper().is_none() {
            let fits = fit_rows(&spec, &w, cols, first, isa)?;
            return Run::new(GroupedLinear::round(spec, [rows, cols], &w, &fits, isa)?, original, 0.0, None, exec);
        }
        let mut coder = GroupCoder::new(spec, self.groups, &w, cols, first, isa)?;
        let kept = mask.map_or(Kept::All, Kept::Mask);
        let swept = Sweep::new(factor, self.block)?.run(w, &mut coder, kept, exec)?;
        Run::new(coder.into_linear()?, original, swept.data_error, order, exec)
    }
}

/// A run of rows, done.
struct Run {
    op: GroupedLinear,
    squared_error: f64,
    data_error: f64,
}

impl Run {
    /// `order` is the order in which `op` has its columns, where that is not the matrix' own.
    fn new(op: GroupedLinear, original: &[f32], data_error: f64, order: Option<&[u32]>, exec: &Exec) -> Result<Self> {
        let mut back = vec![0f32; original.len()];
        op.decompress_rows(0..op.shape()[0], &mut back, exec)?;
        if let Some(order) = order {
            unpermute(&mut back, order);
        }
        Ok(Self { squared_error: metrics::squared_error(original, &back), op, data_error })
    }
}
