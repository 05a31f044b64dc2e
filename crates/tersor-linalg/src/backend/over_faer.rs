//! faer.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::linalg::triangular_inverse::invert_upper_triangular;
use faer::{Conj, Mat, MatMut, MatRef, Par};

use super::{NoConvergence, Singular, threads};

/// Replaces a symmetric `A` by the upper `R` with `A = RᵀR`. Errors with the first pivot that is not positive.
pub(crate) fn cholesky_upper(a: &mut [f64], n: usize) -> Result<(), usize> {
    let par = threads();
    // The upper triangle by rows is the lower one by columns, which is the fastest layout for faer.
    let l = MatMut::from_column_major_slice_mut(a, n, n);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, Default::default()));
    let done = cholesky_in_place(l, Default::default(), par, MemStack::new(&mut memory), Default::default());
    done.map_err(|LltError::NonPositivePivot { index }| index)?;
    for r in 1..n {
        a[r * n..r * n + r].fill(0.0);
    }
    Ok(())
}

/// Returns `R⁻ᵀ` (lower) of an upper `R`.
pub(crate) fn inverse_transposed(r: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0f64; n * n];
    // By columns, `out` is the upper `R⁻¹`.
    let inverse = MatMut::from_column_major_slice_mut(&mut out, n, n);
    invert_upper_triangular(inverse, MatRef::from_row_major_slice(r, n, n), threads());
    out
}

/// Returns the eigenvalues of a symmetric matrix, ascending, and its eigenvectors as rows.
pub(crate) fn eigen(a: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>), NoConvergence> {
    let (mut values, mut vectors) = (vec![0f64; n], vec![0f64; n * n]);
    let compute = ComputeEigenvectors::Yes;
    let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<f64>(n, compute, Par::Seq, Default::default()));
    let done = self_adjoint_evd(
        MatRef::from_column_major_slice(a, n, n),
        DiagMut::from_slice_mut(&mut values),
        Some(MatMut::from_column_major_slice_mut(&mut vectors, n, n)),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    );
    done.map(|()| (values, vectors)).map_err(|_| NoConvergence)
}

/// Returns all singular values and the thin singular vectors.
pub(crate) fn svd(a: &[f64], [m, n]: [usize; 2]) -> Result<Singular, NoConvergence> {
    let k = m.min(n);
    let (mut u, mut s, mut v) = (vec![0f64; m * k], vec![0f64; k], vec![0f64; n * k]);
    let thin = ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default()));
    let a = MatRef::from_row_major_slice(a, m, n).to_owned();
    let done = faer_svd(
        a.as_ref(),
        DiagMut::from_slice_mut(&mut s),
        Some(MatMut::from_column_major_slice_mut(&mut u, m, k)),
        Some(MatMut::from_column_major_slice_mut(&mut v, n, k)),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    );
    done.map(|()| Singular { u, s, v }).map_err(|_| NoConvergence)
}

/// Returns the thin `Q` by columns, and `R` by rows (`[k, n]`).
pub(crate) fn qr(a: &[f64], [m, n]: [usize; 2]) -> Result<(Vec<f64>, Vec<f64>), NoConvergence> {
    let k = m.min(n);
    let mut a = MatRef::from_row_major_slice(a, m, n).to_owned();
    let block = recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, k);
    let mut memory = MemBuffer::new(qr_in_place_scratch::<f64>(m, n, block, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    qr_in_place(a.as_mut(), coefficients.as_mut(), Par::Seq, stack, Default::default());
    let mut r = vec![0f64; k * n];
    for i in 0..k {
        for j in i..n {
            r[i * n + j] = a[(i, j)];
        }
    }
    let mut q = vec![0f64; m * k];
    let mut out = MatMut::from_column_major_slice_mut(&mut q, m, k);
    for i in 0..k {
        out[(i, i)] = 1.0;
    }
    let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, k);
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        a.get(.., ..k),
        coefficients.as_ref(),
        Conj::No,
        out,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    Ok((q, r))
}
