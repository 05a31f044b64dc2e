//! Mini-batches (Sculley 2010, algorithm 1).

use rand_core::RngCore;
use tersor_core::{Context, Result};
use tersor_kernels::cluster::{Centroids, Sums};

use super::data::{Data, below, uniform};
use super::{CheckedKMeans, Clustering};

/// Runs mini-batches from the centroids `seeds`, `[k, dims]`. The gradient steps of a batch at rates `1/v`, one point after the other, lead
/// to the mean of all points that a centroid has received so far; that mean is computed. A centroid that receives no point stays at its
/// seed. If a cluster of all points is empty in the end, it is repaired once, as in Lloyd's iteration.
pub(super) fn fit(
    params: &CheckedKMeans,
    data: &Data,
    seeds: Vec<f32>,
    size: usize,
    rng: &mut impl RngCore,
    cx: &Context,
) -> Result<Clustering> {
    let (dims, size, mut rows) = (data.dims, size.min(data.n), seeds);
    let draw = Draw::new(data);
    let mut so_far = Sums::new(params.k, dims);
    let (mut batch, mut assignment) = (Vec::with_capacity(size * dims), Vec::new());
    for _ in 0..params.iterations {
        cx.cancel.check()?;
        batch.clear();
        for _ in 0..size {
            batch.extend_from_slice(data.point(draw.point(rng)));
        }
        assignment.resize(size, 0);
        let batch = Data { isa: data.isa, points: &batch, n: size, dims, weights: None };
        so_far.add(&batch.step(&Centroids::new(&rows, dims), &mut assignment));
        let means = rows.chunks_exact_mut(dims).zip(so_far.vectors.chunks_exact(dims)).zip(&so_far.weights);
        for ((row, vector), weight) in means.filter(|(_, weight)| **weight > 0.0) {
            row.iter_mut().zip(vector).for_each(|(r, v)| *r = (v / weight) as f32);
        }
    }
    cx.cancel.check()?;
    let mut assignment = vec![0u32; data.n];
    let mut centroids = Centroids::new(&rows, dims);
    let mut sums = data.step(&centroids, &mut assignment);
    if sums.weights.contains(&0.0) {
        // Only empty clusters are repaired: other centroids stay at the means of their batches.
        let means = data.means(&sums, &centroids, &assignment);
        for (i, row) in rows.chunks_exact_mut(dims).enumerate().filter(|(i, _)| sums.weights[*i] == 0.0) {
            row.copy_from_slice(&means[i * dims..(i + 1) * dims]);
        }
        centroids = Centroids::new(&rows, dims);
        sums = data.step(&centroids, &mut assignment);
    }
    Ok(Clustering { centroids: rows, assignment, objectives: vec![sums.objective] })
}

/// Draws points in proportion to their weights.
struct Draw {
    n: usize,
    /// Cumulative sums of the weights.
    cumulated: Option<Vec<f64>>,
}

impl Draw {
    fn new(data: &Data) -> Self {
        let cumulate = |sum: &mut f64, w: &f32| {
            *sum += f64::from(*w);
            Some(*sum)
        };
        Self { n: data.n, cumulated: data.weights.map(|w| w.iter().scan(0.0, cumulate).collect()) }
    }

    fn point(&self, rng: &mut impl RngCore) -> usize {
        let Some(sums) = &self.cumulated else { return below(self.n, rng) };
        // `at` is below the last sum, unless rounding makes them equal: then the last point of positive weight is drawn.
        let all = sums.last().copied().unwrap_or_default();
        let at = uniform(rng) * all;
        sums.partition_point(|s| *s <= at).min(sums.partition_point(|s| *s < all))
    }
}
