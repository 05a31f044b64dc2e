//! Eigenvalues and eigenvectors of symmetric matrices.

use tersor_core::{Error, Result};

use crate::{backend, check_result, check_symmetric};

/// The eigendecomposition `A = Vᵀ diag(values) V` of a symmetric matrix `A`, `[n, n]`, where the rows of `V` (the field `vectors`) are the
/// eigenvectors. Made by [`eigen`].
#[derive(Clone, Debug, PartialEq)]
pub struct Eigen {
    /// The `n` eigenvalues of a symmetric matrix, `[n, n]`, largest first; a repeated eigenvalue occurs as often as its multiplicity.
    pub values: Vec<f64>,
    /// The eigenvectors as rows, `[n, n]` row-major: row `i` is the unit eigenvector of the eigenvalue `values[i]`. The sign of each row is
    /// chosen so that its component of largest magnitude (the first of several equal ones) is positive.
    pub vectors: Vec<f64>,
}

/// Returns all eigenvalues, largest first, and unit eigenvectors of a symmetric matrix `a`, `[n, n]` row-major. The eigenvectors of a
/// repeated eigenvalue are an orthonormal basis of its eigenspace; the same matrix always gives the same basis. Errors if `a` does not have
/// `n * n` elements, an element is not finite, elements across the diagonal differ by more than `1e-6` of the largest magnitude in `a`, the
/// iteration does not converge, or a result exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let found = tersor_linalg::eigen(&[2.0, 1.0, 1.0, 2.0], 2)?;
/// assert!((found.values[0] - 3.0).abs() < 1e-12 && (found.values[1] - 1.0).abs() < 1e-12);
/// assert!((found.vectors[0] - found.vectors[1]).abs() < 1e-12, "the first vector is (1, 1)/√2");
/// # Ok(())
/// # }
/// ```
pub fn eigen(a: &[f64], n: usize) -> Result<Eigen> {
    check_symmetric(a, n)?;
    if n == 0 {
        return Ok(Eigen { values: Vec::new(), vectors: Vec::new() });
    }
    let found = backend::eigen(a, n);
    let (mut values, mut vectors) =
        found.map_err(|_| Error::Numerical(format!("the eigenvalues of a {n} by {n} matrix do not converge")))?;
    check_result("an eigenvalue", &values)?;
    check_result("an eigenvector", &vectors)?;
    values.reverse();
    let (mut low, mut high) = (0, n - 1);
    while low < high {
        let (a, b) = vectors.split_at_mut(high * n);
        a[low * n..(low + 1) * n].swap_with_slice(&mut b[..n]);
        (low, high) = (low + 1, high - 1);
    }
    for v in vectors.chunks_exact_mut(n) {
        if leads_negative(v) {
            v.iter_mut().for_each(|v| *v = -*v);
        }
    }
    Ok(Eigen { values, vectors })
}

/// Returns whether the component of largest magnitude, the first of equals, is negative.
pub(crate) fn leads_negative(v: &[f64]) -> bool {
    let mut lead = 0f64;
    for &x in v {
        if x.abs() > lead.abs() {
            lead = x;
        }
    }
    lead < 0.0
}
