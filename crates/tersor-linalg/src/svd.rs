//! Singular value decomposition and QR.

use rand_core::RngCore;
use tersor_core::{Error, ParamError, Result};

use crate::eigen::leads_negative;
use crate::{backend, check, check_result, gaussian, matmul, transposed};

/// A singular value decomposition `A = U diag(s) Vᵀ` of a matrix `[m, n]`. From [`svd`] it has all `k = min(m, n)` singular values; from
/// [`svd_truncated`] it has the `k = rank` largest ones, so that the product approximates `A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// The left singular vectors of the [`Svd`] of a matrix `[m, n]` as columns, `[m, k]` row-major, orthonormal; `k` is the number of
    /// singular values. The sign of each column is chosen so that its component of largest magnitude (the first of several equal ones) is
    /// positive.
    pub u: Vec<f64>,
    /// The singular values of the [`Svd`] of a matrix `[m, n]`, largest first: all `min(m, n)` from [`svd`], as many as its argument `rank`
    /// from [`svd_truncated`].
    pub s: Vec<f64>,
    /// The right singular vectors of the [`Svd`] of a matrix `[m, n]` as rows, `[k, n]` row-major, orthonormal; `k` is the number of
    /// singular values. Their signs follow from those of the left ones.
    pub vt: Vec<f64>,
}

/// Returns the thin singular value decomposition of `a`, `[m, n]` row-major, with `k = min(m, n)` singular values. Errors if `a` does not
/// have `m * n` elements, an element is not finite, the iteration does not converge, or a result exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let found = tersor_linalg::svd(&[0.0, 2.0, 3.0, 0.0], [2, 2])?;
/// assert!((found.s[0] - 3.0).abs() < 1e-12 && (found.s[1] - 2.0).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn svd(a: &[f64], [m, n]: [usize; 2]) -> Result<Svd> {
    check(a, [m, n])?;
    let k = m.min(n);
    if k == 0 {
        return Ok(Svd { u: Vec::new(), s: Vec::new(), vt: Vec::new() });
    }
    let found = backend::svd(a, [m, n]);
    let backend::Singular { mut u, s, v: mut vt } =
        found.map_err(|_| Error::Numerical(format!("the singular values of a {m} by {n} matrix do not converge")))?;
    for (u, v) in u.chunks_exact_mut(m).zip(vt.chunks_exact_mut(n)) {
        if leads_negative(u) {
            u.iter_mut().chain(v).for_each(|v| *v = -*v);
        }
    }
    [&u, &s, &vt].into_iter().try_for_each(|v| check_result("a singular value or vector", v))?;
    Ok(Svd { u: transposed(&u, [k, m]), s, vt })
}

/// Returns the `rank` largest singular values of `a`, `[m, n]` row-major, and their vectors. They are computed approximately, by randomized
/// range finding (Halko, Martinsson and Tropp 2011, Algorithms 4.4 and 5.1): `oversample` is the number of random columns beyond `rank`,
/// drawn from `rng`, and `power` the number of power iterations; larger numbers are more accurate. If `2 * (rank + oversample)` is at least
/// `min(m, n)`, they are computed exactly, by [`svd`]. Errors if `rank` is 0 or above `min(m, n)`, `a` does not have `m * n` elements, an
/// element is not finite, the iteration does not converge, or a result exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let mut rng = tersor_core::Context::new().stream("svd");
/// // A matrix [2, 3] of rank 1.
/// let found = tersor_linalg::svd_truncated(&[1.0, 2.0, 2.0, 2.0, 4.0, 4.0], [2, 3], 1, 8, 1, &mut rng)?;
/// assert!((found.s[0] - 45f64.sqrt()).abs() < 1e-12 && found.vt.len() == 3);
/// # Ok(())
/// # }
/// ```
pub fn svd_truncated(
    a: &[f64],
    [m, n]: [usize; 2],
    rank: usize,
    oversample: usize,
    power: usize,
    rng: &mut impl RngCore,
) -> Result<Svd> {
    let max = m.min(n);
    if rank == 0 || rank > max {
        return Err(ParamError::new("rank", rank, format!("must be 1 to {max} for a {m} by {n} matrix")).into());
    }
    let width = rank.saturating_add(oversample);
    let full = if width.saturating_mul(2) >= max {
        svd(a, [m, n])?
    } else {
        check(a, [m, n])?;
        let at = transposed(a, [m, n]);
        let mut range = qr(&matmul(a, [m, n], &gaussian(n * width, rng), width)?, [m, width])?.q;
        for _ in 0..power {
            let back = qr(&matmul(&at, [n, m], &range, width)?, [n, width])?.q;
            range = qr(&matmul(a, [m, n], &back, width)?, [m, width])?.q;
        }
        let small = svd(&matmul(&transposed(&range, [m, width]), [width, m], a, n)?, [width, n])?;
        let mut u = matmul(&range, [m, width], &small.u, width)?;
        let mut vt = small.vt;
        for (i, v) in vt.chunks_exact_mut(n).enumerate() {
            let column: Vec<f64> = (0..m).map(|r| u[r * width + i]).collect();
            if leads_negative(&column) {
                (0..m).for_each(|r| u[r * width + i] *= -1.0);
                v.iter_mut().for_each(|v| *v = -*v);
            }
        }
        Svd { u, s: small.s, vt }
    };
    let k = full.s.len();
    let u = full.u.chunks_exact(k).flat_map(|row| row[..rank].iter().copied()).collect();
    Ok(Svd { u, s: full.s[..rank].to_vec(), vt: full.vt[..rank * n].to_vec() })
}

/// A thin QR decomposition `A = QR` of a matrix `[m, n]`: `Q` is `[m, k]` and `R` is `[k, n]`, with `k = min(m, n)`. Made by [`qr`].
#[derive(Clone, Debug, PartialEq)]
pub struct Qr {
    /// The factor `Q` of the [`Qr`] of a matrix `[m, n]`: `[m, k]` row-major with `k = min(m, n)`; its columns are orthonormal.
    pub q: Vec<f64>,
    /// The factor `R` of the [`Qr`] of a matrix `[m, n]`: `[k, n]` row-major with `k = min(m, n)`, upper triangular (trapezoidal if
    /// `n > k`), with no negative element on its diagonal.
    pub r: Vec<f64>,
}

/// Returns the thin QR decomposition of `a`, `[m, n]` row-major: `Q`, `[m, k]`, and `R`, `[k, n]`, with `k = min(m, n)`. Errors if `a` does
/// not have `m * n` elements, an element is not finite, or a factor exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let found = tersor_linalg::qr(&[0.0, 1.0, 2.0, 5.0], [2, 2])?;
/// assert!((found.r[0] - 2.0).abs() < 1e-12 && (found.q[2] - 1.0).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn qr(a: &[f64], [m, n]: [usize; 2]) -> Result<Qr> {
    check(a, [m, n])?;
    let k = m.min(n);
    if k == 0 {
        return Ok(Qr { q: Vec::new(), r: Vec::new() });
    }
    let found = backend::qr(a, [m, n]);
    let (mut q, mut r) =
        found.map_err(|_| Error::Numerical(format!("the QR decomposition of a {m} by {n} matrix failed")))?;
    for i in 0..k {
        if r[i * n + i] < 0.0 {
            r[i * n..(i + 1) * n].iter_mut().chain(&mut q[i * m..(i + 1) * m]).for_each(|v| *v = -*v);
        }
    }
    [&q, &r].into_iter().try_for_each(|v| check_result("a QR factor", v))?;
    Ok(Qr { q: transposed(&q, [k, m]), r })
}
