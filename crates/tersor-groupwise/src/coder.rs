//! [`GroupCoder`]: rounds the columns of an error-feedback sweep (GPTQ) to uniform grids of groups.

use std::ops::Range;

use tersor_core::{Ahead, ColumnCoder, Error, FeatureMap, GroupSize, Isa, LinearOp, Result};
use tersor_kernels::affine::{self, Affine};
use tersor_linalg::sweep::unpermute;
use tersor_operators::{GroupSpec, GroupedLinear, Permuted, spans};

/// When a GPTQ sweep over the columns computes the scale and zero point of a group (consecutive columns of a row that share them): during
/// the sweep, when it reaches the group ([`Groups::Dynamic`], the default of [`Gptq`](crate::Gptq)), or before the sweep
/// ([`Groups::Static`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// When the first column of the group is rounded, from the weights as updated by the errors of earlier columns.
    Dynamic,
    /// Before any column is rounded, from the original weights (the option `static_groups` of GPTQ's released code).
    Static,
}

/// The [`ColumnCoder`] (the quantizer that a GPTQ sweep calls for one column after the other) of uniform grids. It is made for some rows of
/// a matrix, rounds each value to the grid of its group (consecutive columns of a row that share a scale and zero point), and keeps the
/// codes.
///
/// ```
/// use tersor_groupwise::coder::{GroupCoder, Groups};
/// use tersor_groupwise::*;
///
/// # fn main() -> Result<()> {
/// let spec = GroupSpec::new(4, GroupSize::size(3)?, Grid::Asym, DType::F16, Clip::None)?;
/// let coder = GroupCoder::new(spec, Groups::Dynamic, &[0.5; 8], 8, 0, Isa::detect())?;
/// // A block of at most 4 columns ends where a group of 3 does.
/// assert_eq!(coder.block_end(0, 4, 8), 3);
/// # Ok(())
/// # }
/// ```
pub struct GroupCoder {
    spec: GroupSpec,
    isa: Isa,
    rows: usize,
    cols: usize,
    /// Index of the first row in the matrix, for error messages.
    first: usize,
    dynamic: bool,
    /// `order[i]` is the feature at place `i` of the sweep; `None` for the natural order.
    order: Option<Vec<u32>>,
    /// Scale and zero point of each group, `[rows, groups]`.
    params: Vec<Affine>,
    /// Codes, `[cols, rows]`, columns in the order of the sweep.
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    piece: Vec<f32>,
}

impl GroupCoder {
    /// Returns a coder for the rows `w`, `[rows, cols]` row-major, with columns in the natural order of the input features; values after
    /// the last whole row are ignored. There are no rows if `cols` is 0. `spec` sets bits, group size, grid, scale type and clip search.
    /// `first` is the index of the first row of `w` in the whole matrix, counted from 0, which only error messages use. `isa` is the
    /// instruction set to compute with.
    ///
    /// With [`Groups::Dynamic`] and groups of a set size ([`GroupSize::Size`]), scales are computed later, during the sweep, and this call
    /// never errors. Otherwise all scales are computed here from `w`; NaN values are ignored, and the call errors if a scale becomes
    /// infinite or 0 in its stored type. One scale for the whole matrix ([`GroupSize::Tensor`]) is not supported:
    /// [`GroupCoder::into_linear`] then errors if there is more than one row.
    pub fn new(spec: GroupSpec, groups: Groups, w: &[f32], cols: usize, first: usize, isa: Isa) -> Result<Self> {
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let dynamic = groups == Groups::Dynamic && matches!(spec.group(), GroupSize::Size(_));
        let params = if dynamic {
            vec![Affine { scale: 1.0, zero: *spec.zero_points().start() }; rows * spec.group().count(cols)]
        } else {
            params_of_rows(&spec, w, cols, first, isa)?
        };
        let (order, codes, piece) = (None, vec![0u8; rows * cols], Vec::new());
        let (scales, zeros) = (Vec::new(), Vec::new());
        Ok(Self { spec, isa, rows, cols, first, dynamic, order, params, codes, scales, zeros, piece })
    }

    /// Returns the matrix of the codes, `[rows, cols]`, usually with columns in the natural order of the input features. The columns stay
    /// in the order of the sweep if scales were computed during the sweep ([`Groups::Dynamic`] with groups of a set size): column `i` is
    /// then the one that the sweep took as number `i`, counted from 0, and a group is consecutive columns in this order. If this order is
    /// not the natural one, [`with_column_order`] restores the natural one.
    ///
    /// Errors if a code is not on the grid. This happens with [`Grid::SymNarrow`](tersor_operators::Grid::SymNarrow) if the sweep did not
    /// reach a column: such columns have the code 0, which this grid lacks. Errors also if a group has more than 32 768 columns, unless
    /// their number is a multiple of 32 768 or the group is a whole row. Errors also if the matrix has more than one row but one scale for
    /// all of them ([`GroupSize::Tensor`]).
    pub fn into_linear(self) -> Result<GroupedLinear> {
        const TILE: usize = 64;
        let (rows, cols) = (self.rows, self.cols);
        let mut codes = vec![0u8; rows * cols];
        for left in (0..cols).step_by(TILE) {
            for c in left..(left + TILE).min(cols) {
                for r in 0..rows {
                    codes[r * cols + c] = self.codes[c * rows + r];
                }
            }
        }
        if let Some(order) = self.order.as_ref().filter(|_| !self.dynamic) {
            unpermute(&mut codes, order);
        }
        GroupedLinear::from_codes(self.spec, [rows, cols], &codes, &self.params)
    }
}

