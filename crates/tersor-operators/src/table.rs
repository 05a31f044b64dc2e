//! [`TableLinear`]: 4-bit codes that index a lookup table of 8-bit integers for each group (QQQ).

use std::ops::Range;

use half::f16;
use tersor_core::operator::check_apply;
use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected};
use tersor_core::{
    DType, Error, Exec, GemmTask, GroupSize, Input, Isa, Layout, LinearOp, Loading, MatViewMut, OpSpec, Result,
    RowSlot, TensorInfo, TensorSink, Write,
};
use tersor_kernels::bits;
use tersor_kernels::integer::tables::{self, TablePanels, rounded_table};

use crate::activations::integers;
use crate::grouped::{Grid, GroupedLinear};
use crate::integer::scaled_rows;
use crate::packing::{group_in, pack_rows};

/// A matrix `[out_features, in_features]` of 4-bit codes with the zero point 8 (QQQ, arXiv 2406.09904):
/// `weight = row_scale * round((code - 8) * group_scale)`. Each row has a scale in f32, each group of neighbouring columns of a row one in
/// f16. The rounded factor, ties to even, is limited to 127 in magnitude; products look it up in a table of 16 integers for each group.
///
/// Stored as `codes` (u8, `[rows, ceil(cols / 2)]`, two a byte, the first in the low half), `group_scales` (f16, `[rows, groups]`) and
/// `row_scales` (f32, `[rows]`).
///
/// ```
/// use tersor_operators::{GroupSize, TableLinear, f16};
/// # fn main() -> tersor_operators::Result<()> {
/// let scales = vec![f16::from_f32(1.5), f16::from_f32(10.0)];
/// let op = TableLinear::new([1, 4], GroupSize::size(2)?, &[7, 9, 8, 15], scales, vec![0.01])?;
/// assert_eq!(op.row_integers(0)?, [-2, 2, 0, 70]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TableLinear {
    shape: [usize; 2],
    group: GroupSize,
    codes: Vec<u8>,
    panels: TablePanels,
    group_scales: Vec<f16>,
    row_scales: Vec<f32>,
}

impl TableLinear {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "table";

    /// Returns the matrix of the given shape, `[rows, cols]`. `codes` is `[rows, cols]`, one code a byte, 0 to 15. `group_scales` is
    /// `[rows, groups]`; with [`GroupSize::Tensor`] each row is one group. `row_scales` is `[rows]`. All are row-major. Errors if a length
    /// is wrong, a code is above 15, a group scale is negative or not finite, a row scale is not positive and finite, or there are more
    /// than 131 072 columns.
    pub fn new(
        shape: [usize; 2],
        group: GroupSize,
        codes: &[u8],
        group_scales: Vec<f16>,
        row_scales: Vec<f32>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        if codes.len() != tersor_core::view::elements(shape)? {
            return Err(Error::shape("codes of a matrix", rows * cols, codes.len()));
        }
        if let Some(code) = codes.iter().find(|c| **c > 15) {
            return Err(Error::shape("code", "0 to 15", code));
        }
        Self::of_packed(shape, group, pack_rows(codes, cols, 4), group_scales, row_scales)
    }

    /// Puts together packed codes and their scales. Errors as [`TableLinear::new`].
    fn of_packed(
        shape: [usize; 2],
        group: GroupSize,
        codes: Vec<u8>,
        group_scales: Vec<f16>,
        row_scales: Vec<f32>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let groups = group.count(cols);
        if [group_scales.len(), row_scales.len()] != [rows * groups, rows] {
            let found = (group_scales.len(), row_scales.len());
            return Err(Error::shape("scales of groups and rows", (rows * groups, rows), found));
        }
        let wrong = |row: usize, group: usize, value: f32, dtype| Error::ScaleRange { row, group, value, dtype };
        if let Some(r) = row_scales.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return Err(wrong(r, 0, row_scales[r], "F32"));
        }
        if let Some(i) = group_scales.iter().position(|s| !s.is_finite() || s.is_sign_negative()) {
            return Err(wrong(i / groups.max(1), i % groups.max(1), group_scales[i].to_f32(), "F16"));
        }
        let table = |r: usize, g: usize| rounded_table(group_scales[r * groups + g]);
        let panels = TablePanels::new(Isa::detect(), &codes, shape, group.width(cols).max(1), table, &row_scales)?;
        Ok(Self { shape, group, codes, panels, group_scales, row_scales })
    }

    /// Returns the integers `round((code - 8) * group_scale)` of row number `row`, counted from 0, `[cols]`. Ties are rounded to even, and
    /// the integers are limited to -127 to 127. Times the scale of the row they are its weights. Errors if there is no such row.
    pub fn row_integers(&self, row: usize) -> Result<Vec<i8>> {
        self.expand(Isa::detect(), row)
    }

    /// Returns the integers of a row, as [`TableLinear::row_integers`].
    fn expand(&self, isa: Isa, row: usize) -> Result<Vec<i8>> {
        let cols = self.shape[1];
        let mut codes = vec![0u8; cols];
        check_range(self.shape, &(row..row.saturating_add(1)), cols)?;
        let (width, group) = (bits::packed_len(cols, 4), self.group.width(cols).max(1));
        bits::unpack(isa, &self.codes[row * width..(row + 1) * width], 4, 0, &mut codes);
        let shares = &self.group_scales[row * self.group.count(cols)..];
        let groups = codes.chunks(group).zip(shares);
        Ok(groups
            .flat_map(|(codes, s)| {
                let t = rounded_table(*s);
                codes.iter().map(move |c| t[usize::from(*c)])
            })
            .collect())
    }

    /// Returns the name, type and shape of each tensor that stores a matrix `[rows, cols]` with groups of the size `group`: `codes`,
    /// `group_scales` and `row_scales`, as described at [`TableLinear`]. With [`GroupSize::Tensor`] each row is one group. Does not fail;
    /// [`Layout::bits`] errors later if a size overflows.
    pub fn layout(group: GroupSize, [rows, cols]: [usize; 2]) -> Layout {
        Layout::exact([
            ("codes", DType::U8, vec![rows, bits::packed_len(cols, 4)]),
            ("group_scales", DType::F16, vec![rows, group.count(cols)]),
            ("row_scales", DType::F32, vec![rows]),
        ])
    }
}

