//! The algorithm, and its face as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::compose::Permuted;
use tersor_core::method::ROW_UNIT;
use tersor_core::{
    Compressed, Context, DType, Element, Error, GroupSize, IntoMat, Isa, Layout, LinearOp, Method, Prepared, Report,
    Result, RowSource, StatNeeds, StatSet, TensorInfo, check_finite, metrics, read_finite,
};
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::dense::{self, Out};
use tersor_kernels::{par, vector};

use super::{CheckedGptq, Dead, Factor, Groups};
use crate::GroupedLinear;
use crate::linear::spans;

impl CheckedGptq {
    /// Quantizes a matrix `[out_features, in_features]` for inputs with the Hessian `XᵀX`, `[in_features, in_features]`.
    /// The report has the error `tr (W - Ŵ) H (W - Ŵ)ᵀ`. Error as for [`CheckedGptq::factor`], on a value that is not
    /// finite, or a scale that its type cannot hold.
    pub fn quantize<T: Element>(&self, w: &impl IntoMat<T>, hessian: &[f64]) -> Result<Compressed> {
        w.with_mat(|m| self.quantize_with(&m, &self.factor(hessian, m.shape()[1])?))
    }

    /// [`CheckedGptq::quantize`] with a factor that several matrices share.
    pub fn quantize_with<T: Element>(&self, w: &impl IntoMat<T>, factor: &Factor) -> Result<Compressed> {
        w.with_mat(|m| {
            let w = m.to_f32();
            check_finite(&w, m.shape()[1], 0)?;
            self.run(&w, m.shape(), factor, 0)
        })
    }

    /// [`CheckedGptq::grouped`], as an operator for inputs in their own order.
    fn run(&self, w: &[f32], shape: [usize; 2], factor: &Factor, first: usize) -> Result<Compressed> {
        let (op, report) = self.grouped(w, shape, factor, first)?;
        Ok(Compressed { op: self.in_own_order(op, factor)?, report })
    }

    fn in_own_order(&self, op: GroupedLinear, factor: &Factor) -> Result<Box<dyn LinearOp>> {
        Ok(match &factor.order {
            Some(order) if self.permutes() => Box::new(Permuted::new(order.clone(), Box::new(op))?),
            _ => Box::new(op),
        })
    }

    /// Rows in units, each on its own, in the current pool. `first` is the number of the first row.
    fn grouped(
        &self,
        w: &[f32],
        [rows, cols]: [usize; 2],
        factor: &Factor,
        first: usize,
    ) -> Result<(GroupedLinear, Report)> {
        let start = Instant::now();
        if cols != factor.features {
            return Err(Error::shape("features of the Hessian", cols, factor.features));
        }
        let isa = Isa::detect();
        // Large enough that the lazy product is worth its preparation, small enough that all threads have some.
        let step = ROW_UNIT * rows.div_ceil(8 * ROW_UNIT).clamp(1, 4);
        let unit = |i: usize, (): &mut ()| -> Result<Unit> {
            let range = i * step..((i + 1) * step).min(rows);
            self.unit(isa, &w[range.start * cols..range.end * cols], factor, first + range.start)
        };
        let units = par::map(rows.div_ceil(step), true, || (), unit);
        let mut report = Report { dead_columns: factor.dead_columns(), ..Report::default() };
        report.fallbacks.extend(factor.fallback.clone());
        let (mut parts, mut error) = (Vec::new(), 0f64);
        for u in units {
            let u = u?;
            report.squared_error += u.squared_error;
            error += u.data_error;
            parts.push(u.op);
        }
        report.energy = metrics::energy(w);
        if factor.u.is_some() {
            (report.data_error, report.damping) = (Some(error), Some(factor.damping));
        }
        let op = GroupedLinear::stack(self.spec, [rows, cols], parts)?;
        report.seconds = start.elapsed().as_secs_f64();
        Ok((op, report))
    }

    /// The grids of rows that are fitted before anything is rounded: of each group, or of each row.
    fn fit_all(&self, isa: Isa, w: &[f32], cols: usize, first: usize) -> Result<Vec<Affine>> {
        let mut fits = Vec::new();
        for (r, row) in w.chunks_exact(cols.max(1)).enumerate() {
            for (g, span) in spans(&self.spec, cols).enumerate() {
                fits.push(self.spec.fit_at(isa, &row[span], &[], [first + r, g])?);
            }
        }
        Ok(fits)
    }

