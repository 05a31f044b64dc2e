//! Singular values and QR.

use rand_core::RngCore;
use tersor_core::{Error, ParamError, Result};

use crate::eigen::leads_negative;
use crate::{backend, check, check_result, gaussian, matmul, transposed};

/// `A = U diag(s) Vᵀ`, or the best of lower rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// `[m, k]`, columns orthonormal; of each, the component of largest magnitude (the first of equals) is positive.
    pub u: Vec<f64>,
    /// `k` singular values, largest first.
    pub s: Vec<f64>,
    /// `[k, n]`, rows orthonormal.
    pub vt: Vec<f64>,
}

/// The thin decomposition of `[m, n]`, `k = min(m, n)`. Error when a value is not finite or the iteration does not
/// converge.
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

/// The `rank` largest singular values and their vectors, by randomized range finding with `oversample` more columns
/// and `power` power iterations (Halko, Martinsson and Tropp 2011, Algorithms 4.4 and 5.1); exact where that would be
/// no less work. Error when `rank` is 0 or above `min(m, n)`, or as for [`svd`].
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

/// `A = QR`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qr {
    /// `[m, k]`, columns orthonormal.
    pub q: Vec<f64>,
    /// `[k, n]`, upper triangular (trapezoidal), its diagonal not negative.
    pub r: Vec<f64>,
}

/// The thin decomposition of `[m, n]`, `k = min(m, n)`. Error when a value is not finite.
pub fn qr(a: &[f64], [m, n]: [usize; 2]) -> Result<Qr> {
    check(a, [m, n])?;
    let k = m.min(n);
    if k == 0 {
        return Ok(Qr { q: Vec::new(), r: Vec::new() });
    }
    let found = backend::qr(a, [m, n]);
    let (mut q, mut r) = found.map_err(|_| Error::Numerical(format!("no QR of a {m} by {n} matrix")))?;
    for i in 0..k {
        if r[i * n + i] < 0.0 {
            r[i * n..(i + 1) * n].iter_mut().chain(&mut q[i * m..(i + 1) * m]).for_each(|v| *v = -*v);
        }
    }
    [&q, &r].into_iter().try_for_each(|v| check_result("a QR factor", v))?;
    Ok(Qr { q: transposed(&q, [k, m]), r })
}
