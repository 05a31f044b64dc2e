//! [`DualLinear`]: dual-grained weights (DGQ), with integer scales of groups and one float scale for each row.

use std::ops::Range;
use std::sync::OnceLock;

use half::f16;
use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected};
use tersor_core::{
    DType, Error, Exec, GemmTask, GroupSize, Input, Isa, Layout, LinearOp, Loading, MatViewMut, OpSpec, Result,
    RowSlot, TensorInfo, TensorSink, Write,
};
use tersor_kernels::bits;
use tersor_kernels::integer::Panels;

use crate::integer::{multiply, scaled_rows, task};
use crate::packing::{group_in, pack_rows, unpack_rows};

/// A dual-grained matrix `[out_features, in_features]` of 4-bit codes (DGQ, arXiv 2310.04836):
/// `weight = row_scale * (group_scale * (code - zero))`. Each row has a float scale; each group of neighbouring columns of a row has an
/// integer scale from 1 to 127 and a zero point from 0 to 15. The expanded weight `group_scale * (code - zero)` is at most 127 in
/// magnitude.
///
/// Stored as `codes` (u8, `[rows, ceil(cols / 2)]`, two a byte, the first in the low half), `group_scales` (u8, `[rows, groups]`), `zeros`
/// (u8, `[rows, ceil(groups / 2)]`, packed as codes are) and `row_scales` (f16, `[rows]`).
///
/// ```
/// use tersor_operators::{DualLinear, GroupSize};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = DualLinear::new([1, 4], GroupSize::size(2)?, &[0, 3, 8, 9], vec![2, 10], vec![1, 8], vec![0.5])?;
/// assert_eq!(op.row_integers(0)?, [-2, 4, 0, 10]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DualLinear {
    shape: [usize; 2],
    group: GroupSize,
    /// Packed codes as stored; empty after loading, when only `panels` hold them.
    codes: Vec<u8>,
    /// Codes in the order of the kernels.
    panels: OnceLock<Panels>,
    group_scales: Vec<u8>,
    zeros: Vec<u8>,
    row_scales: Vec<f32>,
}

/// The upper limit, 127, of two numbers in a [`DualLinear`]: the integer scale of a group, and the magnitude of an expanded weight, the
/// 8-bit integer `(code - zero) * group_scale` that products use.
pub const MAX_EXPANDED: i32 = 127;

impl DualLinear {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "dual";

    /// Returns the matrix of the given shape, `[rows, cols]`. `codes` is `[rows, cols]`, one code a byte, 0 to 15. `group_scales` (1 to
    /// 127) and the zero points `zeros` (0 to 15) are `[rows, groups]`; with [`GroupSize::Tensor`] each row is one group. `row_scales` is
    /// `[rows]`, positive values of f16. All are row-major. Errors if a length is wrong, a code is above 15, or a scale or zero point is
    /// out of range. Errors if an expanded weight `group_scale * (code - zero)` is above 127 in magnitude. Errors if there are more than
    /// 131 072 columns, or a group has more than 32 768 columns and is neither a multiple of 32 768 columns nor a whole row.
    pub fn new(
        shape: [usize; 2],
        group: GroupSize,
        codes: &[u8],
        group_scales: Vec<u8>,
        zeros: Vec<u8>,
        row_scales: Vec<f32>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        if codes.len() != tersor_core::view::elements(shape)? {
            return Err(Error::shape("codes of a matrix", rows * cols, codes.len()));
        }
        if let Some(code) = codes.iter().find(|c| **c > 15) {
            return Err(Error::range("code of a weight", 0..=15, code));
        }
        Self::of_packed(shape, group, pack_rows(codes, cols, 4), group_scales, zeros, row_scales)
    }

    /// Puts together packed codes and their parameters. Errors as [`DualLinear::new`].
    fn of_packed(
        shape: [usize; 2],
        group: GroupSize,
        codes: Vec<u8>,
        group_scales: Vec<u8>,
        zeros: Vec<u8>,
        row_scales: Vec<f32>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let groups = rows * group.count(cols);
        if [group_scales.len(), zeros.len(), row_scales.len()] != [groups, groups, rows] {
            let found = (group_scales.len(), zeros.len(), row_scales.len());
            return Err(Error::shape("scales and zeros of groups, scales of rows", (groups, groups, rows), found));
        }
        let bad = |s: &f32| !s.is_finite() || *s <= 0.0 || f16::from_f32(*s).to_f32() != *s;
        if let Some(row) = row_scales.iter().position(bad) {
            return Err(Error::ScaleRange { row, group: 0, value: row_scales[row], dtype: "F16" });
        }
        let wrong =
            group_scales.iter().zip(&zeros).position(|(s, z)| *s == 0 || i32::from(*s) > MAX_EXPANDED || *z > 15);
        if let Some(i) = wrong {
            let per = group.count(cols).max(1);
            let value = f32::from(group_scales[i]);
            return Err(Error::ScaleRange {
                row: i / per,
                group: i % per,
                value,
                dtype: "integers 1 to 127 with zero points 0 to 15",
            });
        }
        let op = Self { shape, group, codes, panels: OnceLock::new(), group_scales, zeros, row_scales };
        op.panels()?;
        Ok(op)
    }

    /// Returns the integer scale of each group, 1 to 127, `[rows, groups]` row-major. A weight is
    /// `row_scale * (group_scale * (code - zero))`.
    pub fn group_scales(&self) -> &[u8] {
        &self.group_scales
    }

    /// Returns the scale of each row, `[rows]`, by which the integers `group_scale * (code - zero)` of the row are multiplied.
    pub fn row_scales(&self) -> &[f32] {
        &self.row_scales
    }

