//! [`Dense`]: weights in f32, f16 or bf16.

use std::ops::Range;

use half::{bf16, f16};
use tersor_core::operator::{apply_by_rows, check_apply};
use tersor_core::rows::check_range;
use tersor_core::tensors::read_expected;
use tersor_core::{
    DType, Element, Error, Exec, Input, Isa, LinearOp, Loading, MatViewMut, OpSpec, Result, RowSlot, TensorInfo,
    TensorSink, Write, check_finite, view,
};
use tersor_kernels::dense::{Options, product};

/// The values, by their stored type.
enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

/// A matrix `[out_features, in_features]` of f32, f16 or bf16 values. It is stored as one tensor of this shape under the operator's own
/// name.
///
/// ```
/// use tersor_operators::{DType, Dense, LinearOp};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = Dense::new(vec![1.0, 2.0, 3.0, 4.0], [2, 2], DType::F16)?;
/// assert_eq!(op.storage_bits(), 4 * 16);
/// assert!(Dense::new(vec![1e6], [1, 1], DType::F16).is_err());
/// # Ok(())
/// # }
/// ```
pub struct Dense {
    store: Store,
    shape: [usize; 2],
}

impl Dense {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "dense";

    /// Returns the matrix of the shape `[out_features, in_features]` with the given `values`, row-major, stored as `dtype` (f32, f16 or
    /// bf16) and rounded to nearest even. Errors if the number of values is not the product of `shape`, `dtype` is another type, or a value
    /// is not finite or becomes infinite in `dtype`.
    pub fn new(values: Vec<f32>, shape: [usize; 2], dtype: DType) -> Result<Self> {
        let n = view::elements(shape)?;
        if values.len() != n {
            return Err(Error::shape("elements of a matrix", n, values.len()));
        }
        check_finite(&values, shape[1], 0)?;
        let dense = Self { store: Store::narrow(values, dtype)?, shape };
        if let Some((at, value)) = dense.store.infinite() {
            return Err(Error::NonFinite { row: at / shape[1], col: at % shape[1], value });
        }
        Ok(dense)
    }

    /// Returns the type of the stored values: f32, f16 or bf16.
    pub fn dtype(&self) -> DType {
        match self.store {
            Store::F32(_) => DType::F32,
            Store::F16(_) => DType::F16,
            Store::BF16(_) => DType::BF16,
        }
    }

    /// Returns the values, `[out_features, in_features]` row-major, if they are stored as f32; `None` if they are f16 or bf16.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.store {
            Store::F32(v) => Some(v),
            _ => None,
        }
    }

    /// Returns type and shape of the stored tensor of a matrix with `rows` rows.
    fn info(&self, rows: usize) -> TensorInfo {
        TensorInfo { dtype: self.dtype(), shape: vec![rows, self.shape[1]] }
    }
}

impl Store {
    /// Returns the index and value of the first f16 or bf16 value that is not finite. Values of f32 were checked before.
    fn infinite(&self) -> Option<(usize, f32)> {
        match self {
            Store::F32(_) => None,
            Store::F16(v) => v.iter().position(|v| !v.is_finite()).map(|i| (i, v[i].to_f32())),
            Store::BF16(v) => v.iter().position(|v| !v.is_finite()).map(|i| (i, v[i].to_f32())),
        }
    }

    /// Stores values as `dtype`. Errors unless it is f32, f16 or bf16.
    fn narrow(values: Vec<f32>, dtype: DType) -> Result<Self> {
        fn narrow<T: Element>(values: &[f32]) -> Vec<T> {
            let mut out = vec![T::ZERO; values.len()];
            T::narrow(Isa::detect(), values, &mut out);
            out
        }
        Ok(match dtype {
            DType::F32 => Store::F32(values),
            DType::F16 => Store::F16(narrow(&values)),
            DType::BF16 => Store::BF16(narrow(&values)),
            other => {
                let value = format!("{}; use F32, F16 or BF16", other.name());
                return Err(Error::Unsupported { what: "type of a weight", value });
            }
        })
    }
}

impl LinearOp for Dense {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
    fn storage_bits(&self) -> u64 {
        (self.shape[0] * self.shape[1] * self.dtype().size()) as u64 * 8
    }
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        check_range(self.shape, &rows, out.len())?;
        let span = rows.start * self.shape[1]..rows.end * self.shape[1];
        match &self.store {
            Store::F32(v) => f32::widen(exec.isa(), &v[span], out),
            Store::F16(v) => f16::widen(exec.isa(), &v[span], out),
            Store::BF16(v) => bf16::widen(exec.isa(), &v[span], out),
        }
        Ok(())
    }
    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        let Store::F32(w) = &self.store else { return apply_by_rows(self, x, y, write, exec) };
        check_apply(self.shape, x, &y)?;
        x.check_finite()?;
        let how = Options { isa: exec.isa(), write, parallel: exec.parallel() };
        Ok(exec.run(|| product(how, x.data(), x.shape(), w, self.shape[0], y.into_out()))?)
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new(Self::KIND, [at.total, self.shape[1]]).text("dtype", self.dtype().name())
    }
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
        fn bytes<T: Copy, const N: usize>(v: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            v.iter().flat_map(|&v| f(v)).collect()
        }
        let bytes = match &self.store {
            Store::F32(v) => bytes(v, f32::to_le_bytes),
            Store::F16(v) => bytes(v, f16::to_le_bytes),
            Store::BF16(v) => bytes(v, bf16::to_le_bytes),
        };
        sink.write_rows(prefix, &self.info(at.total), at.first, &bytes)
    }
}

/// Loads a matrix. Errors if the type is unknown, or the tensor is missing, has another type or shape, or holds a value that is not finite.
pub(crate) fn load(spec: &OpSpec, prefix: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let name = spec.get_text("dtype")?;
    let dtype = DType::from_name(name)
        .filter(|d| d.is_weight())
        .ok_or_else(|| Error::Unsupported { what: "type of a weight", value: name.to_string() })?;
    let bytes = read_expected(loading.source(), prefix, dtype, &spec.shape)?;
    let mut values = vec![0f32; view::elements(spec.shape)?];
    dtype.widen_bytes(&bytes, &mut values)?;
    Ok(Box::new(Dense::new(values, spec.shape, dtype)?))
}
