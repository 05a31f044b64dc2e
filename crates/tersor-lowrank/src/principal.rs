//! Rotations into the principal directions of inputs (ResQ, Saxena et al., arXiv 2412.14363, section 3).

use rand_core::RngCore;
use tersor_core::{Result, Rotation};
use tersor_linalg::{check_symmetric, eigen, matmul, orthogonal};

/// Returns the rotation into the principal directions of inputs with the Gram matrix `gram`, `[features, features]`: [`basis`] rounded to f32.
/// Errors as [`basis`].
///
/// ```
/// use tersor_lowrank::{Blocks, principal_rotation};
/// # fn main() -> tersor_lowrank::Result<()> {
/// // The second feature has the larger variance: it becomes the last direction.
/// let rotation = principal_rotation(&[1.0, 0.0, 0.0, 9.0], &Blocks::identity(&[1, 1]))?;
/// assert_eq!(rotation.matrix()[3].abs(), 1.0);
/// # Ok(())
/// # }
/// ```
pub fn principal_rotation(gram: &[f64], blocks: &Blocks) -> Result<Rotation> {
    let rows: Vec<f32> = basis(gram, blocks)?.into_iter().map(|v| v as f32).collect();
    Rotation::dense(&rows)
}

/// A block-diagonal rotation with one orthogonal block for each subspace of principal directions, the subspace of the smallest variances first.
/// Random blocks distribute outliers over the features of their subspace.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<(usize, Option<Vec<f64>>)>);

impl Blocks {
    /// Returns random orthogonal blocks of these sizes (arXiv 2412.14363, section 3.2: `R_l` and `R_h`), drawn from `rng`. Errors if the elements
    /// of a block overflow.
    pub fn random(sizes: &[usize], rng: &mut impl RngCore) -> Result<Self> {
        let block = |n: &usize| Ok((*n, Some(orthogonal(*n, rng)?)));
        sizes.iter().map(block).collect::<Result<_>>().map(Self)
    }

    /// Returns identity blocks of these sizes: principal directions are not mixed.
    pub fn identity(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|n| (*n, None)).collect())
    }

    /// Returns the sum of the sizes.
    fn features(&self) -> usize {
        self.0.iter().map(|b| b.0).sum()
    }
}

/// Returns the rotation `Uᵀ = [P_l R_l  P_h R_h]ᵀ`, `[n, n]` row-major: row `i` is the direction whose coefficient becomes feature `i`. The columns
/// of `P` are the eigenvectors of the symmetric `gram`, `[n, n]`, in the order of rising eigenvalues (arXiv 2412.14363, section 3.1; damping of
/// `gram` would not change them). Errors if the sizes of `blocks` do not add to `n`, or `gram` is not symmetric and finite.
pub fn basis(gram: &[f64], blocks: &Blocks) -> Result<Vec<f64>> {
    let n = blocks.features();
    check_symmetric(gram, n)?;
    let found = eigen(gram, n)?;
    // `eigen` returns the largest first.
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
