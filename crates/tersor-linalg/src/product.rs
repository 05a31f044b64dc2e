//! Products of f64 matrices, over faer: the same bytes on any number of threads.

use faer::linalg::matmul::{self as product, triangular::BlockStructure};
use faer::{Accum, MatMut, MatRef};
use tersor_core::Result;

use crate::{backend, check, check_result};

/// Returns the product `AB`, `[m, n]`, of `a`, `[m, k]`, and `b`, `[k, n]`, all row-major. Errors if the length of `a` or `b` does not
/// match its shape, an element is not finite, or an element of the product exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let product = tersor_linalg::matmul(&[1.0, 2.0, 3.0, 4.0], [2, 2], &[1.0, 10.0], 1)?;
/// assert_eq!(product, [21.0, 43.0]);
/// # Ok(())
/// # }
/// ```
pub fn matmul(a: &[f64], [m, k]: [usize; 2], b: &[f64], n: usize) -> Result<Vec<f64>> {
    check(a, [m, k])?;
    check(b, [k, n])?;
    let mut out = vec![0f64; tersor_core::view::elements([m, n])?];
    let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
    // Transposed on both sides, so that faer writes columns.
    let y = MatMut::from_column_major_slice_mut(&mut out, n, m);
    product::matmul(y, Accum::Replace, b.transpose(), a.transpose(), 1.0, backend::threads());
    check_result("a product", &out)?;
    Ok(out)
}

/// Returns the Gram matrix `XᵀX`, `[k, k]`, of `x`, `[tokens, k]`, both row-major; it is exactly symmetric. Errors if `x` does not have
/// `tokens * k` elements, an element is not finite, or an element of the product exceeds the range of f64.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// assert_eq!(tersor_linalg::syrk(&[1.0, 2.0, 3.0, 4.0], [2, 2])?, [10.0, 14.0, 14.0, 20.0]);
/// # Ok(())
/// # }
/// ```
pub fn syrk(x: &[f64], [tokens, k]: [usize; 2]) -> Result<Vec<f64>> {
    check(x, [tokens, k])?;
    let mut out = vec![0f64; tersor_core::view::elements([k, k])?];
    let x = MatRef::from_row_major_slice(x, tokens, k);
    let full = BlockStructure::Rectangular;
    product::triangular::matmul(
        MatMut::from_column_major_slice_mut(&mut out, k, k),
        BlockStructure::TriangularLower,
        Accum::Replace,
        x.transpose(),
        full,
        x,
        full,
        1.0,
        backend::threads(),
    );
    check_result("a product", &out)?;
    // The lower triangle by columns is the upper one by rows.
    for r in 1..k {
        for c in 0..r {
            out[r * k + c] = out[c * k + r];
        }
    }
    Ok(out)
}
