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

/// The result of k-means: centroids, the assignment of points to them, and the objective.
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

    /// Returns the index of the centroid that each point is assigned to, as [`assign`] computes it for these centroids.
    pub fn assignment(&self) -> &[u32] {
        &self.assignment
    }

    /// Returns the final objective: the weighted sum of the squared distances from points to their centroids.
    pub fn objective(&self) -> f64 {
        self.objectives.last().copied().unwrap_or_default()
    }

    /// Returns the objective after the seeding and after each Lloyd iteration; for mini-batches only the final one.
    pub fn objectives(&self) -> &[f64] {
        &self.objectives
    }

    /// Returns the number of Lloyd iterations that ran; 0 for mini-batches, which run exactly as many as [`KMeans::iterations`] says.
    pub fn iterations(&self) -> usize {
        self.objectives.len().saturating_sub(1)
    }

    /// Returns centroids and assignment without a copy.
    pub fn into_parts(self) -> (Vec<f32>, Vec<u32>) {
        (self.centroids, self.assignment)
    }
}

impl CheckedKMeans {
    /// Clusters `points` of the shape `[n, dims]`, row-major. `weights` has one weight for each point; None means 1 for each.
    ///
    /// Runs in the pool of the context. Random choices come from the stream of the context that [`KMeans::stream`] names; cancellation is
    /// checked once an iteration. Needs memory for the assignment and for sums in f64, at most `8 n (dims + 1)` bytes.
    ///
    /// Repeated points are allowed: if there are fewer different points than `k`, some centroids are equal, their clusters are empty, and
    /// the objective can reach 0.
    ///
    /// Errors if a length does not match the shape, `dims` is 0, a point or a given centroid is not finite or so large that squared
    /// distances overflow f32, a weight is negative or not finite, fewer than `k` points have a positive weight, or the context is
    /// cancelled.
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

/// Returns the index of the nearest centroid of each point, as the [module](self) defines it, and the sum of the squared distances to them.
/// `centroids` is `[k, dims]`, `points` has the shape `[n, dims]`. Runs in the pool of `exec`.
///
/// Errors if there is no centroid, a length does not match the shape, `dims` is 0, or a value is not finite or so large that squared
/// distances overflow f32.
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
