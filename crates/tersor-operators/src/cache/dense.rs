//! [`DenseRows`]: cached rows in f32 or f16.

use std::ops::Range;

use half::f16;
use tersor_core::cache::{CacheLoading, Prepared, Product, add_weighted_decoded, dot_decoded};
use tersor_core::tensors::read_expected;
use tersor_core::{
    DType, Element, Error, Exec, KvStore, MatView, OpSpec, Result, TensorInfo, TensorSink, check_finite,
};
use tersor_kernels::{Out, attention};

use super::{merged, retain_rows};

enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// A store of the cached keys, or the cached values, of one attention head in f32 or f16, `[tokens, dim]`. It is saved as one tensor of
/// this shape under the store's own name.
///
/// ```
/// use tersor_core::cache::LayerCache;
/// use tersor_operators::{DType, DenseRows, Exec};
/// # use tersor_core::{Heads, KvCache, KvStep, KvStore};
/// # fn main() -> tersor_operators::Result<()> {
/// // Keys in f32, values in f16, of one head of two dimensions.
/// let keys = Box::new(DenseRows::new(2, DType::F32)?);
/// let values = Box::new(DenseRows::new(2, DType::F16)?);
/// let mut cache = LayerCache::new(Heads::new(1, 1, 2)?, vec![keys], vec![values])?;
/// let step = KvStep { keys: &[1.0, 0.0], values: &[3.0, 4.0], queries: &[0.5, 0.5], positions: &[0] };
/// let mut out = [0.0; 2];
/// cache.step(step, &mut out, &Exec::new())?;
/// assert_eq!((out, cache.bytes()), ([3.0, 4.0], 2 * 4 + 2 * 2));
/// # Ok(())
/// # }
/// ```
pub struct DenseRows {
    values: Values,
    dim: usize,
}

impl DenseRows {
    /// The `kind` of this store in an [`OpSpec`], the description of a store without its rows. A `CacheRegistry` finds the store's loader
    /// by it.
    pub const KIND: &'static str = "dense-rows";

    /// Returns a store without tokens, whose rows have `dim` values of the type `dtype`. Errors if `dim` is 0 or `dtype` is neither f32 nor
    /// f16.
    pub fn new(dim: usize, dtype: DType) -> Result<Self> {
        if dim == 0 {
            return Err(Error::shape("width of a cached row", "at least 1", 0));
        }
        let values = match dtype {
            DType::F32 => Values::F32(Vec::new()),
            DType::F16 => Values::F16(Vec::new()),
            other => {
                let value = format!("{} (cached rows are F32 or F16)", other.name());
                return Err(Error::Unsupported { what: "type of cached rows", value });
            }
        };
        Ok(Self { values, dim })
    }

    /// Returns the type of the stored values, f32 or f16.
    pub fn dtype(&self) -> DType {
        match self.values {
            Values::F32(_) => DType::F32,
            Values::F16(_) => DType::F16,
        }
    }

    /// Errors if a row of values is not finite in the stored type; `row` is its number in messages.
    fn check(&self, values: &[f32], row: usize) -> Result<()> {
        check_finite(values, self.dim, row)?;
        if let Values::F16(_) = self.values {
            // The first value that rounds to infinity.
            const LIMIT: f32 = 65_520.0;
            if let Some(value) = values.iter().find(|v| v.abs() >= LIMIT) {
                return Err(Error::ScaleRange { row, group: 0, value: *value, dtype: "F16" });
            }
        }
        Ok(())
    }
}

