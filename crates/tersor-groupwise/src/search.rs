//! Choosing by the error in the outputs: `d H dᵀ` of what is lost, with the Gram matrix `H` of the inputs.

use tersor_core::method::ROW_UNIT;
use tersor_core::{Error, Result, StatSet};
use tersor_kernels::{dense, par};

/// A Gram matrix in f32, whole and in the blocks of groups.
pub(crate) struct GramBlocks {
    pub features: usize,
    pub whole: Vec<f32>,
    width: usize,
    blocks: Vec<Vec<f32>>,
}

impl GramBlocks {
    /// Of statistics, for groups of `width` features. Error when there is no Gram matrix, or no token was seen.
    pub fn of(stats: Option<&StatSet>, width: impl Fn(usize) -> usize) -> Result<Self> {
        let missing = || Error::Missing { name: "XᵀX".into(), place: "the statistics of the inputs".into() };
        let stats = stats.filter(|s| s.tokens() > 0).ok_or_else(missing)?;
        let gram = stats.gram().ok_or_else(missing)?;
        let features = stats.features();
        let width = width(features).max(1);
        // Means rather than sums: losses of any number of tokens stay in range.
        let scale = 1.0 / stats.tokens() as f64;
        let whole: Vec<f32> = gram.iter().map(|v| (*v * scale) as f32).collect();
        let block = |g: usize| {
            let span = g * width..((g + 1) * width).min(features);
            span.clone().flat_map(|r| whole[r * features + span.start..r * features + span.end].to_vec()).collect()
        };
        let blocks = (0..features.div_ceil(width)).map(block).collect();
        Ok(Self { features, whole, width, blocks })
    }

    /// Of each row of a block of the matrix, `d H dᵀ`. `scratch` is as long as `d`.
    pub fn losses(&self, d: &[f32], scratch: &mut Vec<f32>) -> Vec<f64> {
        quadratic(d, self.features, &self.whole, scratch)
    }

    /// For every row and group of `w`, `[rows, features]`, the number of the candidate that loses least, the first of equals; `make(candidate,
    /// row, group, w, out)` writes what the weights of a group become. `[rows, groups]`. In the current pool.
    pub fn best_of(
        &self,
        w: &[f32],
        candidates: usize,
        make: impl Fn(usize, usize, usize, &[f32], &mut [f32]) + Sync,
    ) -> Vec<u8> {
        let (cols, groups) = (self.features, self.blocks.len());
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let unit = |i: usize, scratch: &mut Vec<f32>| -> Vec<u8> {
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
                for (i, loss) in quadratic(&d, n, &self.blocks[g], scratch).into_iter().enumerate() {
                    if loss < best[i] {
                        (best[i], chosen[i]) = (loss, candidate as u8);
                    }
                }
            }
            chosen
        };
        let blocks = rows.div_ceil(ROW_UNIT);
        let units = par::map(blocks * groups, true, Vec::new, unit);
        let mut out = vec![0u8; rows * groups];
        for (i, chosen) in units.into_iter().enumerate() {
            let (block, g) = (i / groups, i % groups);
            chosen.into_iter().enumerate().for_each(|(r, c)| out[(block * ROW_UNIT + r) * groups + g] = c);
        }
        out
    }
}

/// `d H dᵀ` of each row of `d`, `[rows, n]`.
fn quadratic(d: &[f32], n: usize, gram: &[f32], scratch: &mut Vec<f32>) -> Vec<f64> {
    scratch.clear();
    scratch.resize(d.len(), 0.0);
    let rows = d.len().checked_div(n).unwrap_or(0);
    dense::product_plain(d, [rows, n], gram, n, scratch);
    let row = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    d.chunks_exact(n.max(1)).zip(scratch.chunks_exact(n.max(1))).map(row).collect()
}
