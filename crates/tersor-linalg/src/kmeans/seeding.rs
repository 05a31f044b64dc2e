//! The initial centroids.

use std::collections::BTreeSet;

use rand_core::RngCore;
use tersor_core::{Context, Error, Result};
use tersor_kernels::{cluster, par};

use super::data::{Data, below, uniform};
use super::{CheckedKMeans, Seeding};

/// The maximum number of points that k-means++ considers, unless there are many centroids.
const SAMPLE: usize = 1 << 16;
/// The number of points for each centroid that k-means++ considers at least, if there are as many.
const SAMPLE_PER_CENTROID: usize = 32;
/// Points of a block.
const BLOCK: usize = 4096;

/// Returns the initial centroids, `[k, dims]`.
pub(super) fn seeds(params: &CheckedKMeans, data: &Data, rng: &mut impl RngCore, cx: &Context) -> Result<Vec<f32>> {
    match &params.seeding {
        Seeding::Given(rows) => {
            let size = tersor_core::view::elements([params.k, data.dims])?;
            if rows.len() != size {
                return Err(Error::shape("values of given centroids", size, rows.len()));
            }
            data.check_values(rows)?;
            Ok(rows.clone())
        }
        Seeding::Random => {
            let drawn = different(data, params.k, rng);
            Ok(drawn.into_iter().flat_map(|i| data.point(i)).copied().collect())
        }
        Seeding::PlusPlus => plus_plus(data, params.k, rng, cx),
    }
}

/// Returns `k` different points of positive weight, ascending (Floyd's algorithm, Bentley 1987).
fn different(data: &Data, k: usize, rng: &mut impl RngCore) -> Vec<usize> {
    let positive: Option<Vec<usize>> = data.weights.map(|w| (0..data.n).filter(|i| w[*i] > 0.0).collect());
    let n = positive.as_ref().map_or(data.n, Vec::len);
    let mut drawn = BTreeSet::new();
    for last in n.saturating_sub(k)..n {
        let i = below(last + 1, rng);
        if !drawn.insert(i) {
            drawn.insert(last);
        }
    }
    drawn.into_iter().map(|i| positive.as_ref().map_or(i, |p| p[i])).collect()
}

/// Returns the indices of the points that k-means++ considers, and their weights if they differ.
fn sample(data: &Data, k: usize, rng: &mut impl RngCore) -> (Vec<usize>, Option<Vec<f32>>) {
    let size = SAMPLE.max(k.saturating_mul(SAMPLE_PER_CENTROID));
    if data.n <= size {
        return ((0..data.n).collect(), data.weights.map(<[f32]>::to_vec));
    }
    // One point of each of `size` strata of equal weight; points drawn by weight have equal weights.
    let total = data.weights.map_or(data.n as f64, |w| w.iter().map(|w| f64::from(*w)).sum());
    let mut drawn = Vec::with_capacity(size);
    let (mut next, mut last, mut upto) = (uniform(rng) * total / size as f64, 0, 0.0);
    for i in (0..data.n).filter(|i| data.weight(*i) > 0.0) {
        (last, upto) = (i, upto + f64::from(data.weight(i)));
        while next < upto && drawn.len() < size {
            drawn.push(i);
            next = (drawn.len() as f64 + uniform(rng)) * total / size as f64;
        }
    }
    drawn.resize(size, last);
    (drawn, None)
}

/// k-means++ on a [`sample`]. Once every sampled point equals a centroid, further ones are drawn by weight.
fn plus_plus(data: &Data, k: usize, rng: &mut impl RngCore, cx: &Context) -> Result<Vec<f32>> {
    let dims = data.dims;
    let (drawn, weights) = sample(data, k, rng);
    // Columns `[dims, points]` of each block.
    let mut columns = vec![0f32; drawn.len() * dims];
    for (drawn, columns) in drawn.chunks(BLOCK).zip(columns.chunks_mut(BLOCK * dims)) {
        for (i, point) in drawn.iter().enumerate() {
            for (d, v) in data.point(*point).iter().enumerate() {
                columns[d * drawn.len() + i] = *v;
            }
        }
    }
    let block = |b: usize| b * BLOCK..drawn.len().min((b + 1) * BLOCK);
    let of_block = |b: usize| weights.as_ref().map(|w| &w[block(b)]);
    // Before the first centroid, all distances count as equal.
    let mut best = vec![1f32; drawn.len()];
    let even = best.clone();
    let by_weight: Vec<f64> = even.chunks(BLOCK).enumerate().map(|(b, even)| total(even, of_block(b))).collect();
    let mut totals = by_weight.clone();
    let mut rows = Vec::with_capacity(k * dims);
    let parallel = par::worth(drawn.len().saturating_mul(dims), 1 << 18);
    par::region(parallel, || {
        for number in 0..k {
            cx.cancel.check()?;
            // A total of 0: every point of the sample is a centroid already.
            let apart = totals.iter().sum::<f64>() > 0.0;
            let (totals_now, distances) = if apart { (&totals, &best) } else { (&by_weight, &even) };
            let at = pick(totals_now, uniform(rng), |b| (&distances[block(b)], of_block(b)));
            let centre = data.point(drawn[at]);
            rows.extend_from_slice(centre);
            if number == 0 {
                best.fill(f32::INFINITY);
            }
            let mut units = vec![(); totals.len()];
            totals = par::pairs(&mut best, BLOCK, &mut units, 1, parallel, |b, best, _| {
                let range = block(b);
                let columns = &columns[range.start * dims..range.end * dims];
                cluster::min_distances(data.isa, columns, centre, of_block(b), best)
            });
        }
        Ok(rows)
    })
}

/// Returns `Σ weight * value`; weights are 1 if there are none.
fn total(values: &[f32], weights: Option<&[f32]>) -> f64 {
    match weights {
        Some(w) => values.iter().zip(w).map(|(v, w)| f64::from(*v) * f64::from(*w)).sum(),
        None => values.iter().map(|v| f64::from(*v)).sum(),
    }
}

/// Returns the first point at which the cumulative `weight * value` exceeds the fraction `share` of the total; the last point of positive
/// `weight * value` of its block if rounding hides it.
fn pick<'a>(totals: &[f64], share: f64, block: impl Fn(usize) -> (&'a [f32], Option<&'a [f32]>)) -> usize {
    let mut rest = share * totals.iter().sum::<f64>();
    let mut chosen = 0;
    for (b, total) in totals.iter().enumerate().filter(|(_, t)| **t > 0.0) {
        chosen = b;
        if rest < *total {
            break;
        }
        rest -= total;
    }
    let (values, weights) = block(chosen);
    let mut at = 0;
    for (i, v) in values.iter().enumerate() {
        let share = f64::from(*v) * weights.map_or(1.0, |w| f64::from(w[i]));
        if share > 0.0 {
            at = i;
            if rest < share {
                break;
            }
            rest -= share;
        }
    }
    chosen * BLOCK + at
}
