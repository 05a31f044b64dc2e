//! Compensation of the error of a span of columns in the columns after it.

use std::ops::Range;

use tersor_core::Result;
use tersor_linalg::{inverse_factor, matmul};

/// Returns, for the columns `i` of a span and the columns `r` after it, the Schur complement `H_ii - H_ir H_rr⁻¹ H_ri`, `[n, n]`, and the coupling
/// `H_ir H_rr⁻¹`, `[n, rest]`: an error `E` of the span is compensated by `E H_ir H_rr⁻¹` in the columns after it. `H` is `gram`, `[k, k]`, with
/// `damping` times its mean diagonal added to its diagonal; the complement is returned without that. Errors if `H_rr` is not positive definite.
pub(super) fn couple(gram: &[f64], k: usize, span: Range<usize>, damping: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let mean = (0..k).map(|i| gram[i * k + i]).sum::<f64>() / k as f64;
    // Inputs that were all zero: any positive damping will do.
    let added = if mean > 0.0 { damping * mean } else { 1.0 };
    let at = |r: usize, c: usize| gram[r * k + c] + if r == c { added } else { 0.0 };
    let block = |rows: Range<usize>, cols: Range<usize>| -> Vec<f64> {
        rows.flat_map(|r| cols.clone().map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect()
    };
    let (n, after) = (span.len(), span.end..k);
    let m = after.len();
    // H_rr⁻¹ = UᵀU, U upper.
    let u = inverse_factor(&block(after.clone(), after.clone()), m)?;
    let transposed: Vec<f64> = (0..m * m).map(|i| u[i % m * m + i / m]).collect();
    let half = matmul(&block(span.clone(), after), [n, m], &transposed, m)?;
    let coupling = matmul(&half, [n, m], &u, m)?;
    let transposed: Vec<f64> = (0..m * n).map(|i| half[i % n * m + i / n]).collect();
    let explained = matmul(&half, [n, m], &transposed, n)?;
    let mut rest = block(span.clone(), span);
    for r in 0..n {
        for c in r..n {
            // Exactly symmetric, and without the damping, which each part adds itself.
            let v = rest[r * n + c] - explained[r * n + c] - if r == c { added } else { 0.0 };
            rest[r * n + c] = if r == c { v.max(0.0) } else { v };
            rest[c * n + r] = rest[r * n + c];
        }
    }
    Ok((rest, coupling))
}

/// Returns the columns `span` of `values`, `[rows, cols]`, as `[rows, span.len()]`.
pub(super) fn columns(values: &[f32], cols: usize, span: &Range<usize>) -> Vec<f32> {
    values.chunks_exact(cols.max(1)).flat_map(|row| &row[span.clone()]).copied().collect()
}
