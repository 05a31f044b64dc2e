//! The error-feedback column sweep: columns are coded one after the other, and the error of each is compensated by the columns after it, as
//! far as they are correlated in the calibration data (Optimal Brain Surgeon by columns: GPTQ, arXiv 2210.17323; SparseGPT, arXiv
//! 2301.00774).

use std::ops::Range;

use tersor_core::method::ROW_UNIT;
use tersor_core::{Ahead, ColumnCoder, Error, Exec, Mask, MatView, ParamError, Result, metrics};
use tersor_kernels::dense::{self, Out};
use tersor_kernels::{Isa, par, vector};

use crate::HessianFactor;

/// The largest number of columns that are coded at once.
const MAX_WIDTH: usize = 16;

/// A function that chooses which weights of a block of columns are kept, called when a [`Sweep`] reaches the block (SparseGPT). Its
/// arguments are the range of the block's columns (zero-based places in the order of the sweep), the current weights of these columns,
/// `[rows, range.len()]`, in which the errors of earlier columns are compensated, and the diagonal of [`HessianFactor::upper`] for all
/// columns, `[features]`. It returns the mask of the weights to keep, `[rows, range.len()]`; the others become 0. If it errors, or the mask
/// has another shape, [`Sweep::run`] stops with an error.
pub type ChooseMask<'m> = dyn FnMut(Range<usize>, MatView<'_, f32>, &[f32]) -> Result<Mask> + Send + 'm;

/// Which weights [`Sweep::run`] keeps: all, those of a mask, or those that a function chooses when the sweep reaches a block of columns.
/// Weights that are not kept become 0, and later columns compensate for them.
pub enum Kept<'m> {
    /// Every weight is kept.
    All,
    /// The weights of a mask `[rows, features]` are kept, features in their own order.
    Mask(&'m Mask),
    /// The weights that a function chooses at each block of columns, for all rows together, are kept (SparseGPT).
    Chosen(&'m mut ChooseMask<'m>),
}

/// The result of [`Sweep::run`]: the weights that the codes stand for, and the squared error of the outputs. The codes themselves stay in
/// the [`ColumnCoder`] (the quantizer of columns) that was passed to `run`.
#[derive(Clone, PartialEq, Debug)]
pub struct Swept {
    /// The dequantized weights after a [`Sweep`], `[rows, features]` row-major, with the columns in the order of the sweep
    /// ([`HessianFactor::order`], or their own order if that is None).
    pub values: Vec<f32>,
    /// The squared error of the outputs after a [`Sweep`], at least 0: `tr (W - Ŵ) H (W - Ŵ)ᵀ` for the weights `W` before and `Ŵ` after the
    /// sweep and the Hessian `H` without damping.
    pub data_error: f64,
}

/// The error-feedback column sweep of GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774): it codes the columns (input features) of a
/// weight matrix one after the other, and changes the later columns so that they compensate the error of each. It borrows the factored
/// Hessian of the inputs.
///
/// ```
/// use std::ops::Range;
/// use tersor_core::{Ahead, ColumnCoder, Error, Exec, LinearOp, Result};
/// use tersor_linalg::{Damping, Kept, Sweep};
///
/// /// Rounds weights to integers.
/// struct Round;
///
/// impl ColumnCoder for Round {
///     fn code(&mut self, _rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()> {
///         out.iter_mut().zip(ahead.column(at)).for_each(|(o, v)| *o = v.round());
///         Ok(())
///     }
///     fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>> {
///         Err(Error::missing("a stored form", "this example"))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// // Two correlated inputs: the second weight makes up for the rounding of the first.
/// let factor = Damping::default().factor(&[1.0, 0.9, 0.9, 1.0], 2)?;
/// let swept = Sweep::new(&factor, 128)?.run(vec![0.4, 0.4], &mut Round, Kept::All, &Exec::new())?;
/// assert_eq!(swept.values, [0.0, 1.0]);
/// assert!(swept.data_error < 0.1, "rounding both weights to 0 would have an error of 0.6");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Sweep<'f> {
    factor: &'f HessianFactor,
    upper: &'f [f32],
    block: usize,
}

