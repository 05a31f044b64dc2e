//! Checked points and weights, and the passes over all of them.

use rand_core::RngCore;
use tersor_core::{Error, ParamError, Result};
use tersor_kernels::cluster::{self, Centroids, Sums};
use tersor_kernels::{Isa, blockwise, par};

/// Minimum number of points of a block.
const BLOCK: usize = 8192;
/// Number of blocks from which points are assigned and summed in one pass.
const FUSED: usize = 32;
/// Points of a unit of work if assignment is a pass of its own.
const FINE: usize = 256;
/// Multiplications from which work is shared between threads.
const PARALLEL: usize = 1 << 20;

/// Finite points `[n, dims]` with weights that are finite and not negative.
pub(super) struct Data<'a> {
    pub isa: Isa,
    pub points: &'a [f32],
    pub n: usize,
    pub dims: usize,
    pub weights: Option<&'a [f32]>,
}

impl<'a> Data<'a> {
    pub fn new(isa: Isa, points: &'a [f32], [n, dims]: [usize; 2], weights: Option<&'a [f32]>) -> Result<Self> {
        if dims == 0 {
            return Err(Error::shape("dimensions of points", "at least 1", 0));
        }
        let size = tersor_core::view::elements([n, dims])?;
        if points.len() != size {
            return Err(Error::shape("values of points", size, points.len()));
        }
        if let Some(w) = weights {
            if w.len() != n {
                return Err(Error::shape("weights of points", n, w.len()));
            }
            if let Some(i) = w.iter().position(|w| !(*w >= 0.0 && w.is_finite())) {
                let value = format!("{} at point {i}", w[i]);
                return Err(ParamError::new("weights", value, "must be finite and not negative").into());
            }
        }
        let data = Self { isa, points, n, dims, weights };
        data.check_values(points)?;
        Ok(data)
    }

    /// Checks the values `x` of points or centroids, `[count, dims]` row-major with the `dims` of this data. Errors if a value is not
    /// finite, or has a magnitude above `sqrt(f32::MAX / 8 / dims)`, with which squared distances could overflow f32.
    pub fn check_values(&self, x: &[f32]) -> Result<()> {
        let parts = x.len().div_ceil(1 << 16);
        let part = |i: usize, (): &mut ()| blockwise::abs_max(self.isa, &x[i << 16..x.len().min((i + 1) << 16)]);
        let peaks = par::map(parts, par::worth(x.len(), PARALLEL), || (), part);
        for (i, peak) in peaks.into_iter().enumerate() {
            let first = i << 16;
            if !peak.is_finite() {
                let at = x[first..].iter().position(|v| !v.is_finite()).unwrap_or(0) + first;
                return Err(Error::NonFinite { row: at / self.dims, col: at % self.dims, value: x[at] });
            }
            let max = (f64::from(f32::MAX) / 8.0 / self.dims as f64).sqrt();
            if f64::from(peak) > max {
                let value = format!(
                    "{peak:e} in {} dimensions (squared distances overflow f32 above {max:.3e}; scale the points down)",
                    self.dims
                );
                return Err(Error::Unsupported { what: "magnitude of points", value });
            }
        }
        Ok(())
    }

    /// Checks that at least `k` points have a positive weight (without weights, every point counts). Errors if there are fewer.
    pub fn at_least(&self, k: usize) -> Result<()> {
        let found = self.weights.map_or(self.n, |w| w.iter().filter(|w| **w > 0.0).count());
        if found < k {
            return Err(Error::shape(
                "points of positive weight",
                format!("at least {k}, one for each cluster"),
                found,
            ));
        }
        Ok(())
    }

