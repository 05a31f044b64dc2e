//! K-means clustering of f32 points: Lloyd's iteration (Lloyd 1982) and mini-batches (Sculley 2010), with weights.
//!
//! Points are `[n, dims]`, row-major. The objective is the weighted sum of the squared distances from points to their centroids. Any number
//! of threads and any instruction set give the same bytes.
//!
//! A point is assigned to the centroid with the smallest `‖c‖² − 2 x·c`, computed in f32 ([`tersor_kernels::cluster`] states the order of
//! operations); of equal values the lowest index wins. This is the nearest centroid up to the rounding error of the formula, which is
//! relative to `‖c‖² + 2 ‖x‖ ‖c‖` and not to the distance: points whose mean is far from the origin in comparison with their standard
//! deviation should be centred first. Distances are sums of squared differences in f32: points whose squared distance is below about 1e-38
//! count as equal.
//!
//! ```
//! # fn main() -> tersor_core::Result<()> {
//! use tersor_core::{Check, Context};
//! use tersor_linalg::kmeans::{KMeans, assign};
//! let points = [0.0, 0.0, 0.0, 1.0, 9.0, 9.0, 9.0, 10.0];
//! let cx = Context::new();
//! let found = KMeans::new(2).check()?.fit(&points, [4, 2], None, &cx)?;
//! assert_eq!(found.objective(), 1.0);
//! assert_eq!(assign(found.centroids(), &points, [4, 2], &cx.exec)?.0, found.assignment());
//! # Ok(())
//! # }
//! ```

mod batch;
mod data;
mod lloyd;
mod params;
mod seeding;

pub use params::{CheckedKMeans, KMeans, Seeding};

use tersor_core::{Context, Error, Exec, Isa, Result};
use tersor_kernels::cluster::Centroids;

use data::Data;

/// The result of [`CheckedKMeans::fit`]: the centroids, the index of the centroid of each point, and the objective (the weighted sum of the
/// squared distances from points to their centroids).
#[derive(Clone, PartialEq, Debug)]
pub struct Clustering {
    centroids: Vec<f32>,
    assignment: Vec<u32>,
    objectives: Vec<f64>,
}

impl Clustering {
    /// Returns the centroids, `[k, dims]` row-major.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Returns the zero-based index of the nearest centroid of each point, `[n]`, as [`assign`] computes it for the final centroids.
    pub fn assignment(&self) -> &[u32] {
        &self.assignment
    }

    /// Returns the final objective: the weighted sum of the squared distances from points to their centroids.
    pub fn objective(&self) -> f64 {
        self.objectives.last().copied().unwrap_or_default()
    }

    /// Returns the history of the objective (the weighted sum of the squared distances from points to their centroids). For Lloyd's
    /// iteration it is the value with the initial centroids, then the value after each iteration; for mini-batches it is one element, the
    /// final value. With [`KMeans::restarts`] it is the history of one run: the run with the lowest final objective, whose centroids are
    /// returned.
    pub fn objectives(&self) -> &[f64] {
        &self.objectives
    }

    /// Returns the number of Lloyd iterations that ran, which may be less than the maximum set by [`KMeans::iterations`]. With
    /// [`KMeans::restarts`] only those of the run with the lowest objective are counted. It is always 0 for mini-batches.
    pub fn iterations(&self) -> usize {
        self.objectives.len().saturating_sub(1)
    }

    /// Returns the centroids, `[k, dims]` row-major, and the zero-based index of the centroid of each point, `[n]`, without a copy.
    pub fn into_parts(self) -> (Vec<f32>, Vec<u32>) {
        (self.centroids, self.assignment)
    }
}

impl CheckedKMeans {
    /// Clusters `points`, `[n, dims]` row-major with `shape` as `[n, dims]`, and returns the centroids, the assignment of the points and
    /// the objective. `weights` has one weight for each point; None means that each point has weight 1.
    ///
    /// Where Lloyd's iteration finds a cluster without weight, a point replaces the centroid of this cluster: of all points, the one with
    /// the largest weighted squared distance from the centroid that it is assigned to (another point for each such cluster). The centroid
    /// stays if no point has a distance above 0. Repeated points are allowed: if there are fewer different points than `k`, some centroids
    /// are equal, the points nearest to them belong to the one of lowest index, and the clusters of the others are empty.
    ///
    /// Runs in the thread pool of `cx`. Random choices come from the random stream of `cx` that [`KMeans::stream`] names. Cancellation is
    /// checked at each iteration or batch, and at each centroid that k-means++ draws. Needs memory for the assignment, for sums in f64 of
    /// about `8 n (dims + 1)` bytes at most, and with k-means++ for a copy of the points that it considers ([`Seeding::PlusPlus`]).
    ///
    /// Errors if `dims` is 0, `points` does not have `n * dims` values, `weights` does not have `n` values, or given centroids do not have
    /// `k * dims` values. Errors if a point or a given centroid is not finite, or so large that squared distances overflow f32. Errors if a
    /// weight is negative or not finite, or fewer than `k` points have a positive weight. Errors if `cx` is cancelled.
    pub fn fit(&self, points: &[f32], shape: [usize; 2], weights: Option<&[f32]>, cx: &Context) -> Result<Clustering> {
        cx.run(|| {
            let data = Data::new(cx.isa(), points, shape, weights)?;
            data.at_least(self.k)?;
            let mut best: Option<Clustering> = None;
            for run in 0..self.restarts {
                let mut rng = match run {
                    0 => cx.stream(&self.stream),
                    _ => cx.stream(&format!("{}, restart {run}", self.stream)),
                };
                let seeds = seeding::seeds(self, &data, &mut rng, cx)?;
                let found = match self.mini_batch {
                    None => lloyd::fit(self, &data, seeds, cx)?,
                    Some(size) => batch::fit(self, &data, seeds, size, &mut rng, cx)?,
                };
                if best.as_ref().is_none_or(|b| found.objective() < b.objective()) {
                    best = Some(found);
                }
            }
            best.ok_or_else(|| Error::Numerical("k-means had no run".into()))
        })
    }
}

/// Returns the zero-based index of the nearest centroid of each point, `[n]`, and the sum of the squared distances from the points to these
/// centroids. `centroids` is `[k, dims]` and `points` has the `shape` `[n, dims]`, both row-major. The nearest centroid `c` of a point `x`
/// is the one with the smallest `‖c‖² − 2 x·c`, computed in f32; of equal values the lowest index wins. Runs in the thread pool of `exec`.
///
/// Errors if there is no centroid, the length of `centroids` is not a multiple of `dims` or that of `points` is not `n * dims`, `dims` is
/// 0, or a value is not finite or so large that squared distances overflow f32.
pub fn assign(centroids: &[f32], points: &[f32], shape: [usize; 2], exec: &Exec) -> Result<(Vec<u32>, f64)> {
    exec.run(|| nearest(centroids, points, shape, exec.isa()))
}

fn nearest(centroids: &[f32], points: &[f32], [n, dims]: [usize; 2], isa: Isa) -> Result<(Vec<u32>, f64)> {
    let data = Data::new(isa, points, [n, dims], None)?;
    let k = centroids.len() / dims;
    if k == 0 || centroids.len() != k * dims || u32::try_from(k).is_err() {
        return Err(Error::shape("values of centroids", format!("a multiple of {dims}, above 0"), centroids.len()));
    }
    data.check_values(centroids)?;
    let mut assignment = vec![0u32; n];
    let sums = data.step(&Centroids::new(centroids, dims), &mut assignment);
    Ok((assignment, sums.objective))
}
