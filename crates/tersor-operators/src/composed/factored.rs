//! [`Factored`] and [`Residual`]: products and sums of operators.

use std::ops::Range;

use tersor_core::operator::check_apply;
use tersor_core::rows::check_range;
use tersor_core::tensors::join;
use tersor_core::{
    Error, Exec, GemmTask, Input, LinearOp, Loading, MatView, MatViewMut, OpSpec, Result, RowSlot, TensorSink, Tile,
    Write, view,
};
use tersor_kernels::vector;

/// The number of columns of a low-rank matrix that are decompressed together.
const COLUMN_SPAN: usize = 1024;

/// A low-rank matrix `W = up · down`, `[out_features, in_features]`, the product of two operators: `up`, `[out_features, rank]`, and
/// `down`, `[rank, in_features]`. It multiplies by one after the other: `y = (x downᵀ) upᵀ`.
///
/// ```
/// use tersor_operators::{DType, Dense, Factored, LinearOp};
/// # fn main() -> tersor_operators::Result<()> {
/// let dense = |values: Vec<f32>, shape| Dense::new(values, shape, DType::F32).map(Box::new);
/// let op = Factored::new(dense(vec![1.0, 2.0], [2, 1])?, dense(vec![3.0, 4.0, 5.0], [1, 3])?)?;
/// assert_eq!(op.shape(), [2, 3]);
/// # Ok(())
/// # }
/// ```
pub struct Factored {
    up: Box<dyn LinearOp>,
    down: Box<dyn LinearOp>,
}

impl Factored {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "factored";

    /// Returns the product `up · down` of the operators `up`, `[out_features, rank]`, and `down`, `[rank, in_features]`. Errors unless `up`
    /// has as many columns as `down` has rows.
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
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        check_range(self.shape(), &rows, out.len())?;
        let ([_, rank], [_, cols]) = (self.up.shape(), self.down.shape());
        let mut up = vec![0f32; rows.len() * rank];
        self.up.decompress_rows(rows, &mut up, exec)?;
        let mut down = vec![0f32; rank * cols];
        self.down.decompress_rows(0..rank, &mut down, exec)?;
        out.fill(0.0);
        // Every row is summed in the order of the rank, so that its bits do not depend on which rows are asked for. A span of columns of
        // `down` stays in the cache for all rows.
        for first in (0..cols).step_by(COLUMN_SPAN) {
            let span = first..cols.min(first + COLUMN_SPAN);
            for (out, up) in out.chunks_mut(cols).zip(up.chunks(rank.max(1))) {
                for (&c, down) in up.iter().zip(down.chunks(cols)) {
                    vector::axpy(exec.isa(), c, &down[span.clone()], &mut out[span.clone()]);
                }
            }
        }
        Ok(())
    }
    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        check_apply(self.shape(), x, &y)?;
        let shape = [x.shape()[0], self.up.shape()[1]];
        let mut inner = vec![0f32; view::elements(shape)?];
        self.down.apply(x, MatViewMut::new(&mut inner, shape)?, Write::Set, exec)?;
        self.up.apply(&Input::new(&inner, shape)?, y, write, exec)
    }
    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        let shape = [x.shape()[0], self.up.shape()[1]];
        let mut inner = vec![0f32; view::elements(shape)?];
        self.down.apply(x, MatViewMut::new(&mut inner, shape)?, Write::Set, exec)?;
        self.up.task(&Input::owned(inner, shape)?, exec)
    }
    fn apply_transposed(&self, dy: MatView<'_, f32>, dx: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        let shape = [dy.shape()[0], self.up.shape()[1]];
        let mut inner = vec![0f32; view::elements(shape)?];
        self.up.apply_transposed(dy, MatViewMut::new(&mut inner, shape)?, exec)?;
        self.down.apply_transposed(MatView::new(&inner, shape)?, dx, exec)
    }
    fn shared_parts(&self) -> Vec<(String, u64)> {
        [self.up.shared_parts(), self.down.shared_parts()].concat()
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape()[1]]);
        spec.part("up", self.up.spec_block(at)).part("down", self.down.spec())
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.up.save_block(&join(prefix, "up"), at, sink)?;
        // `down` is the same for all blocks of rows.
        self.down.save(&join(prefix, "down"), sink)
    }
}