    pub fn point(&self, i: usize) -> &'a [f32] {
        &self.points[i * self.dims..(i + 1) * self.dims]
    }

    pub fn weight(&self, i: usize) -> f32 {
        self.weights.map_or(1.0, |w| w[i])
    }

    /// Assigns each point to its nearest centroid: writes the zero-based index of this centroid to `assignment`, `[n]`. Returns for each
    /// cluster the weighted sum of its points and the sum of their weights, and the objective over all points: the weighted sum of the
    /// squared distances from points to their centroids. Blocks of points run in parallel, and their sums are added in the order of the
    /// blocks. A block has at least `2k` points, where `k` is the number of centroids, so that with several blocks their sums together take
    /// about as much memory as the points. `assignment` must have one element for each point, and `centroids` the dimensions of the points;
    /// otherwise the call panics or the result is unspecified.
    pub fn step(&self, centroids: &Centroids, assignment: &mut [u32]) -> Sums {
        let (k, dims) = (centroids.count(), self.dims);
        let block = BLOCK.max(k.saturating_mul(2));
        let blocks = self.n.div_ceil(block);
        let parallel = par::worth(self.n.saturating_mul(dims).saturating_mul(k), PARALLEL);
        // With few blocks, threads would have no work: assignment, the costlier part, is then cut finer.
        let fused = blocks >= FUSED;
        if !fused {
            let mut units = vec![(); self.n.div_ceil(FINE)];
            par::pairs(assignment, FINE, &mut units, 1, parallel, |i, out, _| {
                let first = i * FINE * dims;
                cluster::nearest(self.isa, centroids, &self.points[first..first + out.len() * dims], out);
            });
        }
        let parts = par::pairs(assignment, block, &mut vec![(); blocks], 1, parallel, |i, out, _| {
            let range = i * block..i * block + out.len();
            let (points, weights) =
                (&self.points[range.start * dims..range.end * dims], self.weights.map(|w| &w[range]));
            let mut sums = Sums::new(k, dims);
            if fused {
                cluster::step(self.isa, centroids, points, weights, out, &mut sums);
            } else {
                cluster::sum(self.isa, centroids, points, weights, out, &mut sums);
            }
            sums
        });
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_else(|| Sums::new(k, dims));
        parts.for_each(|part| all.add(&part));
        all
    }

    /// Returns the new centroids, `[k, dims]` row-major: the weighted mean of each cluster. `sums` hold for each cluster the weighted sum
    /// of its points and the sum of their weights, as [`step`](Self::step) returns them with the `assignment` (`[n]`, zero-based) of the
    /// points to the centroids `old`. Clusters without weight get points in place of a mean: the points with the largest weighted squared
    /// distances to their centroids in `old`, a different one for each such cluster, the lower index first among equal distances. A cluster
    /// for which no point with a distance above 0 is left keeps its centroid.
    pub fn means(&self, sums: &Sums, old: &Centroids, assignment: &[u32]) -> Vec<f32> {
        let (dims, mut rows) = (self.dims, old.rows().to_vec());
        let mut empty = Vec::new();
        let means = rows.chunks_exact_mut(dims).zip(sums.vectors.chunks_exact(dims)).zip(&sums.weights);
        for (i, ((row, vector), weight)) in means.enumerate() {
            if *weight > 0.0 {
                row.iter_mut().zip(vector).for_each(|(r, v)| *r = (v / weight) as f32);
            } else {
                empty.push(i);
            }
        }
        if !empty.is_empty() {
            let farthest = self.farthest(old, assignment, empty.len());
            for (cluster, point) in empty.into_iter().zip(farthest) {
                rows[cluster * dims..(cluster + 1) * dims].copy_from_slice(self.point(point));
            }
        }
        rows
    }

    /// Returns at most `count` points with a weighted squared distance above 0 from their centroids, the farthest first, the lower index
    /// first of equal ones.
    fn farthest(&self, centroids: &Centroids, assignment: &[u32], count: usize) -> Vec<usize> {
        let (dims, rows) = (self.dims, centroids.rows());
        let parallel = par::worth(self.n * dims, PARALLEL);
        let parts = par::map(
            self.n.div_ceil(BLOCK),
            parallel,
            || (),
            |b, ()| {
                let range = b * BLOCK..self.n.min((b + 1) * BLOCK);
                let cost = |i: usize| {
                    let c = assignment[i] as usize * dims;
                    let distance = cluster::squared_distance(self.isa, self.point(i), &rows[c..c + dims]);
                    (f64::from(self.weight(i)) * f64::from(distance), i)
                };
                let mut costs: Vec<(f64, usize)> = range.map(cost).filter(|c| c.0 > 0.0).collect();
                first(&mut costs, count);
                costs
            },
        );
        let mut costs = parts.concat();
        first(&mut costs, count);
        costs.into_iter().map(|c| c.1).collect()
    }
}

/// Keeps the `count` largest costs, in descending order.
fn first(costs: &mut Vec<(f64, usize)>, count: usize) {
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < costs.len() {
        costs.select_nth_unstable_by(count, order);
        costs.truncate(count);
    }
    costs.sort_unstable_by(order);
}

/// Returns a uniform number in `0..1`.
pub(super) fn uniform(rng: &mut impl RngCore) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Returns a uniform integer below `n`, which must not be 0.
pub(super) fn below(n: usize, rng: &mut impl RngCore) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}
