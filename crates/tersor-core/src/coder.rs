//! [`ColumnCoder`]: the quantizer of columns that a method lends to the shared column sweep.

use std::ops::Range;

use crate::{LinearOp, MatView, Result};

/// A quantizer that a method implements for a column sweep, as in GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774). The sweep goes
/// through the columns of a weight matrix, or of some of its rows, from the first to the last. The coder quantizes a few columns at a time.
/// The sweep then changes the columns that are not quantized yet so that they make up for the error of the quantized ones.
///
/// The sweep cuts the columns into blocks of neighbouring columns. It calls [`begin`](Self::begin) once for the whole sweep, and
/// [`enter`](Self::enter) once for each block. Inside of a block it calls [`code`](Self::code) for [`width`](Self::width) columns and some
/// of the rows at a time. After the last column, the caller of the sweep calls [`finish`](Self::finish) for the operator that stores all
/// codes. The first error of the coder ends the sweep, which returns this error. The crate `tersor-linalg` has the sweep and an example of
/// a coder.
pub trait ColumnCoder: Send {
    /// Returns the number of columns that are coded at once, 1 to 16; the sweep errors on other numbers. The default is 1. Every block of
    /// columns but the last is a multiple of it.
    fn width(&self) -> usize {
        1
    }

    /// Called once before the sweep, with the order of the columns, `[cols]`: `order[i]` is the feature (counted from 0) that is coded at
    /// place `i`; None if the features are coded in their own order. An implementation errors if it does not support the order; the default
    /// supports None only.
    fn begin(&mut self, order: Option<&[u32]>) -> Result<()> {
        match order {
            None => Ok(()),
            Some(_) => Err(crate::Error::Unsupported {
                what: "order of columns",
                value: "by importance, because this quantizer codes columns in their own order".into(),
            }),
        }
    }

    /// Returns the place after the last column of the block that begins at place `start`, in the order of the sweep. It must be above
    /// `start` and at most `cols`, the number of all columns, or the sweep errors; `start + block`, or `cols` if that is less, is the end
    /// that the sweep prefers, and the default. A coder whose groups get their quantization parameters during the sweep ends blocks where
    /// groups end.
    fn block_end(&self, start: usize, block: usize, cols: usize) -> usize {
        (start + block).min(cols)
    }

    /// Called when the sweep reaches the columns `block`. `ahead`, `[rows, cols - block.start]`, holds the weights of these columns and of
    /// all later ones, corrected for the quantization errors of all earlier blocks, for all rows of the coder. `diagonal`, `[cols]`, is the
    /// diagonal of the upper triangular factor `U` of the inverse Hessian, `H⁻¹ = UᵀU`, in the order of the sweep. An implementation errors
    /// if it cannot choose quantization parameters; the default does nothing.
    fn enter(&mut self, block: Range<usize>, ahead: MatView<'_, f32>, diagonal: &[f32]) -> Result<()> {
        let _ = (block, ahead, diagonal);
        Ok(())
    }

    /// Codes the columns from place `at` on, in the order of the sweep, for the rows `rows` of the coder, and writes the dequantized values
    /// of the codes to `out`, `[columns, rows.len()]`, one column after the other; the length of `out` gives the number of columns. `ahead`
    /// holds the weights of these rows alone, corrected for the errors of columns that are quantized already as [`Ahead`] says; its row 0
    /// is row `rows.start` of the coder. Pruned weights of the columns to code are 0 in `ahead` and must be coded as 0, or the sweep
    /// errors. An implementation errors if a scale cannot be stored.
    fn code(&mut self, rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()>;

    /// Returns the operator of all coded rows and columns, with the columns in the order of the sweep. Called once, after the last column.
    /// Errors if the codes cannot be packed.
    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>>;
}

/// The current values of some rows of a weight matrix during a column sweep, as in GPTQ: those of the current block of columns and of all
/// columns after this block. The sweep quantizes the columns in order, in blocks of neighbouring columns, and changes later columns so that
/// they make up for the error of the quantized ones. Columns of the current block that are quantized already hold the dequantized values of
/// their codes; the other columns of the block make up for all errors so far. Columns after the current block make up for the errors of
/// earlier blocks only. [`ColumnCoder::code`] gets such a view. Rows are counted from 0 in the view, columns from 0 in the order of the
/// sweep.
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
    /// Returns a view of `rows` rows of a matrix of `cols` columns, for a sweep that quantizes the columns in order, in blocks, and
    /// corrects later columns for the errors of earlier ones, as in GPTQ. The current block is the columns `block`. `tile` holds its
    /// values, `[block.len(), rows]`, one column after the other: the dequantized values of columns that are quantized already, and the
    /// weights of the others as corrected so far. `rest` holds whole rows, `[rows, cols]` row-major; only its columns from `block.end` on
    /// are read, which are weights as corrected for earlier blocks. `block` may be empty. Errors with [`Error::Shape`](crate::Error::Shape)
    /// if `block` starts after its own end or ends after `cols`, if `tile` does not have `block.len() * rows` values, or if `rest` does not
    /// have `rows * cols` values.
    pub fn new(tile: &'a [f32], block: Range<usize>, rest: &'a [f32], [rows, cols]: [usize; 2]) -> Result<Self> {
        let fits = |values: &[f32], cols: usize| rows.checked_mul(cols) == Some(values.len());
        if block.start > block.end || block.end > cols || !fits(tile, block.len()) || !fits(rest, cols) {
            let expected = format!("columns {block:?} of {rows} rows, and {rows} rows of {cols}");
            return Err(crate::Error::shape("values of a sweep", expected, (tile.len(), rest.len())));
        }
        Ok(Self { tile, block: (block.start, block.end), rows, rest, cols })
    }

    /// Returns the number of rows of this view.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns of the matrix that is quantized column by column: those already quantized and those still to come.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the values of column `at`, one for each row: its weights as corrected so far for the errors of columns that are quantized
    /// already or, if column `at` is quantized already, the dequantized values of its codes. Columns are counted from 0 in the order in
    /// which they are quantized. The result is empty if the column is not in the block of columns that is being quantized; [`Ahead::read`]
    /// reads later columns too.
    pub fn column(&self, at: usize) -> &'a [f32] {
        let (start, end) = self.block;
        if at < start || at >= end { &[] } else { &self.tile[(at - start) * self.rows..][..self.rows] }
    }

    /// Appends the values of row `row` in the columns `columns` to `out`: the weights as corrected so far for the errors of columns that
    /// are quantized already or, if the column itself is one of these, the dequantized value of its code. Rows are counted from 0, columns
    /// from 0 in the order in which they are quantized. Columns before the block of columns that is being quantized, and past the last
    /// column, are left out. Nothing is appended if there is no such row.
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
