//! Values of CPU tensors: read in f32, and written in the type of the tensor.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor};
use half::{bf16, f16};
use tersor_core::{Element, Isa};

use crate::error::{check_cpu, on_device};
use crate::{Error, Result};

/// Element types that products and statistics take.
pub(crate) const FLOATS: &str = "F32, F16 or BF16";

/// Returns the CPU storage of a tensor.
pub(crate) fn on_cpu<'s>(what: &'static str, storage: &'s Storage) -> Result<&'s CpuStorage> {
    match storage {
        Storage::Cpu(values) => Ok(values),
        other => Err(on_device(what, format!("{:?}", other.device().location()))),
    }
}

/// Returns the range of a contiguous tensor in its storage.
pub(crate) fn span(what: &'static str, layout: &Layout) -> Result<std::ops::Range<usize>> {
    let found = layout.contiguous_offsets().map(|(first, end)| first..end);
    found.ok_or_else(|| tersor_core::Error::order(what, "it must be contiguous", layout.stride()).into())
}

/// Returns the values of a contiguous tensor in f32, borrowed if it has f32 elements. Errors unless its elements are f32, f16 or bf16.
pub(crate) fn read<'s>(what: &'static str, stored: &'s CpuStorage, at: &Layout, isa: Isa) -> Result<Cow<'s, [f32]>> {
    let at = span(what, at)?;
    match stored {
        CpuStorage::F32(v) => Ok(Cow::Borrowed(&v[at])),
        CpuStorage::F16(v) => Ok(Cow::Owned(widened(&v[at], isa))),
        CpuStorage::BF16(v) => Ok(Cow::Owned(widened(&v[at], isa))),
        other => Err(Error::DType { what, expected: FLOATS, found: type_of(other) }),
    }
}

/// Calls `f` with the values of a tensor in f32, row-major. Errors unless it is on the CPU, with elements in f32, f16 or bf16.
pub(crate) fn with_f32<R>(what: &'static str, x: &Tensor, isa: Isa, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    check_cpu(what, x.device())?;
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    f(&read(what, on_cpu(what, &storage)?, layout, isa)?)
}

/// Returns values in the type `dtype`, which must be f32, f16 or bf16; f16 and bf16 are rounded to nearest.
pub(crate) fn write(what: &'static str, values: Vec<f32>, dtype: DType, isa: Isa) -> Result<CpuStorage> {
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(values)),
        DType::F16 => Ok(CpuStorage::F16(narrowed(&values, f16::ZERO, isa))),
        DType::BF16 => Ok(CpuStorage::BF16(narrowed(&values, bf16::ZERO, isa))),
        found => Err(Error::DType { what, expected: FLOATS, found }),
    }
}

/// Returns the type of the elements of a storage.
pub(crate) fn type_of(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

fn widened<E: Element>(from: &[E], isa: Isa) -> Vec<f32> {
    let mut to = vec![0f32; from.len()];
    E::widen(isa, from, &mut to);
    to
}

fn narrowed<E: Element>(from: &[f32], zero: E, isa: Isa) -> Vec<E> {
    let mut to = vec![zero; from.len()];
    E::narrow(isa, from, &mut to);
    to
}

/// Returns the shape of `x` `[.., features]` as that of a matrix: the product of the leading axes, and the last axis. Errors if it has no
/// axes.
pub(crate) fn as_matrix(what: &'static str, dims: &[usize]) -> Result<[usize; 2]> {
    let Some((features, leading)) = dims.split_last() else {
        return Err(tersor_core::Error::shape(what, "at least 1 axis", dims).into());
    };
    let rows = leading.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let rows = rows.ok_or_else(|| tersor_core::Error::Overflow { what: format!("a tensor of shape {dims:?}") })?;
    Ok([rows, *features])
}
