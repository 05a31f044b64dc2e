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
    /// Returns the mean Gram matrix of the inputs `X` that `stats` describe, `XᵀX` divided by the sum of the tokens' weights (their number if
    /// they are not weighted), `[features, features]`, and its diagonal blocks for groups of `width(features)` consecutive features; a width of 0 counts as 1, and the last group may be smaller. Errors if `stats`
    /// have no Gram matrix, or have seen no token of a weight above 0.
    pub fn of(stats: &StatSet, width: impl Fn(usize) -> usize) -> Result<Self> {
        let (gram, features) = (stats.require_gram()?, stats.features());
        let width = width(features).max(1);
        // The mean over the tokens, so that losses of any number of tokens stay in the range of f32.
        let whole = Gram::new(gram, features, 1.0 / stats.require_weight()?)?;
        let blocks = (0..features).step_by(width).map(|first| whole.block(first, width)).collect();
        Ok(Self { whole, width, blocks })
    }

    /// Returns the number of input features, the size of both axes of the Gram matrix.
    pub fn features(&self) -> usize {
        self.whole.features()
    }

    /// Returns the mean squared output error `e H eᵀ` of each row `e` of the weight errors `d`, `[rows, features]`, as `[rows]`, with the
    /// mean Gram matrix `H`. `scratch` is a buffer, which is overwritten. Errors if the length of `d` is not a multiple of the number of
    /// features.
    pub fn losses(&self, d: &[f32], scratch: &mut Vec<f32>) -> Result<Vec<f64>> {
        self.whole.row_losses(d, scratch)
    }

    /// Returns the mean squared output error `tr D H Dᵀ` of all weight errors `d` (the matrix `D`, `[rows, features]`), with the mean Gram
    /// matrix `H`. Errors if the length of `d` is not a multiple of the number of features.
    pub fn loss(&self, d: &[f32]) -> Result<f64> {
        self.whole.loss(d)
    }

    /// Finds for each row and group of the weights `w`, `[rows, features]`, the best of several candidates. Returns the numbers of the best
    /// candidates, counted from 0, as `[rows, groups]` row-major. The best candidate is the one with the smallest output error `e H eᵀ`, of
    /// equal ones the first. Here `e` is the error of the group's weights under the candidate, and `H` is the group's diagonal block of the
    /// mean Gram matrix. Candidates whose error is NaN or infinite are never chosen; if all are, or there are none, the result is 0.
    ///
    /// `candidates` is the number of candidates. It should be at most 256: larger candidate numbers are returned modulo 256.
    /// `make(candidate, row, group, w, out)` receives the weights `w` of the group and writes their values under the candidate to `out`, of
    /// the same length.
    ///
    /// Values of `w` after the last whole row are ignored. The search runs in the current thread pool. It never errors: the lengths of the
    /// products with `H`, which could error, always match.
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
