//! [`Split`]: operators side by side, each on its own span of the input features.

use std::ops::Range;

use tersor_core::operator::check_apply;
use tersor_core::rows::check_range;
use tersor_core::tensors::join;
use tersor_core::{
    Error, Exec, Input, Layout, LinearOp, Loading, MatView, MatViewMut, OpSpec, Result, RowSlot, TensorSink, Write,
    view,
};

/// A matrix `W = [W_0 W_1 ...]`, `[out_features, in_features]`, of operators side by side. Each `W_i` has its own range of neighbouring
/// columns and multiplies only the features of the input in that range: `y = Σ x_i W_iᵀ` with the features `x_i` of part `i`. ResQ (arXiv
/// 2412.14363) has a part of 4-bit and a part of 8-bit columns, multiplied by 4-bit and 8-bit inputs.
///
/// ```
/// use tersor_operators::{DType, Dense, LinearOp, Split};
/// # fn main() -> tersor_operators::Result<()> {
/// let wide = Dense::new(vec![1.0; 2 * 3], [2, 3], DType::F16)?;
/// let narrow = Dense::new(vec![2.0; 2], [2, 1], DType::F32)?;
/// let op = Split::new(vec![Box::new(wide), Box::new(narrow)])?;
/// assert_eq!(op.shape(), [2, 4]);
/// # Ok(())
/// # }
/// ```
pub struct Split {
    parts: Vec<Box<dyn LinearOp>>,
    shape: [usize; 2],
}

impl Split {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "split";

    /// Returns the matrix whose columns are those of `parts`, one part after the other: its `in_features` are the sum of theirs. Errors if
    /// `parts` is empty, the parts do not have the same number of rows, or the shape overflows.
    pub fn new(parts: Vec<Box<dyn LinearOp>>) -> Result<Self> {
        let rows = parts.first().map(|p| p.shape()[0]);
        let rows = rows.ok_or_else(|| Error::shape("parts of a split operator", "at least 1", 0))?;
        if let Some(p) = parts.iter().find(|p| p.shape()[0] != rows) {
            return Err(Error::shape("rows of a part of a split operator", rows, p.shape()[0]));
        }
        let cols = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.shape()[1]));
        let cols = cols.ok_or_else(|| Error::Overflow { what: "the number of columns of a split operator".into() })?;
        view::elements([rows, cols])?;
        Ok(Self { parts, shape: [rows, cols] })
    }

    /// Returns the parts, each with its range of columns.
    fn spans(&self) -> impl Iterator<Item = (&dyn LinearOp, Range<usize>)> {
        self.parts.iter().scan(0, |at, p| {
            let span = *at..*at + p.shape()[1];
            *at = span.end;
            Some((&**p, span))
        })
    }
}

/// Returns the name of a part in specifications and tensor names.
fn name(index: usize) -> String {
    format!("part{index}")
}

/// Returns the stored tensors of a [`Split`], given those of its parts in order. The tensor `x` of part `i`, counted from 0, gets the name
/// `part<i>.x`, for example `part0.codes`. A tensor of part `i` with an empty name gets the name `part<i>`. Types and shapes are unchanged.
/// The sizes are marked as exact if those of all parts are; otherwise they are upper bounds. Without parts there are no tensors.
pub fn split_layout(parts: impl IntoIterator<Item = Layout>) -> Layout {
    let mut all = Layout { tensors: Vec::new(), exact: true };
    for (i, part) in parts.into_iter().enumerate() {
        let part = part.nested(&name(i));
        all.exact &= part.exact;
        all.tensors.extend(part.tensors);
    }
    all
}

impl LinearOp for Split {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn storage_bits(&self) -> u64 {
        self.parts.iter().map(|p| p.storage_bits()).sum()
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let mut values = Vec::new();
        for (part, span) in self.spans().filter(|(_, span)| !span.is_empty()) {
            values.resize(rows.len() * span.len(), 0.0);
            part.decompress_rows(rows.clone(), &mut values, exec)?;
            for (out, values) in out.chunks_exact_mut(self.shape[1]).zip(values.chunks_exact(span.len())) {
                out[span.clone()].copy_from_slice(values);
            }
        }
        Ok(())
    }
    fn apply(&self, x: &Input<'_>, mut y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        check_apply(self.shape, x, &y)?;
        if write == Write::Set {
            y.rows_mut().for_each(|r| r.fill(0.0));
        }
        self.spans().try_for_each(|(part, span)| part.apply(&*x.columns(span)?, y.reborrow(), Write::Add, exec))
    }
    fn apply_transposed(&self, dy: MatView<'_, f32>, mut dx: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        if dx.shape() != [dy.shape()[0], self.shape[1]] {
            return Err(Error::shape("gradient of the input", [dy.shape()[0], self.shape[1]], dx.shape()));
        }
        self.spans().try_for_each(|(part, span)| part.apply_transposed(dy, dx.reborrow().columns(span)?, exec))
    }
    fn shared_parts(&self) -> Vec<(String, u64)> {
        self.parts.iter().flat_map(|p| p.shared_parts()).collect()
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape[1]]);
        self.parts.iter().enumerate().fold(spec, |spec, (i, p)| spec.part(&name(i), p.spec_block(at)))
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.parts.iter().enumerate().try_for_each(|(i, p)| p.save_block(&join(prefix, &name(i)), at, sink))
    }
}

/// Loads operators side by side. Errors as [`Split::new`], or as their loaders.
pub(crate) fn load(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let part = |i: usize| loading.part(s, &name(i), p);
    Ok(Box::new(Split::new((0..s.parts.len()).map(part).collect::<Result<_>>()?)?))
}