/// Returns `op`, `[rows, cols]`, as an operator with columns in their natural order. If `order`, `[cols]`, is given, column `i` of `op` is
/// input feature `order[i]`, counted from 0, and the returned operator permutes its inputs before it multiplies them; without `order`, `op`
/// itself is returned. Use it on the result of [`GroupCoder::into_linear`] for dynamic groups. Errors unless `order` holds each of
/// `0..cols` exactly once.
pub fn with_column_order(op: GroupedLinear, order: Option<&[u32]>) -> Result<Box<dyn LinearOp>> {
    Ok(match order {
        Some(order) => Box::new(Permuted::new(order.to_vec(), Box::new(op))?),
        None => Box::new(op),
    })
}

/// Returns the scale and zero point of each group of the rows `w`, `[rows, cols]`, as `[rows, groups]`. `first` is the index of the first row, for
/// error messages. Errors if a scale does not fit its stored type.
pub(crate) fn params_of_rows(spec: &GroupSpec, w: &[f32], cols: usize, first: usize, isa: Isa) -> Result<Vec<Affine>> {
    let mut params = Vec::new();
    for (r, row) in w.chunks_exact(cols.max(1)).enumerate() {
        for (g, span) in spans(spec, cols).enumerate() {
            params.push(spec.quant_params_at(isa, &row[span], &[], [first + r, g])?);
        }
    }
    Ok(params)
}

impl ColumnCoder for GroupCoder {
    fn begin(&mut self, order: Option<&[u32]>) -> Result<()> {
        if let Some(order) = order {
            if order.len() != self.cols {
                return Err(Error::shape("length of the order of columns of a sweep", self.cols, order.len()));
            }
            FeatureMap::permutation(order.to_vec())?;
        }
        self.order = order.map(<[u32]>::to_vec);
        Ok(())
    }

    /// Returns the end of the block of columns that begins at `start`. With dynamic groups a block ends where a group does, unless the group is
    /// longer than a block.
    fn block_end(&self, start: usize, block: usize, cols: usize) -> usize {
        let end = match self.spec.group() {
            GroupSize::Size(g) if self.dynamic => match g.get() {
                g if g <= block => start + block / g * g,
                g => (start + block).min((start / g + 1) * g),
            },
            _ => start + block,
        };
        end.min(cols)
    }

    fn code(&mut self, rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::range("rows of a sweep", 0..self.rows, rows));
        }
        if at >= self.cols {
            return Err(Error::range("column of a sweep", 0..self.cols, at));
        }
        let (want, found) = ([rows.len(), self.cols], [ahead.rows(), ahead.cols()]);
        if found != want {
            return Err(Error::shape("shape of the weights of a sweep", want, found));
        }
        if [ahead.column(at).len(), out.len()] != [rows.len(); 2] {
            return Err(Error::shape(
                "lengths of a column and its output",
                [rows.len(); 2],
                [ahead.column(at).len(), out.len()],
            ));
        }
        let (width, per_row) = (self.spec.group().width(self.cols), self.spec.group().count(self.cols));
        let group = match &self.order {
            Some(order) if !self.dynamic => order[at] as usize / width,
            _ => at / width,
        };
        if self.dynamic && at.is_multiple_of(width) {
            for r in rows.clone() {
                self.piece.clear();
                ahead.read(r - rows.start, at..(at + width).min(self.cols), &mut self.piece);
                let place = [self.first + r, group];
                self.params[r * per_row + group] = self.spec.quant_params_at(self.isa, &self.piece, &[], place)?;
            }
        }
        self.scales.clear();
        self.zeros.clear();
        for params in rows.clone().map(|r| self.params[r * per_row + group]) {
            self.scales.push(params.scale);
            self.zeros.push(f32::from(params.zero));
        }
        let codes = &mut self.codes[at * self.rows..][rows];
        let range = self.spec.grid().codes(self.spec.bits());
        affine::round_each(self.isa, ahead.column(at), [&self.scales, &self.zeros], range, codes, out);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>> {
        let order = self.order.clone().filter(|_| self.dynamic);
        with_column_order(self.into_linear()?, order.as_deref())
    }
}