impl KvStore for DenseRows {
    fn len(&self) -> usize {
        let values = match &self.values {
            Values::F32(v) => v.len(),
            Values::F16(v) => v.len(),
        };
        values / self.dim
    }
    fn dim(&self) -> usize {
        self.dim
    }
    fn admit(&self, block: MatView<'_, f32>) -> Result<()> {
        (0..block.shape()[0]).try_for_each(|t| self.check(&block.row(t), t))
    }
    fn append(&mut self, block: MatView<'_, f32>, _: &[u32], exec: &Exec) {
        for t in 0..block.shape()[0] {
            let row = block.row(t);
            match &mut self.values {
                Values::F32(v) => v.extend_from_slice(&row),
                Values::F16(v) => {
                    let at = v.len();
                    v.resize(at + row.len(), f16::ZERO);
                    f16::narrow(exec.isa(), &row, &mut v[at..]);
                }
            }
        }
    }
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        let span = rows.start * self.dim..rows.end * self.dim;
        match &self.values {
            Values::F32(v) => out.copy_from_slice(&v[span]),
            Values::F16(v) => f16::widen(exec.isa(), &v[span], out),
        }
        Ok(())
    }
    fn dot(&self, q: &Prepared, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        let Values::F32(v) = &self.values else { return dot_decoded(self, q, rows, out, exec) };
        let (keys, stride) = (&v[rows.start * self.dim..rows.end * self.dim], rows.len());
        let out = Out { data: out, stride };
        Ok(attention::scores(exec.isa(), q.product, &q.floats, keys, self.dim, out)?)
    }
    fn add_weighted(
        &self,
        p: &[f32],
        product: Product,
        rows: Range<usize>,
        out: &mut [f32],
        exec: &Exec,
    ) -> Result<()> {
        let Values::F32(v) = &self.values else { return add_weighted_decoded(self, p, product, rows, out, exec) };
        let (values, stride) = (&v[rows.start * self.dim..rows.end * self.dim], rows.len());
        Ok(attention::add_weighted(exec.isa(), product, [p, values], stride, self.dim, out)?)
    }
    fn retain(&mut self, keep: &[u32]) -> Result<()> {
        match &mut self.values {
            Values::F32(v) => retain_rows(v, self.dim, keep),
            Values::F16(v) => retain_rows(v, self.dim, keep),
        }
    }
    fn merge(&mut self, into: u32, own: f32, from: &[(u32, f32)], exec: &Exec) -> Result<()> {
        let row = merged(self, into, own, from, exec)?;
        self.check(&row, into as usize)?;
        let span = into as usize * self.dim..(into as usize + 1) * self.dim;
        match &mut self.values {
            Values::F32(v) => v[span].copy_from_slice(&row),
            Values::F16(v) => f16::narrow(exec.isa(), &row, &mut v[span]),
        }
        Ok(())
    }
    fn truncate(&mut self, rows: usize) -> Result<()> {
        let len = rows.saturating_mul(self.dim);
        match &mut self.values {
            Values::F32(v) => v.truncate(len),
            Values::F16(v) => v.truncate(len),
        }
        Ok(())
    }
    fn clear(&mut self) {
        match &mut self.values {
            Values::F32(v) => v.clear(),
            Values::F16(v) => v.clear(),
        }
    }
    fn bytes(&self) -> usize {
        self.len() * self.dim * self.dtype().size()
    }
    fn spec(&self) -> OpSpec {
        OpSpec::new(Self::KIND, [self.len(), self.dim]).text("dtype", self.dtype().name())
    }
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let bytes: Vec<u8> = match &self.values {
            Values::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::F16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        sink.write_shared(prefix, &TensorInfo { dtype: self.dtype(), shape: vec![self.len(), self.dim] }, &bytes)
    }
}

pub(super) fn load(spec: &OpSpec, prefix: &str, loading: &CacheLoading<'_>) -> Result<Box<dyn KvStore>> {
    let name = spec.get_text("dtype")?;
    let dtype = DType::from_name(name);
    let dtype = dtype.ok_or_else(|| Error::Unsupported { what: "type of cached rows", value: name.to_string() })?;
    let mut store = DenseRows::new(spec.shape[1], dtype)?;
    let bytes = read_expected(loading.source(), prefix, dtype, &spec.shape)?;
    let mut values = vec![0f32; tersor_core::view::elements(spec.shape)?];
    dtype.widen_bytes(&bytes, &mut values)?;
    let block = MatView::new(&values, spec.shape)?;
    store.admit(block)?;
    store.append(block, &[], &Exec::serial());
    Ok(Box::new(store))
}