    /// Columns from `start` on between two products with the rest: no group that is fitted on the way begins in one
    /// block and ends in another, unless it is longer than a block and fills them.
    fn block_end(&self, start: usize, cols: usize) -> usize {
        let end = match (self.spec.group, self.groups) {
            (GroupSize::Size(g), Groups::Dynamic) => match g.get() {
                g if g <= self.block => start + self.block / g * g,
                g => (start + self.block).min((start / g + 1) * g),
            },
            _ => start + self.block,
        };
        end.min(cols)
    }

    fn unit(&self, isa: Isa, original: &[f32], factor: &Factor, first: usize) -> Result<Unit> {
        let cols = factor.features;
        let rows = original.len().checked_div(cols).unwrap_or(0);
        let mut w = original.to_vec();
        if self.dead == Dead::Zero {
            for row in w.chunks_exact_mut(cols.max(1)) {
                row.iter_mut().zip(&factor.dead).filter(|(_, d)| **d).for_each(|(v, _)| *v = 0.0);
            }
        }
        let Some(u) = &factor.u else {
            let fits = self.fit_all(isa, &w, cols, first)?;
            let op = GroupedLinear::round(self.spec, [rows, cols], &w, &fits, isa)?;
            return Unit::new(op, original, 0.0, &None);
        };
        let dynamic = self.groups == Groups::Dynamic && matches!(self.spec.group, GroupSize::Size(_));
        let mut fits = if dynamic { Vec::new() } else { self.fit_all(isa, &w, cols, first)? };
        let per_row = self.spec.group.count(cols);
        if dynamic {
            fits.resize(rows * per_row, Affine { scale: 1.0, zero: 0 });
        }
        if let Some(order) = &factor.order {
            permute(&mut w, order);
        }
        let targets = w.clone();
        let width = self.spec.group.width(cols);
        let (lo, hi) = self.spec.grid.codes(self.spec.bits).into_inner();
        let mut codes = vec![0u8; rows * cols];
        let (mut total, mut start) = (0f64, 0);
        let mut tile = Tile::default();
        while start < cols {
            let end = self.block_end(start, cols);
            let mut errors = vec![0f32; rows * (end - start)];
            for top in (0..rows).step_by(ROW_UNIT) {
                let span = top..rows.min(top + ROW_UNIT);
                tile.take(&w, cols, span.clone(), start..end);
                for i in start..end {
                    let group = match &factor.order {
                        Some(order) if !dynamic => order[i] as usize / width,
                        _ => i / width,
                    };
                    if dynamic && i % width == 0 {
                        for r in span.clone() {
                            let piece = tile.row(&w[r * cols..(r + 1) * cols], r - top, i..(i + width).min(cols));
                            fits[r * per_row + group] = self.spec.fit_at(isa, piece, &[], [first + r, group])?;
                        }
                    }
                    tile.grids(span.clone().map(|r| fits[r * per_row + group]));
                    tile.round(isa, i, lo..=hi, &u[i * cols..(i + 1) * cols]);
                }
                total += tile.give(&mut w, &mut codes, &mut errors[top * (end - start)..], cols, span);
            }
            // The lazy batch: what this block's errors mean for all columns after it, as one product.
            if end < cols {
                let rest = Out { data: &mut w[end..], stride: cols };
                let from = &u[start * cols + end..];
                dense::subtract_product(&errors, [rows, end - start], from, cols, cols - end, rest);
            }
            start = end;
        }
        // Σ e² is the error in the damped Hessian, exactly: W - Ŵ = E U and U (H + λI) Uᵀ = I.
        let moved = metrics::squared_error(&targets, &w);
        let data_error = (total - factor.added * moved).max(0.0);
        let order = if self.permutes() { None } else { factor.order.as_ref() };
        if let Some(order) = order {
            unpermute(&mut codes, order);
        }
        let op = GroupedLinear::from_codes(self.spec, [rows, cols], &codes, &fits)?;
        Unit::new(op, original, data_error, if self.permutes() { &factor.order } else { &None })
    }
}

