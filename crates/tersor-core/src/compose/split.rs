//! Operators side by side: each reads its own run of the features.

use crate::op::check_apply;
use crate::rows::check_range;
use crate::tensors::join;
use crate::*;
use std::ops::Range;

/// `W = [W_0 W_1 …]`: runs of columns in forms of their own, `y = Σ x[run i] W_iᵀ` (ResQ, arXiv 2412.14363: four and eight bits, which never
/// multiply each other).
pub struct Split {
    parts: Vec<Box<dyn LinearOp>>,
    shape: [usize; 2],
}

impl Split {
    /// The kind in specifications.
    pub const KIND: &'static str = "split";

    /// Of at least one part. Error unless all have as many rows.
    pub fn new(parts: Vec<Box<dyn LinearOp>>) -> Result<Self> {
        let rows = parts.first().map(|p| p.shape()[0]);
        let rows = rows.ok_or_else(|| Error::shape("parts of a split operator", "at least 1", 0))?;
        if let Some(p) = parts.iter().find(|p| p.shape()[0] != rows) {
            return Err(Error::shape("rows of a part of a split operator", rows, p.shape()[0]));
        }
        let cols = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.shape()[1]));
        let cols = cols.ok_or_else(|| Error::Overflow { what: "columns of a split operator".into() })?;
        view::elements([rows, cols])?;
        Ok(Self { parts, shape: [rows, cols] })
    }

    /// The parts with their columns.
    fn runs(&self) -> impl Iterator<Item = (&dyn LinearOp, Range<usize>)> {
        self.parts.iter().scan(0, |at, p| {
            let run = *at..*at + p.shape()[1];
            *at = run.end;
            Some((&**p, run))
        })
    }
}

/// The name of a part in specifications and tensors.
fn name(index: usize) -> String {
    format!("part{index}")
}

/// What side by side such layouts take.
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
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let mut values = Vec::new();
        for (part, run) in self.runs().filter(|(_, run)| !run.is_empty()) {
            values.resize(rows.len() * run.len(), 0.0);
            part.decompress_rows(rows.clone(), &mut values)?;
            for (out, values) in out.chunks_exact_mut(self.shape[1]).zip(values.chunks_exact(run.len())) {
                out[run.clone()].copy_from_slice(values);
            }
        }
        Ok(())
    }
    fn apply_add(&self, x: &Input<'_>, mut y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        check_apply(self.shape, x, &y)?;
        self.runs().try_for_each(|(part, run)| part.apply_add(&*x.columns(run)?, y.reborrow(), exec))
    }
    fn spec(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape[1]]);
        self.parts.iter().enumerate().fold(spec, |spec, (i, p)| spec.part(&name(i), p.spec(at)))
    }
    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.parts.iter().enumerate().try_for_each(|(i, p)| p.save(&join(prefix, &name(i)), at, sink))
    }
}

pub(super) fn load(s: &OpSpec, p: &str, src: &dyn TensorSource, r: &Registry) -> Result<Box<dyn LinearOp>> {
    let part = |i: usize| r.load(s.get_part(&name(i))?, &join(p, &name(i)), src);
    Ok(Box::new(Split::new((0..s.parts.len()).map(part).collect::<Result<_>>()?)?))
}
