//! [`GroupedLinear`]: codes on uniform grids, with a scale for each group of a row.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use tersor_core::rows::check_range;
use tersor_core::tensors::{join, read_expected};
use tersor_core::{
    DType, Error, Exec, GemmTask, GroupSize, Input, Isa, Layout, LinearOp, Loading, MatViewMut, OpSpec, Result,
    RowSlot, TensorInfo, TensorSink, TensorSource, Write, check_finite,
};
use tersor_kernels::affine::{self, Affine};
use tersor_kernels::bits;
use tersor_kernels::grouped::{self, Groups};
use tersor_kernels::integer::Panels;

use super::{Clip, Grid, GroupSpec};
use crate::integer::{multiply, task};
use crate::packing::{check_group, pack_rows, unpack_rows};

/// A matrix `[out_features, in_features]` of codes on uniform grids: `weight = scale * (code - zero)`. A scale and a zero point belong to
/// each group of neighbouring columns of a row, each row, or the whole matrix, as the [`GroupSpec`] says.
///
/// Stored as `codes` (u8, `[rows, ceil(cols * bits / 8)]`, packed along the row, lowest bits first), `scales` (`[rows, groups]`, in the
/// type of the [`GroupSpec`]) and, on the asymmetric grid, `zeros` (u8, `[rows, ceil(groups * bits / 8)]`, packed as codes are). With one
/// scale for the matrix, `scales` and `zeros` are `[1]`.
///
/// ```
/// use tersor_operators::*;
///
/// # fn main() -> Result<()> {
/// let spec = GroupSpec::new(4, GroupSize::size(2)?, Grid::Asym, DType::F16, Clip::None)?;
/// let params = [QuantParams { scale: 0.5, zero: 1 }, QuantParams { scale: 2.0, zero: 0 }];
/// let op = GroupedLinear::from_codes(spec, [1, 4], &[0, 3, 1, 15], &params)?;
/// let mut row = [0f32; 4];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [-0.5, 1.0, 2.0, 30.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GroupedLinear {
    spec: GroupSpec,
    shape: [usize; 2],
    /// Packed codes as stored; empty after loading, when only `panels` hold them.
    codes: Vec<u8>,
    /// Codes in the order of the kernels, made when loading or at the first product.
    panels: OnceLock<Panels>,
    /// Scales as f32, in stored order.
    scales: Vec<f32>,
    /// Zero points, one a byte; empty on symmetric grids.
    zeros: Vec<u8>,
}

impl GroupedLinear {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "grouped";

    /// Quantizes the values `w`, `[rows, cols]` row-major with `shape` as `[rows, cols]`, by rounding each to the nearest code of its
    /// group. `params` holds the scale and zero point of each group, `[rows, groups]` row-major; one for [`GroupSize::Tensor`], or none if
    /// the matrix is empty. Values that are not finite give no error: NaN and -∞ get the lowest code, ∞ the highest. `isa` is the
    /// instruction set to compute with. Errors if a length is wrong, a scale is not a positive value of its stored type, a zero point is
    /// above `2^bits - 1`, or a zero point on a symmetric grid is not `2^(bits-1)`. Errors if a group has more than 32 768 columns and is
    /// neither a multiple of 32 768 columns nor a whole row ([`check_group`]).
    pub fn round(spec: GroupSpec, shape: [usize; 2], w: &[f32], params: &[Affine], isa: Isa) -> Result<Self> {
        let cols = shape[1];
        tersor_core::view::elements(shape)?;
        let want = params_count(&spec, shape);
        if params.len() != want {
            return Err(Error::shape("quantization parameters of groups", want, params.len()));
        }
        check_params(&spec, cols, params)?;
        Self::encode(spec, shape, w, isa, |r, _, out| {
            out.iter_mut().enumerate().for_each(|(g, out)| *out = params[params_index(&spec, cols, r, g)]);
            Ok(())
        })
    }

