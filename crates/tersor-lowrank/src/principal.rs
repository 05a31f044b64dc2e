//! Rotations into the principal directions of inputs (ResQ, Saxena et al., arXiv 2412.14363, section 3).

use rand_core::RngCore;
use tersor_core::{Result, Rotation};
use tersor_linalg::{check_symmetric, eigen, matmul, orthogonal};

/// Returns the rotation of features into the principal directions of inputs with the Gram matrix `gram`, `[n, n]` row-major: the matrix of
/// [`basis`], rounded to f32. New feature `i` is the product of row `i` of the matrix with the old features; the directions of the smallest
/// variances come first. `blocks` cuts these directions into consecutive subspaces and holds one orthogonal matrix for each, which mixes
/// the directions of its subspace; the identity leaves them unmixed. Errors if the sizes of `blocks` do not add to `n`, `n` is 0, `gram` is
/// not finite or not symmetric, or its eigenvalues do not converge.
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

/// A block-diagonal rotation for [`principal_rotation`] and [`basis`]: one orthogonal block, `[size, size]`, for each subspace of principal
/// directions, with the subspace of the smallest variances first. Random blocks distribute outliers over the features of their subspace;
/// identity blocks leave the directions unmixed.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<(usize, Option<Vec<f64>>)>);

impl Blocks {
    /// Returns one random orthogonal block for each subspace of principal directions, drawn from `rng` (arXiv 2412.14363, section 3.2:
    /// `R_l` and `R_h`). `sizes` are the numbers of features of the subspaces, with the subspace of the smallest variances first. Errors if
    /// the elements of a block exceed the address space.
    pub fn random(sizes: &[usize], rng: &mut impl RngCore) -> Result<Self> {
        let block = |n: &usize| Ok((*n, Some(orthogonal(*n, rng)?)));
        sizes.iter().map(block).collect::<Result<_>>().map(Self)
    }

    /// Returns one identity block for each subspace of principal directions: the directions are not mixed. `sizes` are the numbers of
    /// features of the subspaces, with the subspace of the smallest variances first.
    pub fn identity(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|n| (*n, None)).collect())
    }

    /// Returns the sum of the sizes.
    fn features(&self) -> usize {
        self.0.iter().map(|b| b.0).sum()
    }
}

/// Returns the orthogonal matrix `Uᵀ`, `[n, n]` row-major, that rotates features into the principal directions of inputs with the Gram
/// matrix `gram`, `[n, n]` row-major: new feature `i` is the product of row `i` with the old features. `U = [P₁R₁, P₂R₂, …]` has a group of
/// columns for each subspace, as wide as its block in `blocks`. The columns of `P₁`, `P₂` and so on are the eigenvectors of `gram` in the
/// order of rising eigenvalues, and each `R` is the transpose of the block of its subspace (arXiv 2412.14363, section 3.1; damping of
/// `gram` would not change the eigenvectors). Errors if `gram` does not have `n * n` elements, where `n` is the sum of the sizes of
/// `blocks`, an element is not finite, `gram` is not symmetric to `1e-6` of its largest magnitude, or the eigenvalues do not converge.
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
