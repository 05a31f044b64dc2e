//! Rotations into principal directions.

use rand_core::RngCore;
use tersor_core::{Result, Rotation};
use tersor_linalg::{check_symmetric, eigen, matmul, orthogonal};

/// Returns the rotation into the principal directions of inputs with the Gram matrix `gram`: [`basis`] rounded to f32. Errors as [`basis`].
pub fn principal_rotation(gram: &[f64], blocks: &Blocks) -> Result<Rotation> {
    let rows: Vec<f32> = basis(gram, blocks)?.into_iter().map(|v| v as f32).collect();
    Rotation::dense(&rows)
}

/// Rotations of the coefficients inside each subspace, which spread outliers over it: orthogonal blocks along the diagonal, the subspace with the
/// smallest variances first.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<(usize, Option<Vec<f64>>)>);

impl Blocks {
    /// Returns random blocks of these sizes (section 3.2: `R_l` and `R_h`). Errors if one does not fit the address space.
    pub fn random(sizes: &[usize], rng: &mut impl RngCore) -> Result<Self> {
        let block = |n: &usize| Ok((*n, Some(orthogonal(*n, rng)?)));
        sizes.iter().map(block).collect::<Result<_>>().map(Self)
    }

    /// Returns blocks that leave coefficients as they are.
    pub fn identity(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|n| (*n, None)).collect())
    }

    fn features(&self) -> usize {
        self.0.iter().map(|b| b.0).sum()
    }
}

/// Returns the rotation `Uᵀ = [P_l R_l  P_h R_h]ᵀ`, `[n, n]`: row `i` is the direction whose coefficient becomes feature `i`. `P` are the eigenvectors of
/// the symmetric `gram`, `[n, n]`, the smallest eigenvalue first (section 3.1; a multiple of the identity added to `gram` would change nothing).
/// Errors unless the blocks have as many features, or if the matrix is not symmetric.
pub fn basis(gram: &[f64], blocks: &Blocks) -> Result<Vec<f64>> {
    let n = blocks.features();
    check_symmetric(gram, n)?;
    let found = eigen(gram, n)?;
    // Largest first, so from the end.
    let ascending: Vec<f64> = found.vectors.chunks_exact(n.max(1)).rev().flatten().copied().collect();
    let (mut out, mut at) = (Vec::with_capacity(n * n), 0);
    for (size, block) in &blocks.0 {
        let rows = &ascending[at * n..(at + size) * n];
        match block {
            Some(block) => out.extend(matmul(block, [*size, *size], rows, n)?),
            None => out.extend(rows),
        }
        at += size;
    }
    Ok(out)
}