    /// Quantizes `w`, `[rows, cols]` row-major with `shape` as `[rows, cols]`, by rounding each value to the nearest code of its group. For
    /// each row, in parallel, `choose(row, values, params)` receives the number of the row, counted from 0, and its values, `[cols]`, and
    /// writes the scale and zero point of each group of the row to `params`, `[groups]`. For [`GroupSize::Tensor`] it writes one scale and
    /// zero point, the same in every row. Values that are not finite give no error: NaN and -∞ get the lowest code, ∞ the highest. `isa` is
    /// the instruction set to compute with. Errors if the length of `w` is wrong. Errors if a group has more than 32 768 columns and is
    /// neither a multiple of 32 768 columns nor a whole row ([`check_group`]). Errors if `choose` errors, or writes different parameters in
    /// the rows of a [`GroupSize::Tensor`] matrix. Errors if a scale is not a positive value of its stored type, a zero point is above
    /// `2^bits - 1`, or a zero point on a symmetric grid is not `2^(bits-1)`.
    pub fn encode(
        spec: GroupSpec,
        shape: [usize; 2],
        w: &[f32],
        isa: Isa,
        choose: impl Fn(usize, &[f32], &mut [Affine]) -> Result<()> + Sync + Send,
    ) -> Result<Self> {
        let ([rows, cols], n) = (shape, tersor_core::view::elements(shape)?);
        if w.len() != n {
            return Err(Error::shape("elements of a matrix", n, w.len()));
        }
        check_group(spec.group(), cols)?;
        let (groups, none) = (groups(&spec, cols), Affine { scale: 1.0, zero: 0 });
        let mut codes = vec![0u8; rows * groups.row_bytes()];
        let mut params = vec![none; rows * groups.count()];
        grouped::quantize(isa, w, &groups, choose, (&mut codes, &mut params), true)?;
        check_params(&spec, cols, &params)?;
        if spec.group() == GroupSize::Tensor && params.iter().any(|p| *p != params[0]) {
            return Err(Error::order(
                "parameters of rows",
                "the same in all rows of a matrix with one scale",
                "different",
            ));
        }
        params.truncate(params_count(&spec, shape));
        Ok(Self::new(spec, shape, codes, &params))
    }

    /// Puts together packed codes and parameters that were checked.
    fn new(spec: GroupSpec, shape: [usize; 2], codes: Vec<u8>, params: &[Affine]) -> Self {
        let scales = params.iter().map(|f| f.scale).collect();
        let zeros = if spec.grid() == Grid::Asym { params.iter().map(|f| f.zero).collect() } else { Vec::new() };
        Self { spec, shape, codes, panels: OnceLock::new(), scales, zeros }
    }

    /// Returns the matrix of the given shape, `[rows, cols]`. `codes` is `[rows, cols]` row-major, one code a byte. `params` holds the
    /// scale and zero point of each group, `[rows, groups]` row-major; one for [`GroupSize::Tensor`], or none if the matrix is empty.
    /// Errors if a length is wrong, a code is not one of [`Grid::codes`], a scale is not a positive value of its stored type, a zero point
    /// is above `2^bits - 1`, or a zero point on a symmetric grid is not `2^(bits-1)`. Errors if a group has more than 32 768 columns and
    /// is neither a multiple of 32 768 columns nor a whole row ([`check_group`]).
    pub fn from_codes(spec: GroupSpec, shape: [usize; 2], codes: &[u8], params: &[Affine]) -> Result<Self> {
        let (n, want) = (tersor_core::view::elements(shape)?, params_count(&spec, shape));
        if codes.len() != n || params.len() != want {
            return Err(Error::shape(
                "codes and quantization parameters of groups",
                (n, want),
                (codes.len(), params.len()),
            ));
        }
        check_group(spec.group(), shape[1])?;
        check_params(&spec, shape[1], params)?;
        let range = spec.grid().codes(spec.bits());
        if let Some(i) = codes.iter().position(|c| !range.contains(c)) {
            return Err(Error::shape("code", range, codes[i]));
        }
        Ok(Self::new(spec, shape, pack_rows(codes, shape[1], spec.bits().get()), params))
    }

