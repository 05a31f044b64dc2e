//! Symmetric eigenvectors.

use tersor_core::{Error, Result};

use crate::{backend, check_result, check_symmetric};

/// `A = Vᵀ diag(values) V` of a symmetric `[n, n]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Eigen {
    /// Eigenvalues, largest first.
    pub values: Vec<f64>,
    /// Row `i` is the unit eigenvector of `values[i]`; its component of largest magnitude (the first of equals) is positive.
    pub vectors: Vec<f64>,
}

/// All eigenvalues and eigenvectors. Error when the matrix is not finite or not symmetric to `1e-6` of its largest
/// value, or the iteration does not converge. Vectors of equal eigenvalues are some basis of their space, the same one
/// every time.
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

/// Whether the component of largest magnitude, the first of equals, is negative.
pub(crate) fn leads_negative(v: &[f64]) -> bool {
    let mut lead = 0f64;
    for &x in v {
        if x.abs() > lead.abs() {
            lead = x;
        }
    }
    lead < 0.0
}