    /// Returns the expanded weights `group_scale * (code - zero)` of row number `row`, counted from 0, `[cols]`. Times the scale of the row
    /// they are its weights. Errors if there is no such row.
    pub fn row_integers(&self, row: usize) -> Result<Vec<i8>> {
        self.expand(Isa::detect(), row)
    }

    /// Returns the expanded weights of a row, as [`DualLinear::row_integers`].
    fn expand(&self, isa: Isa, row: usize) -> Result<Vec<i8>> {
        let mut codes = vec![0u8; self.shape[1]];
        check_range(self.shape, &(row..row.saturating_add(1)), codes.len())?;
        self.read_codes(isa, row, &mut codes);
        let (groups, width) = (self.group.count(self.shape[1]), self.group.width(self.shape[1]).max(1));
        let integer = |(k, c): (usize, &u8)| {
            let at = row * groups + k / width;
            (i32::from(self.group_scales[at]) * (i32::from(*c) - i32::from(self.zeros[at]))) as i8
        };
        Ok(codes.iter().enumerate().map(integer).collect())
    }

    /// Writes the codes of a row, which must exist, to `out`, `[cols]`.
    fn read_codes(&self, isa: Isa, row: usize, out: &mut [u8]) {
        match self.panels.get() {
            Some(panels) if self.codes.is_empty() => panels.row_codes(row, out),
            _ => {
                let width = bits::packed_len(self.shape[1], 4);
                bits::unpack(isa, &self.codes[row * width..(row + 1) * width], 4, 0, out);
            }
        }
    }

    /// Returns the codes in the order of the kernels. Errors if an expanded weight is above 127 in magnitude, or there are too many columns.
    fn panels(&self) -> Result<&Panels> {
        if let Some(panels) = self.panels.get() {
            return Ok(panels);
        }
        let (groups, width) = (self.group.count(self.shape[1]), self.group.width(self.shape[1]).max(1));
        let params = |r: usize, g: usize| (self.group_scales[r * groups + g], self.zeros[r * groups + g]);
        let made = Panels::dual(Isa::detect(), &self.codes, 4, self.shape, width, params, &self.row_scales)?;
        Ok(self.panels.get_or_init(|| made))
    }

    /// Returns the name, type and shape of each tensor that stores a matrix `[rows, cols]` with groups of the size `group`: `codes`,
    /// `group_scales`, `zeros` and `row_scales`, as described at [`DualLinear`]. With [`GroupSize::Tensor`] each row is one group. Does not
    /// fail; [`Layout::bits`] errors later if a size overflows.
    pub fn layout(group: GroupSize, [rows, cols]: [usize; 2]) -> Layout {
        let groups = group.count(cols);
        Layout::exact([
            ("codes", DType::U8, vec![rows, bits::packed_len(cols, 4)]),
            ("group_scales", DType::U8, vec![rows, groups]),
            ("zeros", DType::U8, vec![rows, bits::packed_len(groups, 4)]),
            ("row_scales", DType::F16, vec![rows]),
        ])
    }
}

impl LinearOp for DualLinear {
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
        multiply(self.panels()?, self.shape, x, y, write, exec)
    }

    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        task(self.panels()?, x, exec)
    }

    fn spec_block(&self, at: RowSlot) -> OpSpec {
        group_in(OpSpec::new(Self::KIND, [at.total, self.shape[1]]), self.group, self.shape[1])
    }

    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let [rows, cols] = self.shape;
        let groups = self.group.count(cols);
        let mut codes = self.codes.clone();
        if codes.is_empty() {
            let (width, mut row) = (bits::packed_len(cols, 4), vec![0u8; cols]);
            codes.resize(rows * width, 0);
            for (r, out) in codes.chunks_exact_mut(width.max(1)).enumerate() {
                self.read_codes(Isa::detect(), r, &mut row);
                bits::pack(Isa::detect(), &row, 4, out);
            }
        }
        let zeros = pack_rows(&self.zeros, groups, 4);
        let mut scales = vec![0u8; rows * 2];
        DType::F16.narrow_bytes(&self.row_scales, &mut scales)?;
        let layout = Self::layout(self.group, [at.total, cols]);
        for ((suffix, info), bytes) in layout.tensors.iter().zip([&codes, &self.group_scales, &zeros, &scales]) {
            sink.write_rows(&join(prefix, suffix), info, at.first, bytes)?;
        }
        Ok(())
    }
}

/// Loads a matrix. Errors as [`DualLinear::new`].
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let group = GroupSize::size(spec.get_size("group")?)?;
    let [rows, cols] = spec.shape;
    tersor_core::view::elements(spec.shape)?;
    let layout = DualLinear::layout(group, spec.shape);
    let source = loading.source();
    let read =
        |(suffix, info): &(String, TensorInfo)| read_expected(source, &join(prefix, suffix), info.dtype, &info.shape);
    let mut parts = layout.tensors.iter().map(read).collect::<Result<Vec<_>>>()?.into_iter();
    let mut part = || parts.next().unwrap_or_default();
    let (codes, group_scales, packed, halves) = (part(), part(), part(), part());
    let (groups, mut row_scales) = (group.count(cols), vec![0f32; rows]);
    DType::F16.widen_bytes(&halves, &mut row_scales)?;
    let zeros = unpack_rows(&packed, groups, 4);
    let op = DualLinear::of_packed(spec.shape, group, codes, group_scales, zeros, row_scales)?;
    // The panels suffice: stored codes are unpacked from them.
    Ok(Box::new(DualLinear { codes: Vec::new(), ..op }))
}
