//! LAPACK, over ndarray-linalg.

use lax::error::Error as LapackError;
use ndarray_linalg::error::LinalgError;
use ndarray_linalg::{CholeskyInto, Diag, Eigh, JobSvd, QR, SVDDC, SolveTriangularInto, UPLO};
use tersor_core::ndarray::{Array2, ArrayView2, ShapeError};

use super::{NoConvergence, Singular};

impl From<LinalgError> for NoConvergence {
    fn from(_: LinalgError) -> Self {
        NoConvergence
    }
}

impl From<ShapeError> for NoConvergence {
    fn from(_: ShapeError) -> Self {
        NoConvergence
    }
}

fn by_columns(a: &Array2<f64>) -> Vec<f64> {
    a.t().iter().copied().collect()
}

/// Replaces a symmetric `A` by the upper `R` with `A = RᵀR`. Errors with the first pivot that is not positive.
pub(crate) fn cholesky_upper(a: &mut [f64], n: usize) -> Result<(), usize> {
    let view = ArrayView2::from_shape([n, n], &*a).map_err(|_| 0usize)?;
    let r = view.to_owned().cholesky_into(UPLO::Upper).map_err(|e| match e {
        LinalgError::Lapack(LapackError::LapackComputationalFailure { return_code }) => return_code as usize - 1,
        _ => 0,
    })?;
    for ((i, j), v) in r.indexed_iter() {
        a[i * n + j] = if j >= i { *v } else { 0.0 };
    }
    Ok(())
}

/// Returns `R⁻ᵀ` (lower) of an upper `R`.
pub(crate) fn inverse_transposed(r: &[f64], n: usize) -> Vec<f64> {
    let solved = ArrayView2::from_shape([n, n], r)
        .ok()
        .and_then(|r| r.solve_triangular_into(UPLO::Upper, Diag::NonUnit, Array2::eye(n)).ok());
    // The caller errors on values that are not finite.
    solved.map_or_else(|| vec![f64::NAN; n * n], |inverse| by_columns(&inverse))
}

/// Returns the eigenvalues of a symmetric matrix, ascending, and its eigenvectors as rows.
pub(crate) fn eigen(a: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>), NoConvergence> {
    let (values, vectors) = ArrayView2::from_shape([n, n], a)?.to_owned().eigh(UPLO::Lower)?;
    Ok((values.to_vec(), by_columns(&vectors)))
}

/// Returns all singular values and the thin singular vectors.
pub(crate) fn svd(a: &[f64], shape: [usize; 2]) -> Result<Singular, NoConvergence> {
    let found = ArrayView2::from_shape(shape, a)?.to_owned().svddc(JobSvd::Some)?;
    let (Some(u), s, Some(vt)) = found else { return Err(NoConvergence) };
    Ok(Singular { u: by_columns(&u), s: s.to_vec(), v: vt.iter().copied().collect() })
}

/// Returns the thin `Q` by columns, and `R` by rows (`[k, n]`).
pub(crate) fn qr(a: &[f64], shape: [usize; 2]) -> Result<(Vec<f64>, Vec<f64>), NoConvergence> {
    let (q, r) = ArrayView2::from_shape(shape, a)?.to_owned().qr()?;
    Ok((by_columns(&q), r.iter().copied().collect()))
}
