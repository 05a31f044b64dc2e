#![doc = include_str!("../README.md")]

mod backend;
mod cholesky;
mod eigen;
mod hadamard;
mod hessian;
pub mod kmeans;
mod loss;
mod product;
mod random;
mod svd;
pub mod sweep;

pub use cholesky::{check_symmetric, cholesky, inverse_factor, inverse_factor_f32};
pub use eigen::{Eigen, eigen};
pub use hadamard::{hadamard, hadamard_order};
pub use hessian::{Damping, Failure, HessianFactor};
pub use loss::{Gram, output_loss};
pub use product::{matmul, syrk};
pub use random::{MAX_FACTOR, gaussian, orthogonal, rotation, rotation_shape};
pub use svd::{Qr, Svd, qr, svd, svd_truncated};
pub use sweep::{Kept, Sweep, Swept};

use tersor_core::{Error, Result};

/// Errors unless `a` is a matrix `[rows, cols]` of finite values.
fn check(a: &[f64], [rows, cols]: [usize; 2]) -> Result<()> {
    let n = tersor_core::view::elements([rows, cols])?;
    if a.len() != n {
        return Err(Error::shape("elements of a matrix", n, a.len()));
    }
    match a.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::NonFinite { row: i / cols, col: i % cols, value: a[i] as f32 }),
    }
}

/// Errors if a value of a result is not finite: it lies beyond f64's range, since the inputs were checked.
fn check_result(what: &str, values: &[f64]) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(Error::Numerical(format!("{what} lies beyond the range of f64: scale the input down")))
}

/// Returns the transpose of a matrix `[rows, cols]`, computed in square tiles that stay in the cache.
fn transposed(a: &[f64], [rows, cols]: [usize; 2]) -> Vec<f64> {
    const TILE: usize = 32;
    let mut out = vec![0f64; a.len()];
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for r in r0..(r0 + TILE).min(rows) {
                for c in c0..(c0 + TILE).min(cols) {
                    out[c * rows + r] = a[r * cols + c];
                }
            }
        }
    }
    out
}
