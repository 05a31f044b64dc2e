//! The rotation.

use rand_core::RngCore;
use tersor_core::{Error, Result, Rotation};
use tersor_linalg::{check_symmetric, eigen, matmul, orthogonal, syrk};

/// Sums of products of features, `Σ x xᵀ`, over whatever shares a basis.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    sums: Vec<f64>,
    features: usize,
}

impl Moments {
    /// Of nothing yet. Error when they do not fit the address space.
    pub fn new(features: usize) -> Result<Self> {
        Ok(Self { sums: vec![0.0; tersor_core::view::elements([features, features])?], features })
    }

    /// Features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The sums, `[features, features]`.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Adds rows `[n, features]`. Error on another length, or a value that is not finite.
    pub fn observe(&mut self, rows: &[f32]) -> Result<()> {
        let k = self.features;
        if k == 0 || !rows.len().is_multiple_of(k) {
            return Err(Error::shape("values of rows", format!("a multiple of {k}"), rows.len()));
        }
        tersor_core::check_finite(rows, k, 0)?;
        let wide: Vec<f64> = rows.iter().map(|v| f64::from(*v)).collect();
        self.add(&syrk(&wide, [rows.len() / k, k])?)
    }

    /// Adds sums, `[features, features]` (the Gram matrix of a site, say). Error on another length.
    pub fn add(&mut self, sums: &[f64]) -> Result<()> {
        if sums.len() != self.sums.len() {
            return Err(Error::shape("sums of products", self.sums.len(), sums.len()));
        }
        self.sums.iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// [`basis`] of these sums, as a rotation.
    pub fn rotation(&self, blocks: &Blocks) -> Result<Rotation> {
        let rows: Vec<f32> = basis(&self.sums, blocks)?.into_iter().map(|v| v as f32).collect();
        Rotation::dense(&rows)
    }
}

/// What turns coefficients inside each subspace, so that none of them stands out: orthogonal blocks along the diagonal, the subspace with the
/// smallest variances first.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<(usize, Option<Vec<f64>>)>);

impl Blocks {
    /// Random ones of these sizes (section 3.2: `R_l` and `R_h`). Error when one does not fit the address space.
    pub fn random(sizes: &[usize], rng: &mut impl RngCore) -> Result<Self> {
        let block = |n: &usize| Ok((*n, Some(orthogonal(*n, rng)?)));
        sizes.iter().map(block).collect::<Result<_>>().map(Self)
    }

    /// Coefficients stay as they are.
    pub fn identity(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|n| (*n, None)).collect())
    }

    fn features(&self) -> usize {
        self.0.iter().map(|b| b.0).sum()
    }
}

/// The rotation `Uᵀ = [P_l R_l  P_h R_h]ᵀ`, `[n, n]`: row `i` is the direction whose coefficient becomes feature `i`. `P` are the eigenvectors of
/// the symmetric `sums`, `[n, n]`, the smallest eigenvalue first (section 3.1; a multiple of the identity added to `sums` would change nothing).
/// Error unless the blocks have as many features, or when the sums are not symmetric.
pub fn basis(sums: &[f64], blocks: &Blocks) -> Result<Vec<f64>> {
    let n = blocks.features();
    check_symmetric(sums, n)?;
    let found = eigen(sums, n)?;
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