    /// Quantizes other values `w`, `[rows, cols]` row-major, with the scales and zero points of this matrix, each to the nearest code.
    /// Returns the new matrix, of the same shape. `isa` is the instruction set to compute with. Errors if `w` has another number of values
    /// or one is not finite.
    pub fn requantize(&self, w: &[f32], isa: Isa) -> Result<Self> {
        check_finite(w, self.shape[1], 0)?;
        let params: Vec<Affine> = (0..self.scales.len()).map(|i| self.params_at(i)).collect();
        Self::round(self.spec, self.shape, w, &params, isa)
    }

    /// Joins matrices that are blocks of neighbouring rows, in order, to one matrix of the given shape, `[rows, cols]`, with the parameters
    /// `spec`. Errors if a part has other parameters than `spec`, or another number of columns; how the range of values that the grid of a
    /// group covers was chosen ([`Clip`]) may differ. Errors if the rows of the parts do not add up to `rows`, or there is one scale for a
    /// whole matrix ([`GroupSize::Tensor`]).
    pub fn stack(spec: GroupSpec, shape: [usize; 2], parts: impl IntoIterator<Item = Self>) -> Result<Self> {
        let (codes, scales, zeros) = Default::default();
        if spec.group() == GroupSize::Tensor {
            return Err(Error::shape("groups of blocks of rows", "rows or a number of columns", "the whole matrix"));
        }
        let mut whole = Self { spec, shape: [0, shape[1]], codes, panels: OnceLock::new(), scales, zeros };
        for part in parts {
            if !part.spec.stores_as(&spec) || part.shape[1] != shape[1] {
                return Err(Error::shape(
                    "specification and columns of a block of rows",
                    (spec, shape[1]),
                    (part.spec, part.shape[1]),
                ));
            }
            whole.shape[0] += part.shape[0];
            whole.codes.extend(part.dense().iter());
            whole.scales.extend(part.scales);
            whole.zeros.extend(part.zeros);
        }
        if whole.shape != shape {
            return Err(Error::shape("shape of all blocks of rows together", shape, whole.shape));
        }
        Ok(whole)
    }

    /// Returns the parameters of the quantization: bits, group size, grid, type of the scales, and how the range of values that the grid of
    /// a group covers was chosen ([`Clip`]). That choice is not stored: a loaded matrix has [`Clip::None`].
    pub fn group_spec(&self) -> &GroupSpec {
        &self.spec
    }

