//! Errors as the inputs of a matrix weigh them.

use tersor_core::Result;
use tersor_linalg::matmul;

/// `tr E G Eᵀ`.
pub(crate) fn in_gram(e: &[f32], [rows, cols]: [usize; 2], gram: &[f64]) -> Result<f64> {
    let e: Vec<f64> = e.iter().map(|v| f64::from(*v)).collect();
    let product = matmul(&e, [rows, cols], gram, cols)?;
    Ok(product.iter().zip(&e).map(|(a, b)| a * b).sum::<f64>().max(0.0))
}
