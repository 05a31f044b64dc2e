//! Storage of factors by another method, shared by low-rank weights and corrections.

use std::ops::Range;

use tersor_core::{Context, DType, Extent, Layout, LinearOp, MatView, Method, ParamError, Result, RowSource, StatSet};
use tersor_operators::{Cast, Factored};

use super::{Factors, Rank};

/// Returns the method that stores factors: `factors`, or f16 if there is none. Errors if it needs calibration data.
pub(crate) fn storage(factors: Option<Box<dyn Method>>) -> Result<Box<dyn Method>, ParamError> {
    let factors = match factors {
        Some(factors) => factors,
        None => Box::new(Cast::new(DType::F16)?),
    };
    if factors.needs().any_data() {
        return Err(ParamError::new("factors", factors.name(), "must be a method that needs no calibration data"));
    }
    Ok(factors)
}

/// Returns the layout of the factors of a matrix of this shape, stored by the method `factors`. It is an upper bound, not exact, where the rank
/// depends on the values. Errors if the shape overflows.
pub(crate) fn factor_layout(factors: &dyn Method, rank: Rank, shape: [usize; 2]) -> Result<Layout> {
    let n = rank.max_rank(shape, bits_of(factors)?);
    let mut up = factors.layout([shape[0], n])?.nested("up");
    up.tensors.extend(factors.layout([n, shape[1]])?.nested("down").tensors);
    up.exact &= !matches!(rank, Rank::Error { .. });
    Ok(up)
}

/// Returns the bits that the method `factors` takes for a value of a large matrix.
pub(crate) fn bits_of(factors: &dyn Method) -> Result<f64> {
    Ok(factors.layout([1024, 1024])?.bits()? as f64 / (1 << 20) as f64)
}

/// Stores the factors of a matrix `[rows, cols]` by the method `factors`. Errors as that method.
pub(crate) fn compress_factors(
    factors: &dyn Method,
    found: &Factors,
    [rows, cols]: [usize; 2],
    cx: &Context,
) -> Result<Box<dyn LinearOp>> {
    let none = StatSet::none();
    let prepared = factors.prepare(&none, cx)?;
    let one = |values: &[f32], shape: [usize; 2]| {
        prepared.compress(&MatView::new(values, shape)?, 0..shape[0], cx).map(|done| done.op)
    };
    let (up, down) = (one(&found.up, [rows, found.rank])?, one(&found.down, [found.rank, cols])?);
    Ok(Box::new(Factored::new(up, down)?))
}

/// Returns the shape of `w`. Errors unless `rows` are all of its rows.
pub(crate) fn whole(w: &dyn RowSource, rows: &Range<usize>) -> Result<[usize; 2]> {
    Extent::Whole.check(rows, w.shape()[0]).map(|()| w.shape())
}