    /// Returns the stored bits of codes, scales and zero points divided by the number of weights; 0 for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        let n = self.shape[0] * self.shape[1];
        if n == 0 { 0.0 } else { self.storage_bits() as f64 / n as f64 }
    }

    /// Returns the scale of each group, `[rows, groups]` row-major; one for [`GroupSize::Tensor`].
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Returns the zero point of each group, the code that stands for the weight 0, `[rows, groups]` row-major; one for
    /// [`GroupSize::Tensor`]. On symmetric grids all are `2^(bits-1)`.
    pub fn zeros(&self) -> impl Iterator<Item = u8> {
        (0..self.scales.len()).map(|i| self.params_at(i).zero)
    }

    /// Returns the scale and zero point that hold for the weight in row number `row` and column number `column`, both counted from 0;
    /// `None` if the matrix has no such row or column.
    pub fn quant_params_of(&self, row: usize, column: usize) -> Option<Affine> {
        let ([rows, cols], width) = (self.shape, self.spec.group().width(self.shape[1]).max(1));
        let inside = row < rows && column < cols;
        inside.then(|| self.params_at(params_index(&self.spec, cols, row, column / width)))
    }

    /// Returns the codes of row number `row`, counted from 0, one a byte, `[cols]`, as they are stored: the zero point is not subtracted.
    /// Errors if there is no such row.
    pub fn row_codes(&self, row: usize) -> Result<Vec<u8>> {
        let mut out = vec![0u8; self.shape[1]];
        check_range(self.shape, &(row..row.saturating_add(1)), out.len())?;
        self.read_codes(Isa::detect(), row, &mut out);
        Ok(out)
    }

    /// Writes the codes of a row, which must exist, to `out`, `[cols]`.
    fn read_codes(&self, isa: Isa, row: usize, out: &mut [u8]) {
        match self.panels.get() {
            Some(panels) if self.codes.is_empty() => panels.row_codes(row, out),
            _ => {
                let width = row_bytes(&self.spec, self.shape[1]);
                bits::unpack(isa, &self.codes[row * width..(row + 1) * width], self.spec.bits().get(), 0, out);
            }
        }
    }

    /// Returns the packed codes as they are stored.
    fn dense(&self) -> Cow<'_, [u8]> {
        let ([rows, cols], width) = (self.shape, row_bytes(&self.spec, self.shape[1]));
        if self.codes.len() == rows * width {
            return Cow::Borrowed(&self.codes);
        }
        let (mut row, mut out) = (vec![0u8; cols], vec![0u8; rows * width]);
        for (r, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            self.read_codes(Isa::detect(), r, &mut row);
            bits::pack(Isa::detect(), &row, self.spec.bits().get(), out);
        }
        Cow::Owned(out)
    }

    /// Returns the codes in the order of the kernels. Errors if the stored codes are too short; loading has checked that they are not.
    fn panels(&self) -> Result<&Panels> {
        if let Some(panels) = self.panels.get() {
            return Ok(panels);
        }
        let (spec, cols) = (&self.spec, self.shape[1]);
        let params = |row: usize, group: usize| {
            let params = self.params_at(params_index(spec, cols, row, group));
            (params.scale, params.zero)
        };
        let group = spec.group().width(cols).max(1);
        let made = Panels::new(Isa::detect(), &self.codes, spec.bits().get(), self.shape, group, params)?;
        Ok(self.panels.get_or_init(|| made))
    }

    /// Returns the scale and zero point at an index of `scales`.
    fn params_at(&self, index: usize) -> Affine {
        // Symmetric grids have one zero point, which is not stored.
        let zero = self.zeros.get(index).copied().unwrap_or(*self.spec.zero_points().start());
        Affine { scale: self.scales[index], zero }
    }

    /// Returns the name, type and shape of each tensor that stores a matrix `[rows, cols]` with the parameters `spec`: `codes`, `scales`
    /// and, on the asymmetric grid, `zeros`, as described at [`GroupedLinear`]. Does not fail; [`Layout::bits`] errors later if a size
    /// overflows.
    pub fn layout(spec: &GroupSpec, [rows, cols]: [usize; 2]) -> Layout {
        let groups = spec.group().count(cols);
        let (scales, zeros) = if spec.group() == GroupSize::Tensor {
            let params = params_count(spec, [rows, cols]);
            (vec![params], vec![params])
        } else {
            (vec![rows, groups], vec![rows, bits::packed_len(groups, spec.bits().get())])
        };
        let codes = vec![rows, row_bytes(spec, cols)];
        let mut tensors = vec![("codes", DType::U8, codes), ("scales", spec.scale_dtype(), scales)];
        if spec.grid() == Grid::Asym {
            tensors.push(("zeros", DType::U8, zeros));
        }
        Layout::exact(tensors)
    }
}

/// Errors unless every scale is a positive value of its stored type and every zero point is a code, on a symmetric grid the middle one.
fn check_params(spec: &GroupSpec, cols: usize, params: &[Affine]) -> Result<()> {
    let (dtype, groups) = (spec.scale_dtype(), spec.group().count(cols).max(1));
    let scales: Vec<f32> = params.iter().map(|f| f.scale).collect();
    let (mut bytes, mut stored) = (vec![0u8; scales.len() * dtype.size()], vec![0f32; scales.len()]);
    dtype.narrow_bytes(&scales, &mut bytes)?;
    dtype.widen_bytes(&bytes, &mut stored)?;
    let wrong = |(s, stored): (&f32, &f32)| !s.is_finite() || *s <= 0.0 || s != stored;
    if let Some(i) = scales.iter().zip(&stored).position(wrong) {
        let (row, group) = (i / groups, i % groups);
        return Err(Error::ScaleRange { row, group, value: scales[i], dtype: dtype.name() });
    }
    let zeros = spec.zero_points();
    match params.iter().find(|f| !zeros.contains(&f.zero)) {
        Some(f) => Err(Error::range("zero point of a group", zeros, f.zero)),
        None => Ok(()),
    }
}

/// Returns the bytes of the packed codes of a row.
fn row_bytes(spec: &GroupSpec, cols: usize) -> usize {
    bits::packed_len(cols, spec.bits().get())
}

