//! Factors of the error of a quantized matrix.

use tersor_core::{Context, Result};

use crate::Rank;
use crate::factor::{Factors, Weights, decompose};

/// Returns the best factors of the error `w - quantized`, matrices of this shape, row-major; `weights` is the matrix of the norm, and `bits` the
/// storage of one value of a factor. Errors as [`factorize`](crate::factorize).
pub(super) fn factor_error(
    w: &[f32],
    quantized: Vec<f32>,
    shape: [usize; 2],
    weights: &Weights,
    (rank, bits): (Rank, f64),
    cx: &Context,
) -> Result<Factors> {
    let mut error = quantized;
    error.iter_mut().zip(w).for_each(|(e, w)| *e = w - *e);
    decompose(&error, shape, weights, rank, bits, cx)
}
