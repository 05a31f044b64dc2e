//! [`ColumnCoder`]: the quantizer of columns that a method lends to the shared column sweep.

use std::ops::Range;

use crate::{LinearOp, MatView, Result};

/// Codes some rows of a matrix, a few columns at a time, while a sweep from the first column to the last moves the error of each coded
/// column to the columns after it (GPTQ, arXiv 2210.17323; SparseGPT, arXiv 2301.00774).
///
/// The sweep goes through the columns in blocks. It calls [`begin`](Self::begin) once, [`enter`](Self::enter) at each block,
/// [`code`](Self::code) for each [`width`](Self::width) columns, and its caller calls [`finish`](Self::finish) at the end. The crate
/// `tersor-linalg` has the sweep and an example of a coder.
pub trait ColumnCoder: Send {
    /// Returns the number of columns that are coded at once, 1 to 16. All blocks of the sweep but the last are multiples of it.
    fn width(&self) -> usize {
        1
    }

    /// Called before the sweep with the order of the columns: `order[i]` is the feature at place `i`; None for their own order. Errors if
    /// the coder does not support the order.
    fn begin(&mut self, order: Option<&[u32]>) -> Result<()> {
        match order {
            None => Ok(()),
            Some(_) => Err(crate::Error::Unsupported {
                what: "order of columns",
                value: "by importance, because this quantizer codes columns in their own order".into(),
            }),
        }
    }

    /// Returns the end of the block that begins at column `start`: at most `block` columns later and at most `cols`, the number of all
    /// columns. A coder whose groups get their quantization parameters during the sweep ends blocks where groups end.
    fn block_end(&self, start: usize, block: usize, cols: usize) -> usize {
        (start + block).min(cols)
    }

    /// Called when the sweep reaches the columns `block`. `ahead` holds the updated values of these columns and of all later ones for all
    /// rows of the coder, `[rows, cols - block.start]`; `diagonal` is the diagonal of the factor of the inverse Hessian, `[cols]`, in the
    /// order of the sweep. Errors if the coder cannot choose quantization parameters.
    fn enter(&mut self, block: Range<usize>, ahead: MatView<'_, f32>, diagonal: &[f32]) -> Result<()> {
        let _ = (block, ahead, diagonal);
        Ok(())
    }

    /// Codes the columns from place `at` on for the rows `rows` of the coder, as many columns as `out` holds, and writes the values that
    /// the codes stand for into `out`, `[columns, rows]`. `ahead` holds the updated values of these rows. Errors if a scale cannot be
    /// stored.
    fn code(&mut self, rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()>;

    /// Returns the operator of all coded columns, in the order of the sweep. Errors if the codes cannot be packed.
    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>>;
}

/// The current values of the columns that are not quantized yet, for some rows. A sweep quantizes columns in order and adds the error of each to the
/// columns after it (as in GPTQ); it passes these values to [`ColumnCoder::code`].
///
/// ```
/// use tersor_core::Ahead;
/// # fn main() -> tersor_core::Result<()> {
/// // One row of four columns; the sweep is at the block of columns 1 and 2.
/// let ahead = Ahead::new(&[20.0, 30.0], 1..3, &[0.0, 0.0, 0.0, 40.0], [1, 4])?;
/// assert_eq!(ahead.column(2), [30.0]);
/// let mut values = Vec::new();
/// ahead.read(0, 2..4, &mut values);
/// assert_eq!(values, [30.0, 40.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Ahead<'a> {
    /// Columns of the current block, `[columns, rows]`.
    pub(crate) tile: &'a [f32],
    /// The columns of `tile`.
    pub(crate) block: (usize, usize),
    /// Number of rows.
    pub(crate) rows: usize,
    /// Whole rows `[rows, cols]`, up to date from the end of the block on.
    pub(crate) rest: &'a [f32],
    /// Columns of a row.
    pub(crate) cols: usize,
}

impl<'a> Ahead<'a> {
    /// Returns a view of `rows` rows of a matrix of `cols` columns, which is swept in blocks. `tile` `[block.len(), rows]` holds the
    /// columns `block`, one after the other. `rest` `[rows, cols]` holds whole rows, of which only the columns from `block.end` on are
    /// read. Errors if the block leaves the columns or a length does not match.
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

    /// Returns the number of columns of the matrix that is quantized column by column: those already quantized and those still to come.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the values of column `at`, counted from the first column of the sweep, one for each row; empty if the current block does not
    /// have it.
    pub fn column(&self, at: usize) -> &'a [f32] {
        let (start, end) = self.block;
        if at < start || at >= end { &[] } else { &self.tile[(at - start) * self.rows..][..self.rows] }
    }

    /// Appends the values of the columns `columns`, counted from the first column of the sweep, of row `row` to `out`. Columns before the
    /// current block and past the last column are left out; nothing is appended if there is no such row.
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
