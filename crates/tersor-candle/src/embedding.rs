//! [`CompressedEmbedding`]: rows of a compressed matrix by their index.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Shape, Tensor};
use tersor_core::{Exec, LinearOp};

use crate::error::check_cpu;
use crate::storage::write;
use crate::{Error, Result};

const IDS: &str = "the ids of an embedding";

/// A table of embeddings `[rows, features]` that is a compressed matrix. Only the rows that are asked for are decompressed. It has no
/// gradients. The output head of a model with tied weights is a [`CompressedLinear`](crate::CompressedLinear) with the same
/// [`op`](Self::op).
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{DType, Device, Module, Tensor};
/// use tersor::operators::{DType as Stored, Dense};
/// use tersor_candle::CompressedEmbedding;
///
/// # fn main() -> candle_core::Result<()> {
/// let table = Dense::new(vec![1.0, 2.0, 3.0, 4.0], [2, 2], Stored::BF16).map_err(tersor_candle::Error::from)?;
/// let embedding = CompressedEmbedding::new(Arc::new(table), DType::F32)?;
/// let rows = embedding.forward(&Tensor::new(&[[1u32, 0]], &Device::Cpu)?)?;
/// assert_eq!(rows.to_vec3::<f32>()?, [[[3.0, 4.0], [1.0, 2.0]]]);
/// assert!(embedding.forward(&Tensor::new(&[2u32], &Device::Cpu)?).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CompressedEmbedding {
    op: Arc<dyn LinearOp>,
    dtype: DType,
    exec: Exec,
}

impl CompressedEmbedding {
    /// Returns the embedding with the table `op`, `[rows, features]`, whose outputs have the type `dtype`. Errors unless it is f32, f16 or
    /// bf16.
    pub fn new(op: Arc<dyn LinearOp>, dtype: DType) -> Result<Self> {
        let exec = Exec::new();
        write("the output of an embedding", Vec::new(), dtype, exec.isa())?;
        Ok(Self { op, dtype, exec })
    }

    /// Returns the table, `[rows, features]`.
    pub fn op(&self) -> &Arc<dyn LinearOp> {
        &self.op
    }

    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        check_cpu(IDS, ids.device())?;
        if !ids.dtype().is_int() {
            return Err(Error::DType { what: IDS, expected: "U8, U32 or I64", found: ids.dtype() });
        }
        let [rows, features] = self.op.shape();
        let flat = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let mut values = vec![0f32; tersor_core::view::elements([flat.len(), features])?];
        for (id, out) in flat.iter().zip(values.chunks_exact_mut(features.max(1))) {
            let row = usize::try_from(*id).ok().filter(|row| *row < rows);
            let row = row.ok_or_else(|| tersor_core::Error::range("id of an embedding", 0..rows, id))?;
            self.op.decompress_rows(row..row + 1, out, &self.exec)?;
        }
        let dims: Vec<usize> = ids.dims().iter().copied().chain([features]).collect();
        Ok(Tensor::from_vec(values, Shape::from(dims), &Device::Cpu)?.to_dtype(self.dtype)?)
    }
}

impl Module for CompressedEmbedding {
    /// Returns the rows of the table with the indices `ids`, integers of any shape: `[.., features]`. Errors if an index is not below the
    /// number of rows, or `ids` are not integers or not on the CPU.
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.rows(ids)?)
    }
}