/// A block of columns of up to [`ROW_UNIT`] rows, column by column: each column is rounded for all rows at once.
#[derive(Default)]
struct Tile {
    rows: usize,
    cols: Range<usize>,
    /// Weights; those of rounded columns are what they were rounded to.
    w: Vec<f32>,
    errors: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    piece: Vec<f32>,
}

impl Tile {
    /// Takes a block out of row-major weights of `width` columns.
    fn take(&mut self, w: &[f32], width: usize, rows: Range<usize>, cols: Range<usize>) {
        (self.rows, self.cols) = (rows.len(), cols.clone());
        let n = rows.len() * cols.len();
        self.w.resize(n, 0.0);
        self.errors.resize(n, 0.0);
        self.codes.resize(n, 0);
        for (r, row) in rows.enumerate() {
            for (c, v) in w[row * width..][cols.clone()].iter().enumerate() {
                self.w[c * self.rows + r] = *v;
            }
        }
    }

    /// Columns `span` of a row as they are now: those of this block from here, those after it from `row`.
    fn row(&mut self, row: &[f32], r: usize, span: Range<usize>) -> &[f32] {
        let here = span.start..span.end.min(self.cols.end);
        self.piece.clear();
        self.piece.extend(here.clone().map(|i| self.w[(i - self.cols.start) * self.rows + r]));
        self.piece.extend_from_slice(&row[here.end..span.end]);
        &self.piece
    }

    /// The grid of each row.
    fn grids(&mut self, fits: impl Iterator<Item = Affine>) {
        self.scales.clear();
        self.zeros.clear();
        for fit in fits {
            self.scales.push(fit.scale);
            self.zeros.push(f32::from(fit.zero));
        }
    }

    /// Rounds column `i` and moves its error to the columns of the block after it. `u` is row `i` of the factor.
    fn round(&mut self, isa: Isa, i: usize, range: std::ops::RangeInclusive<u8>, u: &[f32]) {
        let (at, n) = ((i - self.cols.start) * self.rows, self.rows);
        let (done, rest) = self.w.split_at_mut(at + n);
        let column = &mut done[at..];
        let (codes, errors) = (&mut self.codes[at..at + n], &mut self.errors[at..at + n]);
        // The errors' place holds the values until they are known.
        affine::round_each(isa, column, [&self.scales, &self.zeros], range, codes, errors);
        for (w, e) in column.iter_mut().zip(errors.iter_mut()) {
            (*w, *e) = (*e, (*w - *e) / u[i]);
        }
        for (column, factor) in rest.chunks_exact_mut(n).zip(&u[i + 1..]) {
            vector::axpy(isa, -factor, errors, column);
        }
    }

    /// Puts the block back, its codes and errors (whose rows are as long as the block) beside it; the sum of the errors' squares.
    fn give(&self, w: &mut [f32], codes: &mut [u8], errors: &mut [f32], width: usize, rows: Range<usize>) -> f64 {
        let mut sum = 0f64;
        for (r, row) in rows.enumerate() {
            let at = row * width + self.cols.start;
            let errors = &mut errors[r * self.cols.len()..][..self.cols.len()];
            for (c, error) in errors.iter_mut().enumerate() {
                let from = c * self.rows + r;
                (w[at + c], codes[at + c], *error) = (self.w[from], self.codes[from], self.errors[from]);
                sum += f64::from(*error).powi(2);
            }
        }
        sum
    }
}

/// A unit of rows, done.
struct Unit {
    op: GroupedLinear,
    squared_error: f64,
    data_error: f64,
}

impl Unit {
    /// `order`: the order in which `op` is stored, where that is not the matrix' own.
    fn new(op: GroupedLinear, original: &[f32], data_error: f64, order: &Option<Vec<u32>>) -> Result<Self> {
        let mut back = vec![0f32; original.len()];
        op.decompress_rows(0..op.shape()[0], &mut back)?;
        if let Some(order) = order {
            unpermute(&mut back, order);
        }
        let squared_error = metrics::squared_error(original, &back);
        Ok(Self { op, squared_error, data_error })
    }
}

