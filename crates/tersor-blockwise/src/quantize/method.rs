//! Block-wise quantization of matrices as a [`Method`].

use std::ops::Range;
use std::time::Instant;

use tersor_core::method::ROW_UNIT;
use tersor_core::view::elements;
use tersor_core::{
    Compressed, Context, DType, Element, Error, Extent, Layout, LinearOp, Method, Prepared, Report, Result, RowSource,
    StatNeeds, StatSet, read_masked,
};
use tersor_operators::{BlockwiseForm, BlockwiseLinear};

use super::CheckedBlockwise;

impl Method for CheckedBlockwise {
    fn name(&self) -> String {
        self.map().kind().name().into()
    }

    fn needs(&self) -> StatNeeds {
        StatNeeds::default()
    }

    fn extent(&self) -> Extent {
        // A block of rows must hold whole blocks of values, and double quantization takes the mean of all scales.
        let whole = self.is_nested() || !ROW_UNIT.is_multiple_of(self.block());
        if whole { Extent::Whole } else { Extent::Blocks }
    }

    /// Returns the layout for weights of the type f32, whose name is stored; see [`CheckedBlockwise::layout_of`] for other types.
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        self.layout_of::<f32>(shape)
    }

    fn prepare<'s>(&'s self, _: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready(self)))
    }

    fn plain(&self) -> Option<&dyn Method> {
        Some(self)
    }
}

impl CheckedBlockwise {
    /// Returns the tensors (names, types and shapes) that will store a matrix of the shape `[out_features, in_features]` after
    /// [`Blockwise::quantize`](super::Blockwise::quantize) of elements of the type `T`. The type matters only because its name is stored
    /// beside the codes. Errors if a matrix of this shape would exceed the address space.
    pub fn layout_of<T: Element>(&self, shape: [usize; 2]) -> Result<Layout> {
        elements(shape)?;
        let form =
            BlockwiseForm { map: self.map(), block: self.block(), nested: self.is_nested(), dtype: T::DTYPE, shape };
        Ok(form.layout())
    }

    /// Quantizes `rows` of `w`, whose values were of the type `dtype`. Errors as [`Prepared::compress`].
    pub(super) fn matrix(
        &self,
        w: &dyn RowSource,
        rows: Range<usize>,
        dtype: DType,
        cx: &Context,
    ) -> Result<(BlockwiseLinear, Report)> {
        cx.cancel.check()?;
        let ([all, cols], start) = (w.shape(), Instant::now());
        self.extent().check(&rows, all)?;
        let (values, mask) = read_masked(w, rows.clone())?;
        let zero = self.map().values()[usize::from(self.map().zero())];
        if zero != 0.0 && mask.is_some_and(|m| m.count() < values.len()) {
            let value = format!("for a map whose value nearest to 0 is {zero}; use a map that has the value 0");
            return Err(Error::Unsupported { what: "mask", value });
        }
        let shape = [rows.len(), cols];
        let q = cx.run(|| self.quantize_from(&values, rows.start * cols, dtype, &cx.exec))?;
        let op = BlockwiseLinear::new(q, shape)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        Ok((op, Report::of(&values, &back, start.elapsed())))
    }
}

/// Block-wise quantization, which needs no preparation.
struct Ready<'m>(&'m CheckedBlockwise);

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (op, report) = self.0.matrix(w, rows, f32::DTYPE, cx)?;
        Ok(Compressed { op: Box::new(op), report })
    }
}