impl<'f> Sweep<'f> {
    /// Returns a sweep with the factored Hessian `factor` that works in blocks of `block` columns. The coder that is passed to
    /// [`run`](Self::run), a [`ColumnCoder`] (a quantizer of columns), may end a block earlier or later ([`ColumnCoder::block_end`]), and
    /// every block but the last has a multiple of the number of columns that the coder codes at once ([`ColumnCoder::width`]). The errors
    /// of a block are compensated in all columns after it by one product, so that `block` affects the speed and, by rounding, the last bits
    /// of the result. With [`Kept::Chosen`] the function chooses for one block at a time, so that `block` also affects which weights are
    /// kept. Errors if `block` is 0. Errors with [`Error::NotPositiveDefinite`] if `factor` holds a failure in place of a factor.
    pub fn new(factor: &'f HessianFactor, block: usize) -> Result<Self> {
        if block == 0 {
            return Err(ParamError::new("block", 0, "must be at least 1").into());
        }
        let failed = || factor.failure().cloned().map_or_else(|| Error::missing("factor", "the Hessian"), Error::from);
        Ok(Self { factor, upper: factor.upper().ok_or_else(failed)?, block })
    }

    /// Sweeps the weights `w`, `[rows, features]` row-major with columns in the features' own order. Returns the dequantized weights, with
    /// columns in the order of the factor ([`HessianFactor::order`]), and the squared error of the outputs. `coder`, a [`ColumnCoder`] (a
    /// quantizer of columns) made for this number of rows, codes the columns in the order of the factor, and the error of each column is
    /// compensated in the later ones. `kept` says which weights are kept; the others become 0.
    ///
    /// The sweep runs on the calling thread; of `exec` only the instruction set is used. Rows depend on each other only through the coder
    /// and the function of [`Kept::Chosen`]. If these treat each row independently, a caller can cut a matrix into ranges of rows with
    /// [`in_row_spans`] and sweep the ranges in parallel.
    ///
    /// Errors if the length of `w` is not a multiple of the number of features, or if a weight is not finite. Errors if the mask of
    /// [`Kept::Mask`] is not `[rows, features]`, or if the function of [`Kept::Chosen`] errors or returns a mask of another shape than
    /// `[rows, columns of the block]`. Errors if the coder errors, for example because it does not support the order of the columns. Errors
    /// if [`ColumnCoder::width`] is not 1 to 16. Errors if [`ColumnCoder::block_end`] is not above the place of the block's first column,
    /// or is above the number of columns. Errors if the coder codes a weight that is not kept as a value other than 0, or if the errors of
    /// the weights become too large for f32.
    pub fn run(&self, mut w: Vec<f32>, coder: &mut dyn ColumnCoder, mut kept: Kept<'_>, exec: &Exec) -> Result<Swept> {
        let cols = self.factor.features();
        let rows = w.len().checked_div(cols).unwrap_or(0);
        if rows * cols != w.len() {
            return Err(Error::shape("values of rows to sweep", format!("a multiple of {cols}"), w.len()));
        }
        let width = coder.width();
        if !(1..=MAX_WIDTH).contains(&width) {
            return Err(Error::range("columns that a coder codes at once", 1..MAX_WIDTH + 1, width));
        }
        let fixed = match &kept {
            Kept::Mask(mask) if mask.shape() != [rows, cols] => {
                return Err(Error::shape("mask of the rows", [rows, cols], mask.shape()));
            }
            Kept::Mask(mask) => Some(*mask),
            _ => None,
        };
        tersor_core::check_finite(&w, cols, 0)?;
        coder.begin(self.factor.order())?;
        if let Some(order) = self.factor.order() {
            permute(&mut w, order);
        }
        let targets = w.clone();
        let diagonal: Vec<f32> = (0..cols).map(|i| self.upper[i * cols + i]).collect();
        let (mut total, mut start) = (0f64, 0);
        let mut tile = Tile::default();
        while start < cols {
            let end = coder.block_end(start, self.block, cols);
            if end <= start || end > cols {
                return Err(Error::range("end of a block of columns", start + 1..cols + 1, end));
            }
            // A multiple of the coder's width, except for the last block.
            let end =
                if end < cols { (start + (end - start) / width * width).max(start + width).min(cols) } else { end };
            let present = |to: usize| MatView::strided(&w, start, [rows, to - start], [cols as isize, 1]);
            coder.enter(start..end, present(cols)?, &diagonal)?;
            let chosen = match &mut kept {
                Kept::Chosen(choose) => {
                    let mask = choose(start..end, present(end)?, &diagonal)?;
                    if mask.shape() != [rows, end - start] {
                        return Err(Error::shape("mask of a block", [rows, end - start], mask.shape()));
                    }
                    Some(mask)
                }
                _ => None,
            };
            let keeps = |row: usize, place: usize| match (&chosen, fixed) {
                (Some(mask), _) => mask.keeps(row, place - start),
                (None, Some(mask)) => mask.keeps(row, self.factor.order().map_or(place, |o| o[place] as usize)),
                (None, None) => true,
            };
            let masked = chosen.is_some() || fixed.is_some();
            let mut errors = vec![0f32; rows * (end - start)];
            for top in (0..rows).step_by(ROW_UNIT) {
                let span = top..rows.min(top + ROW_UNIT);
                tile.take(&w, cols, span.clone(), start..end);
                for at in (start..end).step_by(width) {
                    let n = width.min(end - at);
                    if masked {
                        tile.drop_weights(at, n, |r, place| keeps(top + r, place));
                    }
                    tile.code(coder, span.clone(), at, n, &w[span.start * cols..span.end * cols], cols)?;
                    for i in at..at + n {
                        tile.propagate(exec.isa(), i, at + n, &self.upper[i * cols..(i + 1) * cols]);
                    }
                }
                total += tile.write_back(&mut w, &mut errors[top * (end - start)..], cols, span);
            }
            // The errors of this block are moved to all later columns in one product.
            if end < cols && rows > 0 {
                let rest = Out { data: &mut w[end..], stride: cols };
                let from = &self.upper[start * cols + end..];
                dense::subtract_product(&errors, [rows, end - start], from, cols, cols - end, rest)?;
            }
            start = end;
        }
        // Σ e² is the error in the damped Hessian, exactly: W - Ŵ = E U and U (H + λI) Uᵀ = I.
        let moved = metrics::squared_error(&targets, &w);
        let in_place_of_zeros = self.factor.mean * self.dead_errors(&targets, &w);
        let data_error = (total - self.factor.added() * moved - in_place_of_zeros).max(0.0);
        if !total.is_finite() || !moved.is_finite() {
            return Err(Error::Numerical(format!(
                "the errors of a sweep sum to {total:e}: weights or factor are too large for f32"
            )));
        }
        Ok(Swept { values: w, data_error })
    }
}