/// Returns the groups of a row as the kernels take them.
fn groups(spec: &GroupSpec, cols: usize) -> Groups {
    Groups {
        cols,
        group: spec.group().width(cols).max(1),
        bits: spec.bits().get(),
        range: spec.grid().codes(spec.bits()),
    }
}

/// Returns the number of scales of a matrix.
fn params_count(spec: &GroupSpec, [rows, cols]: [usize; 2]) -> usize {
    match spec.group() {
        GroupSize::Tensor => usize::from(rows > 0 && cols > 0),
        group => rows * group.count(cols),
    }
}

/// Returns the index of the scale of a group in a row.
fn params_index(spec: &GroupSpec, cols: usize, row: usize, group: usize) -> usize {
    if spec.group() == GroupSize::Tensor { 0 } else { row * spec.group().count(cols) + group }
}

/// Returns the range of columns, counted from 0, of each group in a row of `cols` columns, in order. The ranges cover the row; the last is
/// shorter if the group size of `spec` does not divide `cols`. If a group is a whole row or the whole matrix there is one range. There is
/// none if `cols` is 0.
pub fn spans(spec: &GroupSpec, cols: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let width = spec.group().width(cols);
    (0..spec.group().count(cols)).map(move |g| g * width..((g + 1) * width).min(cols))
}

impl PartialEq for GroupedLinear {
    fn eq(&self, other: &Self) -> bool {
        self.spec.stores_as(&other.spec)
            && self.shape == other.shape
            && self.scales == other.scales
            && self.zeros == other.zeros
            && self.dense() == other.dense()
    }
}

impl LinearOp for GroupedLinear {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn storage_bits(&self) -> u64 {
        Self::layout(&self.spec, self.shape).bits().unwrap_or(u64::MAX)
    }

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let cols = self.shape[1];
        if cols == 0 {
            return Ok(());
        }
        let isa = exec.isa();
        let params = |r: usize, g: usize| self.params_at(params_index(&self.spec, cols, r, g));
        let (groups, width) = (groups(&self.spec, cols), row_bytes(&self.spec, cols));
        if self.codes.len() == self.shape[0] * width {
            let codes = &self.codes[rows.start * width..rows.end * width];
            return Ok(grouped::dequantize(isa, codes, &groups, |r, g| params(rows.start + r, g), out, false)?);
        }
        let mut codes = vec![0u8; cols];
        for (r, out) in rows.zip(out.chunks_exact_mut(cols)) {
            self.read_codes(isa, r, &mut codes);
            for (g, span) in spans(&self.spec, cols).enumerate() {
                affine::dequantize(isa, &codes[span.clone()], params(r, g), &mut out[span]);
            }
        }
        Ok(())
    }

    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        multiply(self.panels()?, self.shape, x, y, write, exec)
    }

    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        task(self.panels()?, x, exec)
    }

    fn spec_block(&self, at: RowSlot) -> OpSpec {
        let group = match self.spec.group() {
            GroupSize::Size(n) => n.get().to_string(),
            GroupSize::Channel => "channel".to_string(),
            GroupSize::Tensor => "tensor".to_string(),
        };
        OpSpec::new(Self::KIND, [at.total, self.shape[1]])
            .int("bits", self.spec.bits().get())
            .text("group", &group)
            .text("grid", self.spec.grid().name())
            .text("scales", self.spec.scale_dtype().name())
    }

    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        let scale_type = self.spec.scale_dtype();
        let mut scales = vec![0u8; self.scales.len() * scale_type.size()];
        scale_type.narrow_bytes(&self.scales, &mut scales)?;
        let whole = Self::layout(&self.spec, [at.total, self.shape[1]]);
        let codes = self.dense();
        for (suffix, info) in &whole.tensors {
            let name = join(prefix, suffix);
            let zeros;
            let bytes = match suffix.as_str() {
                "codes" => &codes[..],
                "scales" => &scales,
                _ if self.spec.group() == GroupSize::Tensor => &self.zeros,
                _ => {
                    zeros = self.packed_zeros();
                    &zeros
                }
            };
            if self.spec.group() == GroupSize::Tensor && suffix != "codes" {
                sink.write_shared(&name, info, bytes)?;
            } else {
                sink.write_rows(&name, info, at.first, bytes)?;
            }
        }
        Ok(())
    }
}