impl LinearOp for TableLinear {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn storage_bits(&self) -> u64 {
        Self::layout(self.group, self.shape).bits().unwrap_or(u64::MAX)
    }

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        scaled_rows(self.shape, rows, &self.row_scales, |r| self.expand(exec.isa(), r), out)
    }

    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        check_apply(self.shape, x, &y)?;
        let x = integers(x, exec.isa(), self.panels.padding())?;
        let product = || tables::product(exec.isa(), &x, &self.panels, write, y.into_out(), exec.parallel());
        Ok(exec.run(product)?)
    }

    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        let x = integers(x, exec.isa(), self.panels.padding())?;
        Ok(Some(Box::new(tables::Task::new(exec.isa(), x, &self.panels)?)))
    }

    fn spec_block(&self, at: RowSlot) -> OpSpec {
        group_in(OpSpec::new(Self::KIND, [at.total, self.shape[1]]), self.group, self.shape[1])
    }

    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let shares: Vec<u8> = self.group_scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let rows: Vec<u8> = self.row_scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let layout = Self::layout(self.group, [at.total, self.shape[1]]);
        for ((suffix, info), bytes) in layout.tensors.iter().zip([&self.codes, &shares, &rows]) {
            sink.write_rows(&join(prefix, suffix), info, at.first, bytes)?;
        }
        Ok(())
    }
}

/// Loads a matrix. Errors as [`TableLinear::new`].
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let group = GroupSize::size(spec.get_size("group")?)?;
    tersor_core::view::elements(spec.shape)?;
    let layout = TableLinear::layout(group, spec.shape);
    let source = loading.source();
    let read =
        |(suffix, info): &(String, TensorInfo)| read_expected(source, &join(prefix, suffix), info.dtype, &info.shape);
    let mut parts = layout.tensors.iter().map(read).collect::<Result<Vec<_>>>()?.into_iter();
    let mut part = || parts.next().unwrap_or_default();
    let (codes, shares, rows) = (part(), part(), part());
    let shares = shares.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
    let rows = rows.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok(Box::new(TableLinear::of_packed(spec.shape, group, codes, shares, rows)?))
}

impl TableLinear {
    /// Converts a matrix of 4-bit codes on the grid [`Grid::SymFull`], with the same codes and groups. The scale of a row becomes the
    /// largest magnitude of the row's weights divided by 127, or 1 if that is below the smallest normal f32, as for a row of zeros. The
    /// scale of each group is divided by the new scale of its row and rounded to f16. `exec` has the instruction set and threads to compute
    /// with. Errors if `op` has other bits or another grid, a weight is infinite in f32, the scale of a group divided by that of its row is
    /// infinite in f16 although the group has a weight other than 0, or there are more than 131 072 columns.
    pub fn of_grouped(op: &GroupedLinear, exec: &Exec) -> Result<Self> {
        let spec = op.group_spec();
        if spec.bits().get() != 4 || spec.grid() != Grid::SymFull {
            let found = format!("{} bits, {}", spec.bits().get(), spec.grid().name());
            return Err(Error::shape("grid of a lookup-table matrix", "4 bits, sym_full", found));
        }
        let [rows, cols] = op.shape();
        let groups = spec.group().count(cols);
        let mut codes = Vec::with_capacity(rows * cols);
        let (mut shares, mut row_scales) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows));
        let mut row = vec![0f32; cols];
        for r in 0..rows {
            op.decompress_rows(r..r + 1, &mut row, exec)?;
            // The scale of the row is that of the dequantized weights.
            let max = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if max < f32::MIN_POSITIVE * 127.0 { 1.0 } else { max / 127.0 };
            row_scales.push(scale);
            for g in 0..groups {
                let first = g * spec.group().width(cols);
                let params = op.quant_params_of(r, first);
                let share = f16::from_f32(params.map_or(1.0, |p| p.scale) / scale);
                // Any scale stands for a group of zeros, whose own may be far above that of the row.
                let zeros = || row[first..cols.min(first + spec.group().width(cols))].iter().all(|v| *v == 0.0);
                shares.push(if share.is_finite() || !zeros() { share } else { f16::ONE });
            }
            codes.extend(op.row_codes(r)?);
        }
        Self::new([rows, cols], spec.group(), &codes, shares, row_scales)
    }
}