/// The sum `W = base + low_rank` of two operators, both `[out_features, in_features]`: a compressed matrix and a correction of it, usually
/// a [`Factored`] one.
///
/// ```
/// use tersor_operators::{DType, Dense, Exec, LinearOp, Residual};
/// # fn main() -> tersor_operators::Result<()> {
/// let dense = |value: f32| Dense::new(vec![value], [1, 1], DType::F32).map(Box::new);
/// let op = Residual::new(dense(1.0)?, dense(0.25)?)?;
/// let mut row = [0f32];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [1.25]);
/// # Ok(())
/// # }
/// ```
pub struct Residual {
    base: Box<dyn LinearOp>,
    low_rank: Box<dyn LinearOp>,
}

impl Residual {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "residual";

    /// Returns the sum of the operators `base` and `low_rank`, which may be any two. Errors unless both have the same shape,
    /// `[out_features, in_features]`.
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
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.base.decompress_rows(rows.clone(), out, exec)?;
        let mut more = vec![0f32; out.len()];
        self.low_rank.decompress_rows(rows, &mut more, exec)?;
        out.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        Ok(())
    }
    fn apply(&self, x: &Input<'_>, mut y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        self.base.apply(x, y.reborrow(), write, exec)?;
        self.low_rank.apply(x, y, Write::Add, exec)
    }
    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        let Some(base) = self.base.task(x, exec)? else { return Ok(None) };
        let Some(low_rank) = self.low_rank.task(x, exec)? else { return Ok(None) };
        Ok(Some(Box::new(Sum(base, low_rank))))
    }
    fn apply_transposed(&self, dy: MatView<'_, f32>, mut dx: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        self.base.apply_transposed(dy, dx.reborrow(), exec)?;
        self.low_rank.apply_transposed(dy, dx, exec)
    }
    fn shared_parts(&self) -> Vec<(String, u64)> {
        [self.base.shared_parts(), self.low_rank.shared_parts()].concat()
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        let spec = OpSpec::new(Self::KIND, [at.total, self.shape()[1]]);
        spec.part("base", self.base.spec_block(at)).part("low_rank", self.low_rank.spec_block(at))
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.base.save_block(&join(prefix, "base"), at, sink)?;
        self.low_rank.save_block(&join(prefix, "low_rank"), at, sink)
    }
}

/// The sum of two products of the same shape, as one task.
struct Sum<'a>(Box<dyn GemmTask + 'a>, Box<dyn GemmTask + 'a>);

impl GemmTask for Sum<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }
    fn tokens(&self) -> usize {
        self.0.tokens()
    }
    fn granularity(&self) -> usize {
        let (a, b) = (self.0.granularity().max(1), self.1.granularity().max(1));
        // The least common multiple.
        let (mut x, mut y) = (a, b);
        while y > 0 {
            (x, y) = (y, x % y);
        }
        a / x * b
    }
    fn granule_bytes(&self) -> usize {
        let of = |task: &dyn GemmTask| self.granularity() / task.granularity().max(1) * task.granule_bytes();
        of(&*self.0) + of(&*self.1)
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        self.0.run(rows.clone(), write, tile);
        self.1.run(rows, Write::Add, tile);
    }
}

/// Loads a product of two operators. Errors as [`Factored::new`], or as their loaders.
pub(crate) fn load_factored(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Factored::new(loading.part(s, "up", p)?, loading.part(s, "down", p)?)?))
}

/// Loads a sum of two operators. Errors as [`Residual::new`], or as their loaders.
pub(crate) fn load_residual(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Residual::new(loading.part(s, "base", p)?, loading.part(s, "low_rank", p)?)?))
}