impl GroupedLinear {
    /// Returns the zero points, packed row by row.
    fn packed_zeros(&self) -> Vec<u8> {
        pack_rows(&self.zeros, self.spec.group().count(self.shape[1]), self.spec.bits().get())
    }
}

/// Loads a matrix and packs its codes for products. Errors as [`GroupedLinear::load`].
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let op = GroupedLinear::load(spec, prefix, loading.source())?;
    // The panels suffice: stored codes are unpacked from them.
    op.panels()?;
    Ok(Box::new(GroupedLinear { codes: Vec::new(), ..op }))
}

impl GroupedLinear {
    /// Loads a matrix from the tensors `codes`, `scales` and, on the asymmetric grid, `zeros` under `prefix` in `source`. `spec` is the
    /// description that `LinearOp::spec` returned when the matrix was saved. Codes stay packed as they are stored. Errors if a parameter of
    /// `spec` is missing or has a value that is unknown or out of range, or a tensor is missing or has another type or shape. Errors if a
    /// scale is not positive and finite, a zero point is above `2^bits - 1`, or a code is 0 on [`Grid::SymNarrow`]. Errors if a group has
    /// more than 32 768 columns and is neither a multiple of 32 768 columns nor a whole row ([`check_group`]).
    pub fn load(spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let unknown = |what: &'static str, value: &str| Error::Unsupported { what, value: value.to_string() };
        let group = match spec.get_text("group")? {
            "channel" => GroupSize::Channel,
            "tensor" => GroupSize::Tensor,
            n => GroupSize::size(n.parse().map_err(|_| unknown("group of a matrix", n))?)?,
        };
        let grid = spec.get_text("grid")?;
        let grid = Grid::from_name(grid).ok_or_else(|| unknown("grid", grid))?;
        let scales = spec.get_text("scales")?;
        let scale_dtype = DType::from_name(scales).ok_or_else(|| unknown("type of scales", scales))?;
        let bits = u32::try_from(spec.get_int("bits")?).unwrap_or(0);
        let own = GroupSpec::new(bits, group, grid, scale_dtype, Clip::None)?;
        let [rows, cols] = spec.shape;
        tersor_core::view::elements(spec.shape)?;
        check_group(group, cols)?;
        let read =
            |info: &TensorInfo, suffix: &str| read_expected(source, &join(prefix, suffix), info.dtype, &info.shape);
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for (suffix, info) in &GroupedLinear::layout(&own, spec.shape).tensors {
            match suffix.as_str() {
                "codes" => codes = read(info, suffix)?,
                "scales" => {
                    let bytes = read(info, suffix)?;
                    scales = vec![0f32; bytes.len() / scale_dtype.size()];
                    scale_dtype.widen_bytes(&bytes, &mut scales)?;
                }
                _ if group == GroupSize::Tensor => zeros = read(info, suffix)?,
                _ => {
                    zeros = unpack_rows(&read(info, suffix)?, group.count(cols), bits);
                }
            }
        }
        if let Some(i) = scales.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            let groups = group.count(cols).max(1);
            return Err(Error::ScaleRange {
                row: i / groups,
                group: i % groups,
                value: scales[i],
                dtype: scale_dtype.name(),
            });
        }
        if let Some(zero) = zeros.iter().find(|&&z| z > own.bits().max_code()) {
            return Err(Error::format(join(prefix, "zeros"), format!("zero point {zero} does not fit {bits} bits")));
        }
        // The narrow grid does not use the lowest code.
        let op = GroupedLinear { spec: own, shape: spec.shape, codes, panels: OnceLock::new(), scales, zeros };
        if grid == Grid::SymNarrow {
            for r in 0..rows {
                if op.row_codes(r)?.contains(&0) {
                    return Err(Error::format(
                        join(prefix, "codes"),
                        format!("row {r} has a code outside the narrow grid"),
                    ));
                }
            }
        }
        Ok(op)
    }
}
