//! Products and sums of operators.

use crate::op::check_apply;
use crate::rows::check_range;
use crate::tensors::join;
use crate::*;
use std::ops::Range;
use tersor_kernels::dense::{How, Out, Write, product};

/// `W = up · down`: a matrix of low rank as two operators, `up` `[out, rank]` and `down` `[rank, in]`.
pub struct Factored {
    up: Box<dyn LinearOp>,
    down: Box<dyn LinearOp>,
}

impl Factored {
    /// The kind in specifications.
    pub const KIND: &'static str = "factored";

    /// Error unless the inner sizes agree.
    pub fn new(up: Box<dyn LinearOp>, down: Box<dyn LinearOp>) -> Result<Self> {
        if up.shape()[1] != down.shape()[0] {
            return Err(Error::shape("rank of two factors", up.shape()[1], down.shape()[0]));
        }
        Ok(Self { up, down })
    }
}

impl LinearOp for Factored {
    fn shape(&self) -> [usize; 2] {
        [self.up.shape()[0], self.down.shape()[1]]
    }
    fn storage_bits(&self) -> u64 {
        self.up.storage_bits() + self.down.storage_bits()
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape(), &rows, out.len())?;
        let ([_, rank], [_, cols]) = (self.up.shape(), self.down.shape());
        let mut up = vec![0f32; rows.len() * rank];
        self.up.decompress_rows(rows.clone(), &mut up)?;
        let mut down = vec![0f32; rank * cols];
        self.down.decompress_rows(0..rank, &mut down)?;
        // The product wants the right operand by its columns.
        let mut turned = vec![0f32; rank * cols];
        for r in 0..rank {
            for c in 0..cols {
                turned[c * rank + r] = down[r * cols + c];
            }
        }
        let y = Out { data: out, stride: cols };
        let how = How { isa: Isa::detect(), write: Write::Set, parallel: false };
        product(how, &up, [rows.len(), rank], &turned, cols, y);
        Ok(())
    }
    fn apply_add(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        check_apply(self.shape(), x, &y)?;
        let shape = [x.shape()[0], self.up.shape()[1]];
        let mut inner = vec![0f32; view::elements(shape)?];
        self.down.apply(x, MatViewMut::new(&mut inner, shape)?, exec)?;
        self.up.apply_add(&Input::new(&inner, shape)?, y, exec)
    }
    fn spec(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape()[1]]);
        spec.part("up", self.up.spec(at)).part("down", self.down.spec(self.down.whole()))
    }
    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.up.save(&join(prefix, "up"), at, sink)?;
        // `down` has no row of the whole: it is the same in every block.
        self.down.save(&join(prefix, "down"), self.down.whole(), sink)
    }
}

/// `W = base + low_rank`: what a correction of any operator by any other is.
pub struct Residual {
    base: Box<dyn LinearOp>,
    low_rank: Box<dyn LinearOp>,
}

impl Residual {
    /// The kind in specifications.
    pub const KIND: &'static str = "residual";

    /// Error unless both have the same shape.
    pub fn new(base: Box<dyn LinearOp>, low_rank: Box<dyn LinearOp>) -> Result<Self> {
        if base.shape() != low_rank.shape() {
            return Err(Error::shape("shape of a correction", base.shape(), low_rank.shape()));
        }
        Ok(Self { base, low_rank })
    }
}

impl LinearOp for Residual {
    fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }
    fn storage_bits(&self) -> u64 {
        self.base.storage_bits() + self.low_rank.storage_bits()
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.base.decompress_rows(rows.clone(), out)?;
        let mut more = vec![0f32; out.len()];
        self.low_rank.decompress_rows(rows, &mut more)?;
        out.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        Ok(())
    }
    fn apply_add(&self, x: &Input<'_>, mut y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        self.base.apply_add(x, y.reborrow(), exec)?;
        self.low_rank.apply_add(x, y, exec)
    }
    fn spec(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape()[1]]);
        spec.part("base", self.base.spec(at)).part("low_rank", self.low_rank.spec(at))
    }
    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.base.save(&join(prefix, "base"), at, sink)?;
        self.low_rank.save(&join(prefix, "low_rank"), at, sink)
    }
}

fn part(spec: &OpSpec, name: &str, prefix: &str, source: &dyn TensorSource, r: &Registry) -> Result<Box<dyn LinearOp>> {
    r.load(spec.get_part(name)?, &join(prefix, name), source)
}

pub(super) fn load_factored(s: &OpSpec, p: &str, src: &dyn TensorSource, r: &Registry) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Factored::new(part(s, "up", p, src, r)?, part(s, "down", p, src, r)?)?))
}

pub(super) fn load_residual(s: &OpSpec, p: &str, src: &dyn TensorSource, r: &Registry) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Residual::new(part(s, "base", p, src, r)?, part(s, "low_rank", p, src, r)?)?))
}
