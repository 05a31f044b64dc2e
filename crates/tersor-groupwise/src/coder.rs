//! [`GroupCoder`]: grids over groups, lent to the column sweep.

use std::ops::Range;

use tersor_core::{Ahead, ColumnCoder, Error, FeatureMap, GroupSize, Isa, LinearOp, Result};
use tersor_kernels::affine::{self, Affine};
use tersor_linalg::sweep::unpermute;
use tersor_operators::{GroupSpec, GroupedLinear, Permuted, spans};

/// When the grid of a group is fitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// When the sweep reaches the group, to the weights that earlier columns have left there.
    Dynamic,
    /// Before anything is rounded, to the original weights.
    Static,
}

/// Rounds columns of some rows to grids over groups.
pub struct GroupCoder {
    spec: GroupSpec,
    isa: Isa,
    rows: usize,
    cols: usize,
    /// Number of the first row in the matrix, for errors.
    first: usize,
    dynamic: bool,
    /// Feature at each place, where columns are taken by importance.
    order: Option<Vec<u32>>,
    /// Scale and zero of each group, row by row.
    fits: Vec<Affine>,
    /// `[cols, rows]`, columns in the order of the sweep.
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    piece: Vec<f32>,
}

impl GroupCoder {
    /// Returns a coder of rows `w` `[rows, cols]`, of which the first has the number `first` in the matrix. Grids of rows are always fitted before.
    /// Errors if a scale does not fit its type.
    pub fn new(spec: GroupSpec, groups: Groups, w: &[f32], cols: usize, first: usize, isa: Isa) -> Result<Self> {
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let dynamic = groups == Groups::Dynamic && matches!(spec.group(), GroupSize::Size(_));
        let fits = if dynamic {
            vec![Affine { scale: 1.0, zero: 0 }; rows * spec.group().count(cols)]
        } else {
            fit_rows(&spec, w, cols, first, isa)?
        };
        let (order, codes, piece) = (None, vec![0u8; rows * cols], Vec::new());
        let (scales, zeros) = (Vec::new(), Vec::new());
        Ok(Self { spec, isa, rows, cols, first, dynamic, order, fits, codes, scales, zeros, piece })
    }

    /// Returns the matrix: columns in their own order, or, where groups were fitted along another order, in that (see [`in_own_order`]). Errors if
    /// the codes cannot be packed.
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
        GroupedLinear::from_codes(self.spec, [rows, cols], &codes, &self.fits)
    }
}

/// Puts the order in which groups were fitted in front of a matrix that [`GroupCoder::into_linear`] made with dynamic groups.
pub fn in_own_order(op: GroupedLinear, order: Option<&[u32]>) -> Result<Box<dyn LinearOp>> {
    Ok(match order {
        Some(order) => Box::new(Permuted::new(order.to_vec(), Box::new(op))?),
        None => Box::new(op),
    })
}

/// Returns the grids of all groups of rows, `[rows, groups]`.
pub(crate) fn fit_rows(spec: &GroupSpec, w: &[f32], cols: usize, first: usize, isa: Isa) -> Result<Vec<Affine>> {
    let mut fits = Vec::new();
    for (r, row) in w.chunks_exact(cols.max(1)).enumerate() {
        for (g, span) in spans(spec, cols).enumerate() {
            fits.push(spec.fit_at(isa, &row[span], &[], [first + r, g])?);
        }
    }
    Ok(fits)
}

impl ColumnCoder for GroupCoder {
    fn begin(&mut self, order: Option<&[u32]>) -> Result<()> {
        if let Some(order) = order {
            if order.len() != self.cols {
                return Err(Error::shape("features of the order of a sweep", self.cols, order.len()));
            }
            FeatureMap::permutation(order.to_vec())?;
        }
        self.order = order.map(<[u32]>::to_vec);
        Ok(())
    }

    /// No group that is fitted on the way begins in one block and ends in another, unless it is longer than a block and fills them.
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
            return Err(Error::shape("values of a sweep", want, found));
        }
        if [ahead.column(at).len(), out.len()] != [rows.len(); 2] {
            return Err(Error::shape("rows of a column", [rows.len(); 2], [ahead.column(at).len(), out.len()]));
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
                self.fits[r * per_row + group] = self.spec.fit_at(self.isa, &self.piece, &[], place)?;
            }
        }
        self.scales.clear();
        self.zeros.clear();
        for fit in rows.clone().map(|r| self.fits[r * per_row + group]) {
            self.scales.push(fit.scale);
            self.zeros.push(f32::from(fit.zero));
        }
        let codes = &mut self.codes[at * self.rows..][rows];
        let range = self.spec.grid().codes(self.spec.bits());
        affine::round_each(self.isa, ahead.column(at), [&self.scales, &self.zeros], range, codes, out);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>> {
        let order = self.order.clone().filter(|_| self.dynamic);
        in_own_order(self.into_linear()?, order.as_deref())
    }
}
