//! Matrices in blocks, as operators and as a method.

use std::ops::Range;
use std::time::Instant;

use tersor_core::method::ROW_UNIT;
use tersor_core::op::apply_by_rows;
use tersor_core::rows::check_range;
use tersor_core::view::elements;
use tersor_core::{
    Check, Compressed, Context, Element, Error, Exec, Input, IntoMat, Layout, LinearOp, MatViewMut, Method, OpSpec,
    Prepared, Registry, Report, Result, RowSlot, RowSource, StatNeeds, StatSet, TensorSink, TensorSource, read_finite,
};
use tersor_kernels::dense::Write;

use crate::bitsandbytes::{self, Stored};
use crate::{Blockwise, CheckedBlockwise, Quantized};

/// A matrix `[out_features, in_features]` whose values, row after row, are cut into blocks.
///
/// Stored as bitsandbytes stores a weight of 4 bits: codes under the matrix' own name (u8, `[bytes, 1]`), `absmax` (f32, or u8 where scales are
/// quantized, `[blocks]`), `quant_map` (f32, `[values]`), with quantized scales `nested_absmax` (f32) and `nested_quant_map` (f32, `[256]`), and
/// `quant_state.bitsandbytes__<map>`, JSON that says the rest.
#[derive(Clone, PartialEq, Debug)]
pub struct BlockwiseLinear {
    values: Quantized,
    shape: [usize; 2],
}

impl BlockwiseLinear {
    /// The kind in specifications.
    pub const KIND: &'static str = "blockwise";

    /// Of as many values as the shape has. Error otherwise.
    pub fn new(values: Quantized, shape: [usize; 2]) -> Result<Self> {
        if elements(shape)? != values.len() {
            return Err(Error::shape("values of a matrix", elements(shape)?, values.len()));
        }
        Ok(Self { values, shape })
    }

    /// Codes and scales.
    pub fn quantized(&self) -> &Quantized {
        &self.values
    }

    /// Exact stored bits over the number of weights, map and description included; 0 for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        if self.values.is_empty() { 0.0 } else { self.storage_bits() as f64 / self.values.len() as f64 }
    }

    fn stored(&self, rows: usize) -> Stored<'_> {
        let q = &self.values;
        Stored { map: q.map(), block: q.block(), nested: q.is_nested(), dtype: q.dtype(), shape: [rows, self.shape[1]] }
    }
}

impl LinearOp for BlockwiseLinear {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn storage_bits(&self) -> u64 {
        self.stored(self.shape[0]).layout().bits().unwrap_or(u64::MAX)
    }

    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let cols = self.shape[1];
        self.values.read(rows.start * cols..rows.end * cols, out)
    }

    fn apply_add(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        apply_by_rows(self, x, y, Write::Add, exec)
    }

    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, exec: &mut Exec) -> Result<()> {
        apply_by_rows(self, x, y, Write::Set, exec)
    }

    fn spec(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]]).text("map", self.values.map().kind().name())
    }

    fn save(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        self.stored(at.total).save(&self.values, at.first, prefix, sink)
    }
}

/// Reopens a matrix. Error when its tensors do not fit each other, or the specification.
pub(crate) fn load(spec: &OpSpec, prefix: &str, source: &dyn TensorSource, _: &Registry) -> Result<Box<dyn LinearOp>> {
    let (values, shape) = bitsandbytes::read_named(prefix, spec.get_text("map")?, source)?;
    if shape != spec.shape {
        return Err(Error::shape("shape of a stored matrix", spec.shape, shape));
    }
    Ok(Box::new(BlockwiseLinear::new(values, spec.shape)?))
}

impl Blockwise {
    /// Checks the parameters and quantizes a matrix `[out_features, in_features]`. Error on a wrong parameter, or a value that is not finite.
    pub fn matrix<T: Element>(self, w: &impl IntoMat<T>) -> Result<BlockwiseLinear> {
        let how = self.check()?;
        w.with_mat(|m| {
            let shape = m.shape();
            let q = how.quantize_from(&m.to_f32(), 0, T::DTYPE).map_err(|e| at_row(e, shape[1]))?;
            BlockwiseLinear::new(q, shape)
        })
    }
}

/// Row and column of a value that was found by its index.
fn at_row(e: Error, cols: usize) -> Error {
    match e {
        Error::NonFinite { col, value, .. } if cols > 0 => Error::NonFinite { row: col / cols, col: col % cols, value },
        other => other,
    }
}

impl Method for CheckedBlockwise {
    fn name(&self) -> String {
        self.map().kind().name().into()
    }

    fn needs(&self) -> StatNeeds {
        // Blocks of rows must be whole blocks of values, and the mean of scales is of all of them.
        let whole_matrix = self.is_nested() || !ROW_UNIT.is_multiple_of(self.block());
        StatNeeds { whole_matrix, ..StatNeeds::default() }
    }

    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        elements(shape)?;
        let dtype = f32::DTYPE;
        Ok(Stored { map: self.map(), block: self.block(), nested: self.is_nested(), dtype, shape }.layout())
    }

    fn prepare<'s>(&'s self, _: Option<&StatSet>, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready(self)))
    }
}

struct Ready<'m>(&'m CheckedBlockwise);

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let ([all, cols], start) = (w.shape(), Instant::now());
        if self.0.needs().whole_matrix && rows != (0..all) {
            return Err(Error::shape("rows of a matrix in blocks over all of it", 0..all, rows));
        }
        let values = read_finite(w, rows.clone())?;
        let shape = [rows.len(), cols];
        let q = cx.run(|| self.0.quantize_from(&values, rows.start * cols, f32::DTYPE));
        let op = BlockwiseLinear::new(q?, shape)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back)?;
        Ok(Compressed { op: Box::new(op), report: Report::of(&values, &back, start.elapsed()) })
    }
}