impl Sweep<'_> {
    /// Returns the sum of the squared errors of the weights of dead features, in two matrices with columns in the order of the factor.
    fn dead_errors(&self, a: &[f32], b: &[f32]) -> f64 {
        let cols = self.factor.features();
        let dead = (0..cols).filter(|&i| self.factor.dead()[self.factor.order().map_or(i, |o| o[i] as usize)]);
        let column = |i: usize| a.iter().zip(b).skip(i).step_by(cols).map(|(a, b)| f64::from(a - b).powi(2));
        dead.flat_map(column).sum()
    }
}

/// A block of columns of up to [`ROW_UNIT`] rows, `[columns, rows]`: a column is coded for all rows at once.
#[derive(Default)]
struct Tile {
    rows: usize,
    cols: Range<usize>,
    /// The weights; for coded columns the values that the codes stand for.
    w: Vec<f32>,
    errors: Vec<f32>,
    /// Weights of masked columns before they were pruned, `[columns at once, rows]`, and which ones were; empty if nothing is masked.
    before: Vec<f32>,
    dropped: Vec<bool>,
    out: Vec<f32>,
}

impl Tile {
    /// Copies a block out of row-major weights of `width` columns.
    fn take(&mut self, w: &[f32], width: usize, rows: Range<usize>, cols: Range<usize>) {
        (self.rows, self.cols) = (rows.len(), cols.clone());
        let n = rows.len() * cols.len();
        self.w.resize(n, 0.0);
        self.errors.resize(n, 0.0);
        for (r, row) in rows.enumerate() {
            for (c, v) in w[row * width..][cols.clone()].iter().enumerate() {
                self.w[c * self.rows + r] = *v;
            }
        }
    }

    /// Sets the weights of `n` columns from `at` on that are not kept to zero, so that the coder reads zeros.
    fn drop_weights(&mut self, at: usize, n: usize, keeps: impl Fn(usize, usize) -> bool) {
        let first = (at - self.cols.start) * self.rows;
        let columns = &mut self.w[first..first + n * self.rows];
        self.before.clear();
        self.before.extend_from_slice(columns);
        self.dropped.clear();
        self.dropped.resize(columns.len(), false);
        for (c, column) in columns.chunks_exact_mut(self.rows.max(1)).enumerate() {
            for (r, v) in column.iter_mut().enumerate().filter(|(r, _)| !keeps(*r, at + c)) {
                (*v, self.dropped[c * self.rows + r]) = (0.0, true);
            }
        }
    }

