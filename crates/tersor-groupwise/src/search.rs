//! Search among candidates by the error of the outputs: `d H dᵀ` for the error `d` of a row of weights and the mean Gram matrix `H` of the inputs.

use tersor_core::method::ROW_UNIT;
use tersor_core::{Result, StatSet};
use tersor_kernels::par;
use tersor_linalg::Gram;

/// The mean Gram matrix of the inputs of a site in f32: the whole, and the diagonal block of each group of features.
pub(crate) struct GramBlocks {
    whole: Gram,
    width: usize,
    blocks: Vec<Gram>,
}

impl GramBlocks {
    /// Returns the mean Gram matrix `XᵀX / tokens` of `stats`, with the diagonal block of each group of `width(features)` features. Errors if the
    /// statistics have none, or have seen no token.
    pub fn of(stats: &StatSet, width: impl Fn(usize) -> usize) -> Result<Self> {
        let (gram, features) = (stats.require_gram()?, stats.features());
        let width = width(features).max(1);
        // The mean over the tokens, so that losses of any number of tokens stay in the range of f32.
        let whole = Gram::new(gram, features, 1.0 / stats.weight())?;
        let blocks = (0..features).step_by(width).map(|first| whole.block(first, width)).collect();
        Ok(Self { whole, width, blocks })
    }

    /// Returns the number of input features.
    pub fn features(&self) -> usize {
        self.whole.features()
    }

    /// Returns `d H dᵀ`, with the mean Gram matrix `H`, for each row `d` of the errors `d`, `[rows, features]`, as `[rows]`. `scratch` is
    /// overwritten. Errors if the length is not a multiple of the number of features.
    pub fn losses(&self, d: &[f32], scratch: &mut Vec<f32>) -> Result<Vec<f64>> {
        self.whole.row_losses(d, scratch)
    }

    /// Returns `tr D H Dᵀ` of the errors `d` (the matrix `D`, `[rows, features]`), with the mean Gram matrix `H`. Errors if the length is not a
    /// multiple of the number of features.
    pub fn loss(&self, d: &[f32]) -> Result<f64> {
        self.whole.loss(d)
    }

    /// Returns for each row and group of `w`, `[rows, features]`, as `[rows, groups]` the index below `candidates` (at most 256) of the candidate
    /// with the smallest `d H dᵀ` (the first of equal ones): `d` is the error of the group's weights and `H` the group's block of the Gram matrix.
    /// `make(candidate, row, group, w, out)` writes the group's weights `w` under a candidate to `out`. Values after the last whole row are
    /// ignored. Errors if a product with the Gram matrix fails. Runs in the current thread pool.
    pub fn best_of(
        &self,
        w: &[f32],
        candidates: usize,
        make: impl Fn(usize, usize, usize, &[f32], &mut [f32]) + Sync,
    ) -> Result<Vec<u8>> {
        let (cols, groups) = (self.features(), self.blocks.len());
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let unit = |i: usize, scratch: &mut Vec<f32>| -> Result<Vec<u8>> {
            let (block, g) = (i / groups, i % groups);
            let rows = block * ROW_UNIT..rows.min((block + 1) * ROW_UNIT);
            let span = g * self.width..((g + 1) * self.width).min(cols);
            let n = span.len();
            let (mut best, mut chosen) = (vec![f64::INFINITY; rows.len()], vec![0u8; rows.len()]);
            let mut d = vec![0f32; rows.len() * n];
            for candidate in 0..candidates {
                for (r, d) in rows.clone().zip(d.chunks_exact_mut(n)) {
                    let own = &w[r * cols..][span.clone()];
                    make(candidate, r, g, own, d);
                    d.iter_mut().zip(own).for_each(|(d, w)| *d = w - *d);
                }
                for (i, loss) in self.blocks[g].row_losses(&d, scratch)?.into_iter().enumerate() {
                    if loss < best[i] {
                        (best[i], chosen[i]) = (loss, candidate as u8);
                    }
                }
            }
            Ok(chosen)
        };
        let blocks = rows.div_ceil(ROW_UNIT);
        let units = par::map(blocks * groups, true, Vec::new, unit);
        let mut out = vec![0u8; rows * groups];
        for (i, chosen) in units.into_iter().enumerate() {
            let (block, g) = (i / groups, i % groups);
            chosen?.into_iter().enumerate().for_each(|(r, c)| out[(block * ROW_UNIT + r) * groups + g] = c);
        }
        Ok(out)
    }
}
