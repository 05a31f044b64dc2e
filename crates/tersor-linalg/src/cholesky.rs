//! Cholesky factors of positive definite matrices.

use tersor_core::{Error, Result};

use crate::{backend, check, transposed};

/// Returns the Cholesky factor of a symmetric positive definite matrix `a`, `[n, n]` row-major: the lower triangular `L`, `[n, n]`
/// row-major, with `A = LLᵀ`; empty if `n` is 0. Only the upper triangle of `a` is read: the lower triangle is taken to mirror it. Errors
/// if `a` does not have `n * n` elements, or if an element of either triangle is not finite. Errors with [`Error::NotPositiveDefinite`] if
/// `a` is not positive definite; this error holds the zero-based index of the first pivot that is not positive.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let l = tersor_linalg::cholesky(&[4.0, 2.0, 2.0, 5.0], 2)?;
/// assert_eq!(l, [2.0, 0.0, 1.0, 2.0]);
/// assert!(tersor_linalg::cholesky(&[1.0, 2.0, 2.0, 1.0], 2).is_err());
/// # Ok(())
/// # }
/// ```
pub fn cholesky(a: &[f64], n: usize) -> Result<Vec<f64>> {
    check(a, [n, n])?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let mut r = a.to_vec();
    backend::cholesky_upper(&mut r, n).map_err(not_definite)?;
    Ok(transposed(&r, [n, n]))
}

/// Returns the Cholesky factor that GPTQ uses (arXiv 2210.17323, Algorithm 1): for a symmetric positive definite matrix `h`, `[n, n]`
/// row-major, the upper triangular `U`, `[n, n]` row-major, with `H⁻¹ = UᵀU`; empty if `n` is 0. Only the lower triangle of `h` is read:
/// the upper triangle is taken to mirror it. Errors if `h` does not have `n * n` elements, or if an element of either triangle is not
/// finite. Errors with [`Error::NotPositiveDefinite`] if `h` is not positive definite, or if an element of `U` exceeds the range of f64.
/// The [front page](crate) has an example.
///
/// With the matrix `J` that reverses the order of rows, and the upper Cholesky factor `R` of `J H J = RᵀR`, the result is `U = J R⁻ᵀ J`:
/// one factorization and one triangular inverse; the inverse of `H` is never formed.
pub fn inverse_factor(h: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut u = reversed_factor(h.to_vec(), n)?;
    u.reverse();
    Ok(u)
}

/// Returns the result of [`inverse_factor`], computed in f64, rounded to f32: for a symmetric positive definite matrix `h`, `[n, n]`
/// row-major, the upper triangular `U`, `[n, n]` row-major, with `H⁻¹ = UᵀU`. `h` is taken by value, so that no copy of it is made. Only
/// the lower triangle of `h` is read: the upper triangle is taken to mirror it. Errors if `h` does not have `n * n` elements, or if an
/// element of either triangle is not finite. Errors with [`Error::NotPositiveDefinite`] if `h` is not positive definite, or if an element
/// of `U` exceeds the range of f32. Errors with [`Error::Numerical`] if a diagonal element of `U` is below the smallest normal f32.
pub fn inverse_factor_f32(h: Vec<f64>, n: usize) -> Result<Vec<f32>> {
    let u: Vec<f32> = reversed_factor(h, n)?.into_iter().rev().map(|v| v as f32).collect();
    if let Some(i) = u.iter().position(|v| !v.is_finite()) {
        return Err(not_definite(i / n));
    }
    match (0..n).find(|i| u[i * n + i] < f32::MIN_POSITIVE) {
        None => Ok(u),
        Some(i) => {
            let pivot = u[i * n + i];
            Err(Error::Numerical(format!(
                "the inverse factor has {pivot:e} at {i}, outside of f32's range: scale the matrix down"
            )))
        }
    }
}

/// Returns `J U J` with the reversal `J` of order.
fn reversed_factor(mut h: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    check(&h, [n, n])?;
    if n == 0 {
        return Ok(h);
    }
    // Reversing the memory of a square matrix reverses both of its axes.
    h.reverse();
    backend::cholesky_upper(&mut h, n).map_err(|pivot| not_definite(n - 1 - pivot))?;
    let u = backend::inverse_transposed(&h, n);
    match u.iter().position(|v| !v.is_finite()) {
        None => Ok(u),
        Some(i) => Err(not_definite(n - 1 - i / n)),
    }
}

/// Checks that a matrix `a`, `[n, n]` row-major, is finite and symmetric: elements across the diagonal may differ by at most `1e-6` times
/// the largest magnitude in `a`. Errors if they differ by more, if an element is not finite, or if `a` does not have `n * n` elements.
pub fn check_symmetric(a: &[f64], n: usize) -> Result<()> {
    check(a, [n, n])?;
    let largest = a.iter().fold(0f64, |m, v| m.max(v.abs()));
    // A tile at a time: a column of a whole matrix would miss the cache at each step.
    const TILE: usize = 64;
    for top in (0..n).step_by(TILE) {
        for left in (0..=top).step_by(TILE) {
            for i in top..(top + TILE).min(n) {
                for j in left..(left + TILE).min(i) {
                    let (low, high) = (a[i * n + j], a[j * n + i]);
                    if (low - high).abs() > 1e-6 * largest {
                        let what = format!("the matrix is not symmetric: {low} at ({i}, {j}), {high} at ({j}, {i})");
                        return Err(Error::Numerical(what));
                    }
                }
            }
        }
    }
    Ok(())
}

fn not_definite(pivot: usize) -> Error {
    Error::NotPositiveDefinite { pivot, damping_tried: Vec::new() }
}