    /// Has `n` columns from `at` on coded, and replaces them by the values of their codes; `errors` receives the differences.
    fn code(
        &mut self,
        coder: &mut dyn ColumnCoder,
        rows: Range<usize>,
        at: usize,
        n: usize,
        rest: &[f32],
        cols: usize,
    ) -> Result<()> {
        let first = (at - self.cols.start) * self.rows;
        let span = first..first + n * self.rows;
        self.out.resize(span.len(), 0.0);
        let ahead = Ahead::new(&self.w, self.cols.clone(), rest, [self.rows, cols])?;
        coder.code(rows, at, &ahead, &mut self.out)?;
        let masked = !self.before.is_empty();
        if masked && self.dropped.iter().zip(&self.out).any(|(dropped, out)| *dropped && *out != 0.0) {
            let value = "on a grid without zero, which pruned weights need".to_string();
            return Err(Error::Unsupported { what: "mask", value });
        }
        let columns = self.w[span.clone()].iter_mut().zip(&mut self.errors[span]);
        for (i, ((w, e), out)) in columns.zip(&self.out).enumerate() {
            let target = if masked { self.before[i] } else { *w };
            (*w, *e) = (*out, target - *out);
        }
        self.before.clear();
        Ok(())
    }

    /// Divides the error of column `i` by the pivot and subtracts it, times the factor, from the later columns of the block. Columns up to
    /// `coded` are coded already, so their errors change instead. `u` is row `i` of the factor.
    fn propagate(&mut self, isa: Isa, i: usize, coded: usize, u: &[f32]) {
        let n = self.rows.max(1);
        let at = |c: usize| (c - self.cols.start) * self.rows;
        let (done, later) = self.errors.split_at_mut(at(i + 1));
        let errors = &mut done[at(i)..];
        errors.iter_mut().for_each(|e| *e /= u[i]);
        let coded_columns = later[..at(coded) - at(i + 1)].chunks_exact_mut(n);
        let rest = self.w[at(coded)..].chunks_exact_mut(n);
        for (column, factor) in coded_columns.chain(rest).zip(&u[i + 1..]) {
            vector::axpy(isa, -factor, errors, column);
        }
    }

    /// Writes the block back, and its errors (rows as long as the block) beside it. Returns the sum of the errors' squares.
    fn write_back(&self, w: &mut [f32], errors: &mut [f32], width: usize, rows: Range<usize>) -> f64 {
        let mut sum = 0f64;
        for (r, row) in rows.enumerate() {
            let at = row * width + self.cols.start;
            let errors = &mut errors[r * self.cols.len()..][..self.cols.len()];
            for (c, error) in errors.iter_mut().enumerate() {
                let from = c * self.rows + r;
                (w[at + c], *error) = (self.w[from], self.errors[from]);
                sum += f64::from(*error).powi(2);
            }
        }
        sum
    }
}

/// Cuts the rows `0..rows` into consecutive ranges of equal size, 64, 128, 192 or 256 rows (the last range may have fewer), and calls `f`
/// with each range. Returns the results in the order of the ranges; empty if `rows` is 0. The size depends on `rows` alone. If `parallel`
/// is true, the threads of the current rayon pool share the calls. If a call of `f` errors, the other calls still run; then the error of
/// the first range that failed is returned.
pub fn in_row_spans<R: Send>(
    rows: usize,
    parallel: bool,
    f: impl Fn(Range<usize>) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    let step = ROW_UNIT * rows.div_ceil(8 * ROW_UNIT).clamp(1, 4);
    let unit = |i: usize, (): &mut ()| f(i * step..((i + 1) * step).min(rows));
    par::map(rows.div_ceil(step), parallel, || (), unit).into_iter().collect()
}

/// Reorders the columns of a row-major matrix `rows` with `order.len()` columns in place: new column `i` is the old column `order[i]`,
/// counted from 0. Values after the last whole row are unchanged. Panics if an index is not below `order.len()`.
pub fn permute<T: Copy + Default>(rows: &mut [T], order: &[u32]) {
    if order.is_empty() {
        return;
    }
    let mut scratch = vec![T::default(); order.len()];
    for row in rows.chunks_exact_mut(order.len()) {
        scratch.copy_from_slice(row);
        row.iter_mut().zip(order).for_each(|(v, &i)| *v = scratch[i as usize]);
    }
}

/// Undoes [`permute`] with the same `order`, in place: in a row-major matrix `rows` with `order.len()` columns, the old column `i` becomes
/// column `order[i]`, counted from 0. `order` must be a permutation: a column that it does not name keeps its values. Values after the last
/// whole row are unchanged. Panics if an index is not below `order.len()`.
pub fn unpermute<T: Copy + Default>(rows: &mut [T], order: &[u32]) {
    if order.is_empty() {
        return;
    }
    let mut scratch = vec![T::default(); order.len()];
    for row in rows.chunks_exact_mut(order.len()) {
        scratch.copy_from_slice(row);
        order.iter().zip(&scratch).for_each(|(&i, v)| row[i as usize] = *v);
    }
}
