//! The libraries behind the factorizations. Both modules have the same functions.
//!
//! Matrices are row-major. Sizes have been checked, values are finite, and no dimension is 0.

#[cfg(not(feature = "lapack"))]
mod over_faer;
#[cfg(feature = "lapack")]
mod over_lapack;

#[cfg(not(feature = "lapack"))]
pub(crate) use over_faer::*;
#[cfg(feature = "lapack")]
pub(crate) use over_lapack::*;

/// A singular value decomposition: thin `U` by columns, singular values descending, thin `V` by columns (which is `Vᵀ` by rows).
pub(crate) struct Singular {
    pub(crate) u: Vec<f64>,
    pub(crate) s: Vec<f64>,
    pub(crate) v: Vec<f64>,
}

/// An iteration did not converge.
pub(crate) struct NoConvergence;

/// Returns faer's parallelism for work whose bytes do not depend on the number of threads: products, Cholesky factorizations, triangular
/// inverses (a test checks this). Other work runs on one thread.
pub(crate) fn threads() -> faer::Par {
    #[cfg(feature = "rayon")]
    if rayon::current_num_threads() > 1 {
        return faer::Par::rayon(0);
    }
    faer::Par::Seq
}
