//! The column sweep with error feedback over grids of groups.

use std::ops::Range;

use tersor_core::{Error, Exec, GroupSize, LinearOp, Mask, Report, Result, metrics};
use tersor_linalg::sweep::{in_row_spans, unpermute};
use tersor_linalg::{HessianFactor, Kept, Sweep};
use tersor_operators::GroupedLinear;

use super::{CheckedGptq, Dead, Groups, OnFailure};
use crate::coder::{GroupCoder, params_of_rows};

impl CheckedGptq {
    /// Returns whether columns are stored in the order of the sweep: with `act_order` and dynamic groups.
    pub(super) fn permutes(&self) -> bool {
        self.damping.order() && self.groups == Groups::Dynamic && matches!(self.spec().group(), GroupSize::Size(_))
    }

    /// Damps and factors the Hessian `hessian = XᵀX` of the inputs, `[features, features]` row-major, where `X` is `[tokens, features]`.
    /// Returns the upper Cholesky factor of the inverse of the damped Hessian (arXiv 2210.17323, section 3.3); with
    /// [`Gptq::act_order`](super::Gptq::act_order) its rows and columns are in the order of a falling Hessian diagonal. A positive multiple
    /// of the Hessian gives the same codes.
    ///
    /// To damp the Hessian is to add a fraction of the mean of its nonzero diagonal elements to each diagonal element. If neither the
    /// configured fraction nor its doublings up to 0.16 make the Hessian positive definite, the result holds no factor, and quantizing with
    /// it rounds to nearest; with [`OnFailure::Error`] this call errors instead. Errors also if `hessian` has another length, is not finite
    /// or not symmetric, or has a negative diagonal element.
    pub fn factor(&self, hessian: &[f64], features: usize) -> Result<HessianFactor> {
        let factor = self.damping.factor(hessian, features)?;
        match factor.failure() {
            Some(failure) if self.on_failure == OnFailure::Error => Err(Error::from(failure.clone())),
            _ => Ok(factor),
        }
    }

    /// Quantizes the rows `w`, `[rows, cols]`, whose first has the index `first` in the matrix, in blocks of rows in the current pool. Columns of the
    /// result are in the order `order` if it is given. Errors if the factor has another number of features, or a scale does not fit its stored type.
    pub(super) fn quantize_rows(
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
        let block = |range: Range<usize>| -> Result<Block> {
            let part = &w[range.start * cols..range.end * cols];
            let mask = mask.map(|m| m.rows(range.clone())).transpose()?;
            self.quantize_block(part, mask.as_ref(), (factor, order), first + range.start, exec)
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
        for block in in_row_spans(rows, exec.parallel(), block)? {
            report.squared_error += block.squared_error;
            error += block.data_error;
            parts.push(block.op);
        }
        report.energy = metrics::energy(w);
        if factor.upper().is_some() {
            (report.data_error, report.damping) = (Some(error), Some(factor.damping()));
        }
        Ok((GroupedLinear::stack(*self.spec(), [rows, cols], parts)?, report))
    }

    /// Quantizes one block of rows, as [`CheckedGptq::quantize_rows`].
    fn quantize_block(
        &self,
        original: &[f32],
        mask: Option<&Mask>,
        (factor, order): (&HessianFactor, Option<&[u32]>),
        first: usize,
        exec: &Exec,
    ) -> Result<Block> {
        let (spec, cols, isa) = (*self.spec(), factor.features(), exec.isa());
        let rows = original.len().checked_div(cols).unwrap_or(0);
        let mut w = original.to_vec();
        if self.dead == Dead::Zero {
            for row in w.chunks_exact_mut(cols.max(1)) {
                row.iter_mut().zip(factor.dead()).filter(|(_, d)| **d).for_each(|(v, _)| *v = 0.0);
            }
        }
        if factor.upper().is_none() {
            let params = params_of_rows(&spec, &w, cols, first, isa)?;
            return Block::new(GroupedLinear::round(spec, [rows, cols], &w, &params, isa)?, original, 0.0, None, exec);
        }
        let mut coder = GroupCoder::new(spec, self.groups, &w, cols, first, isa)?;
        let kept = mask.map_or(Kept::All, Kept::Mask);
        let swept = Sweep::new(factor, self.block)?.run(w, &mut coder, kept, exec)?;
        Block::new(coder.into_linear()?, original, swept.data_error, order, exec)
    }
}

/// A quantized block of rows, with its errors.
struct Block {
    op: GroupedLinear,
    squared_error: f64,
    data_error: f64,
}

impl Block {
    /// Measures the error of `op` against the rows `original`. `order` is the order of the columns of `op`, `None` for the natural one.
    fn new(op: GroupedLinear, original: &[f32], data_error: f64, order: Option<&[u32]>, exec: &Exec) -> Result<Self> {
        let mut back = vec![0f32; original.len()];
        op.decompress_rows(0..op.shape()[0], &mut back, exec)?;
        if let Some(order) = order {
            unpermute(&mut back, order);
        }
        Ok(Self { squared_error: metrics::squared_error(original, &back), op, data_error })
    }
}
