//! [`Matrix`]: a candle tensor as the matrix that Tersor's methods take.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use tersor_core::{Error, IntoMat, MatView};

use crate::error::check_cpu;
use crate::{Result, storage};

const WHAT: &str = "a weight matrix";

/// A two-dimensional tensor as a matrix, for the typed entries of methods such as `Gptq::new().quantize(&Matrix::new(&weight)?, &stats)`.
/// Values in f32 are borrowed, with any strides; those in f16 and bf16 are converted to f32.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tersor_candle::{Matrix, core::IntoMat};
/// # fn main() -> candle_core::Result<()> {
/// let w = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?.t()?;
/// let values = Matrix::new(&w)?.with_mat(|m| Ok(m.to_f32().into_owned()));
/// assert_eq!(values.map_err(tersor_candle::Error::from)?, [1.0, 3.0, 2.0, 4.0]);
/// assert!(Matrix::new(&w.unsqueeze(0)?).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Matrix(Tensor);

impl Matrix {
    /// Returns the tensor `x` as a matrix, `[rows, columns]`; a weight is `[out_features, in_features]`. Errors unless it has two axes,
    /// elements in f32, f16 or bf16, and is on the CPU.
    pub fn new(x: &Tensor) -> Result<Self> {
        check_cpu(WHAT, x.device())?;
        if x.rank() != 2 {
            return Err(Error::shape("axes of a matrix", 2, x.rank()).into());
        }
        match x.dtype() {
            DType::F32 => Ok(Self(x.clone())),
            DType::F16 | DType::BF16 => Ok(Self(x.to_dtype(DType::F32)?)),
            found => Err(crate::Error::DType { what: WHAT, expected: storage::FLOATS, found }),
        }
    }
}

impl IntoMat<f32> for Matrix {
    fn with_mat<R>(&self, f: impl FnOnce(MatView<'_, f32>) -> tersor_core::Result<R>) -> tersor_core::Result<R> {
        let (stored, layout) = self.0.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), [rows, cols], [down, across]) =
            (&*stored, layout.dims(), layout.stride())
        else {
            return Err(Error::Unsupported { what: WHAT, value: "not in f32 on the CPU".into() });
        };
        let strides = [*down as isize, *across as isize];
        f(MatView::strided(values, layout.start_offset(), [*rows, *cols], strides)?)
    }
}
