//! [`ColumnCoder`]: what a quantizer lends to the shared column sweep.

use std::ops::Range;

use crate::{LinearOp, MatView, Result};

/// Codes the columns of some rows of a matrix, a few at a time, while a sweep from the first column to the last moves the error of each coded
/// column to the columns after it (GPTQ, arXiv 2210.17323; SparseGPT, arXiv 2301.00774).
///
/// The sweep goes through the columns in blocks. It calls [`enter`](Self::enter) at each block, then [`code`](Self::code) for runs of
/// [`width`](Self::width) columns, and [`finish`](Self::finish) at the end.
pub trait ColumnCoder: Send {
    /// Returns the number of columns that are coded at once, 1 to 16. The sweep makes all blocks but the last multiples of it.
    fn width(&self) -> usize {
        1
    }

    /// Hears the order in which columns are taken, where it is not their own: `order[i]` is the feature at place `i`. Errors if the coder
    /// cannot follow it.
    fn begin(&mut self, order: Option<&[u32]>) -> Result<()> {
        match order {
            None => Ok(()),
            Some(_) => Err(crate::Error::Unsupported {
                what: "order of columns",
                value: "by importance; this quantizer takes columns in their own order".into(),
            }),
        }
    }

    /// Returns the end of the block that begins at column `start`; blocks have at most `block` columns, and there are `cols` in all. A coder
    /// whose groups are fitted on the way ends blocks where groups end.
    fn block_end(&self, start: usize, block: usize, cols: usize) -> usize {
        (start + block).min(cols)
    }

    /// Hears that the sweep has come to the columns `block`. `ahead` has the present values of these columns and of all after them,
    /// `[rows, cols - block.start]` for all rows of the coder, `diagonal` the diagonal of the factor of the inverse Hessian, `[cols]` in the
    /// order of the sweep.
    fn enter(&mut self, block: Range<usize>, ahead: MatView<'_, f32>, diagonal: &[f32]) -> Result<()> {
        let _ = (block, ahead, diagonal);
        Ok(())
    }

    /// Codes the columns from place `at` on for the rows `rows` of the coder, as many columns as `out` `[columns, rows]` holds, and writes the
    /// values that the codes stand for into `out`. `ahead` has the present values of these rows. Errors if a scale cannot be stored.
    fn code(&mut self, rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()>;

    /// Returns the operator of all columns, in the order of the sweep. Errors if they cannot be packed.
    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>>;
}

/// The present values of the columns that a sweep has not coded yet, for some rows.
#[derive(Clone, Copy)]
pub struct Ahead<'a> {
    /// Columns of the current block, `[columns, rows]`.
    pub(crate) tile: &'a [f32],
    /// The columns that `tile` has.
    pub(crate) block: (usize, usize),
    /// Number of rows.
    pub(crate) rows: usize,
    /// Whole rows `[rows, cols]`, up to date from the end of the block on.
    pub(crate) rest: &'a [f32],
    /// Columns of a row.
    pub(crate) cols: usize,
}

impl<'a> Ahead<'a> {
    /// Returns a view of `rows` rows: `tile` `[block.len(), rows]` has the columns `block`, `rest` `[rows, cols]` the columns after them. Errors
    /// if a length does not fit.
    pub fn new(tile: &'a [f32], block: Range<usize>, rest: &'a [f32], [rows, cols]: [usize; 2]) -> Result<Self> {
        if block.start > block.end || block.end > cols || tile.len() != block.len() * rows || rest.len() != rows * cols
        {
            let expected = format!("columns {block:?} of {rows} rows, and {rows} rows of {cols}");
            return Err(crate::Error::shape("values of a sweep", expected, (tile.len(), rest.len())));
        }
        Ok(Self { tile, block: (block.start, block.end), rows, rest, cols })
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns of the whole sweep.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the values of a column of the current block, one for each row; none for other columns.
    pub fn column(&self, at: usize) -> &'a [f32] {
        let (start, end) = self.block;
        if at < start || at >= end { &[] } else { &self.tile[(at - start) * self.rows..][..self.rows] }
    }

    /// Appends the values of some columns of a row to `out`: columns of the current block or after it, in order; those outside are left out.
    pub fn read(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        let (start, end) = self.block;
        if row >= self.rows {
            return;
        }
        let here = columns.start.max(start)..columns.end.min(end);
        out.extend(here.map(|c| self.tile[(c - start) * self.rows + row]));
        let after = columns.start.max(end)..columns.end.min(self.cols);
        if after.start < after.end {
            out.extend_from_slice(&self.rest[row * self.cols..][after]);
        }
    }
}