/// Column `i` becomes what was column `order[i]`.
fn permute(rows: &mut [f32], order: &[u32]) {
    let mut scratch = vec![0f32; order.len()];
    for row in rows.chunks_exact_mut(order.len().max(1)) {
        scratch.copy_from_slice(row);
        row.iter_mut().zip(order).for_each(|(v, &i)| *v = scratch[i as usize]);
    }
}

/// Undoes [`permute`].
fn unpermute<T: Copy + Default>(rows: &mut [T], order: &[u32]) {
    let mut scratch = vec![T::default(); order.len()];
    for row in rows.chunks_exact_mut(order.len().max(1)) {
        scratch.copy_from_slice(row);
        order.iter().zip(&scratch).for_each(|(&i, v)| row[i as usize] = *v);
    }
}

impl Method for CheckedGptq {
    fn name(&self) -> String {
        "gptq".into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds { gram: true, ..StatNeeds::default() }
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        tersor_core::view::elements(shape)?;
        let grouped = GroupedLinear::layout(&self.spec, shape);
        if !self.permutes() {
            return Ok(grouped);
        }
        // Stored in order whenever the Hessian can be factored; else without it, and smaller.
        let mut layout = grouped.nested("op");
        layout.tensors.push(("order".into(), TensorInfo { dtype: DType::U32, shape: vec![shape[1]] }));
        Ok(layout)
    }

    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(self.prepare_grouped(stats, cx)?))
    }
}

impl CheckedGptq {
    /// The factor that all matrices of a site share.
    pub(crate) fn prepare_grouped<'s>(&'s self, stats: Option<&StatSet>, _: &Context) -> Result<Ready<'s>> {
        let missing = || Error::Missing { name: "XᵀX".into(), place: "the statistics that GPTQ was given".into() };
        let stats = stats.ok_or_else(missing)?;
        if stats.tokens() == 0 {
            return Err(Error::Missing { name: "calibration tokens".into(), place: "the statistics".into() });
        }
        let gram = stats.gram().ok_or_else(missing)?;
        let mut factor = self.factor(gram, stats.features())?;
        if self.permutes() && factor.order.is_none() {
            // The layout promised an order: the natural one.
            factor.order = Some((0..stats.features() as u32).collect());
        }
        Ok(Ready { method: self, factor, tokens: stats.tokens(), gram: gram.iter().map(|v| *v as f32).collect() })
    }
}

/// A site's factor, for all its matrices.
pub(crate) struct Ready<'s> {
    method: &'s CheckedGptq,
    factor: Factor,
    tokens: u64,
    gram: Vec<f32>,
}

impl Ready<'_> {
    /// Rows on the grid; of a method that stores them in another order, in that.
    pub(crate) fn grouped(
        &self,
        w: &dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Result<(GroupedLinear, Report)> {
        cx.cancel.check()?;
        let cols = w.shape()[1];
        let values = read_finite(w, rows.clone())?;
        let (op, mut report) = cx.run(|| self.method.grouped(&values, [rows.len(), cols], &self.factor, rows.start))?;
        report.data_energy = Some(cx.run(|| energy(&values, &self.gram, cols)));
        if self.tokens < cols as u64 {
            let n = self.tokens;
            report.fallbacks.push(format!("{n} tokens for {cols} features: the Hessian has rank {n} at most"));
        }
        Ok((op, report))
    }
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.grouped(w, rows, cx)?;
        let op = self.method.in_own_order(op, &self.factor)?;
        Ok(Compressed { op, report })
    }
}

/// `tr W H Wᵀ`.
fn energy(w: &[f32], gram: &[f32], cols: usize) -> f64 {
    let unit = |i: usize, (): &mut ()| {
        let w = &w[i * ROW_UNIT * cols..w.len().min((i + 1) * ROW_UNIT * cols)];
        let mut y = vec![0f32; w.len()];
        dense::product_plain(w, [w.len() / cols, cols], gram, cols, &mut y);
        w.iter().zip(&y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let units = w.len().checked_div(cols).unwrap_or(0).div_ceil(ROW_UNIT);
    par::map(units, true, || (), unit).into_iter().sum()
}
