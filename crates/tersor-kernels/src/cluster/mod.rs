//! Loops of k-means: the nearest centroid of every point, the sums of the update step, and the distances of k-means++.
//!
//! Points are rows of `dims` values. The nearest centroid of `x` is the one with the smallest score `‖c‖² − 2 x·c`, the squared distance
//! without `‖x‖²`; of equal scores the lowest index wins. The score is computed in f32: it starts at `‖c‖²` (summed in f64 and rounded
//! once) and takes one fused multiply-add by `−2 c[d]` for each dimension, in order. Every instruction set does exactly this for every pair
//! of point and centroid, so results are equal to the bit. Scores are compared as they are computed; a matrix of scores is never stored.
//!
//! ```
//! use tersor_kernels::{Isa, cluster::{self, Centroids, Sums}};
//! // Points and centroids of one dimension.
//! let centroids = Centroids::new(&[0.0, 10.0], 1);
//! let (mut assignment, mut sums) = ([0u32; 3], Sums::new(2, 1));
//! cluster::step(Isa::detect(), &centroids, &[1.0, 8.0, 12.0], None, &mut assignment, &mut sums);
//! assert_eq!(assignment, [0, 1, 1]);
//! assert_eq!((sums.vectors, sums.weights, sums.objective), (vec![1.0, 20.0], vec![1.0, 2.0], 9.0));
//! ```

use crate::Isa;
use crate::isa::versions;

#[cfg(target_arch = "x86_64")]
mod x86;

/// Points that the vector kernels score together.
const TILE: usize = 32;
/// Centroids that the vector kernels score together.
const PANEL: usize = 8;
/// Values of the points that [`step`] assigns before it sums them: they stay in the second-level cache.
const CHUNK: usize = 1 << 16;

/// The centroids of k-means, `[count, dims]`, together with a transposed copy and their squared norms, which [`nearest`] and [`step`] read.
#[derive(Clone, Debug)]
pub struct Centroids {
    dims: usize,
    /// `[count, dims]`.
    rows: Vec<f32>,
    /// `−2 c`, `[panels, dims, PANEL]`; zeros in place of missing centroids.
    panels: Vec<f32>,
    /// `‖c‖²`, `[panels, PANEL]`; infinity in place of missing centroids, which are therefore never nearest.
    norms: Vec<f32>,
    /// The index of each centroid of each panel.
    indices: Vec<u32>,
}

impl Centroids {
    /// Copies centroids from `rows`, `[count, dims]`, row-major; `count` is `rows.len() / dims`. Values of an incomplete row at the end are
    /// ignored, and a `dims` of 0 counts as 1. Any values are accepted. [`nearest`] passes over a centroid that has a NaN or an infinite
    /// value, or whose squared norm is too large for f32.
    pub fn new(rows: &[f32], dims: usize) -> Self {
        let dims = dims.max(1);
        let rows = rows[..rows.len() / dims * dims].to_vec();
        let count = (rows.len() / dims).next_multiple_of(PANEL);
        let (mut panels, mut norms) = (vec![0f32; count * dims], vec![f32::INFINITY; count]);
        for (i, row) in rows.chunks_exact(dims).enumerate() {
            let first = i / PANEL * PANEL * dims + i % PANEL;
            for (d, v) in row.iter().enumerate() {
                panels[first + d * PANEL] = -2.0 * v;
            }
            norms[i] = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() as f32;
        }
        Self { dims, rows, panels, norms, indices: (0..count as u32).collect() }
    }

    /// Returns the centroids, `[count, dims]`, row-major.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Returns the number of dimensions, that is of values of one centroid; at least 1.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Returns the number of centroids, which may be 0.
    pub fn count(&self) -> usize {
        self.rows.len() / self.dims
    }
}

/// Sums over a set of points that are assigned to clusters: for each cluster the weighted sum of its points and the sum of their weights,
/// and over all points the objective of k-means. The update step of Lloyd's iteration takes `vectors[c] / weights[c]` as the new centroid
/// of a cluster `c` that has points.
#[derive(Clone, PartialEq, Debug)]
pub struct Sums {
    /// The weighted sum of the points of each cluster, `[count, dims]`, row-major; zeros for a cluster without points.
    pub vectors: Vec<f64>,
    /// The sum of the weights of the points of each cluster, `[count]`; where points have no weights, the number of points.
    pub weights: Vec<f64>,
    /// The objective of k-means: the sum of the squared Euclidean distances from all points to the centroids of their clusters, each times
    /// the weight of the point.
    pub objective: f64,
}

impl Sums {
    /// Returns the sums over no points, all zero, for `count` clusters of `dims` dimensions.
    pub fn new(count: usize, dims: usize) -> Self {
        Self { vectors: vec![0.0; count * dims], weights: vec![0.0; count], objective: 0.0 }
    }

    /// Adds the sums over another set of points to these, element by element. Both should have the same number of clusters and dimensions;
    /// if they differ, only the leading elements that both have are added.
    pub fn add(&mut self, other: &Sums) {
        self.vectors.iter_mut().zip(&other.vectors).for_each(|(a, b)| *a += b);
        self.weights.iter_mut().zip(&other.weights).for_each(|(a, b)| *a += b);
        self.objective += other.objective;
    }
}

/// Writes the index, counted from 0, of the centroid nearest to each point to `out`. `points` is `[n, dims]`, row-major, with the
/// dimensions of the centroids; `out` has one element a point. Works on as many points as the shorter of the two has; later elements of
/// `out` are unchanged.
///
/// The nearest centroid `c` of a point `x` is the one with the smallest score `‖c‖² − 2 x·c`, computed in f32; of equal scores the lowest
/// index wins. Centroids whose score is NaN or plus infinity are ignored; if all are, or if there are no centroids, the index is 0.
pub fn nearest(isa: Isa, centroids: &Centroids, points: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    macro_rules! by_dims {
        ($kernel:ident) => {
            // SAFETY: `isa` proves the instructions.
            unsafe {
                match centroids.dims {
                    1 => x86::$kernel::<1>(centroids, points, out),
                    2 => x86::$kernel::<2>(centroids, points, out),
                    4 => x86::$kernel::<4>(centroids, points, out),
                    8 => x86::$kernel::<8>(centroids, points, out),
                    16 => x86::$kernel::<16>(centroids, points, out),
                    _ => x86::$kernel::<0>(centroids, points, out),
                }
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_vnni() {
        return by_dims!(nearest_avx512);
    }
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        return by_dims!(nearest_avx2);
    }
    let _ = isa;
    nearest_scalar(centroids, points, out);
}

/// [`nearest`] in plain Rust, which defines its results.
fn nearest_scalar(centroids: &Centroids, points: &[f32], out: &mut [u32]) {
    let dims = centroids.dims;
    for (x, out) in points.chunks_exact(dims).zip(out) {
        let (mut best, mut index) = (f32::INFINITY, 0);
        let panels = centroids.panels.chunks_exact(dims * PANEL).zip(centroids.norms.as_chunks::<PANEL>().0);
        for (p, (panel, norms)) in panels.enumerate() {
            let mut scores = *norms;
            for (x, c) in x.iter().zip(panel.as_chunks::<PANEL>().0) {
                for j in 0..PANEL {
                    scores[j] = x.mul_add(c[j], scores[j]);
                }
            }
            for (j, score) in scores.into_iter().enumerate() {
                if score < best {
                    (best, index) = (score, (p * PANEL + j) as u32);
                }
            }
        }
        *out = index;
    }
}

/// Transposes the points of a tile, at most [`TILE`] of `dims` values, into columns `[dims, TILE]`. Missing points are zeros.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(points: &[f32], dims: usize, columns: &mut [f32]) {
    if points.len() == dims * TILE {
        for (d, column) in columns.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            for (v, x) in column.iter_mut().zip(points.chunks_exact(dims)) {
                *v = x[d];
            }
        }
        return;
    }
    columns.fill(0.0);
    for (i, x) in points.chunks_exact(dims).enumerate() {
        for (d, v) in x.iter().enumerate() {
            columns[d * TILE + i] = *v;
        }
    }
}

/// Does the work of one Lloyd iteration on a block of points, except for moving the centroids. Finds the centroid nearest to each point
/// (see [`nearest`]), writes its index, counted from 0, to `out`, and adds the point to the sums of this cluster (see [`sum`]). `points` is
/// `[n, dims]`, row-major. `weights` has one weight a point; without it each point weighs 1. `sums` should be made by [`Sums::new`] for the
/// clusters and dimensions of `centroids`; points of a cluster that `sums` does not have are not added.
///
/// Works on as many points as the shorter of `points` and `out` has. Points past the end of `weights` get an index but are not added to
/// `sums`. A point with a NaN gets the index 0 and makes sums of cluster 0, and the objective, NaN.
pub fn step(
    isa: Isa,
    centroids: &Centroids,
    points: &[f32],
    weights: Option<&[f32]>,
    out: &mut [u32],
    sums: &mut Sums,
) {
    let dims = centroids.dims;
    let chunk = (CHUNK / dims).max(1).next_multiple_of(TILE);
    for (i, (points, out)) in points.chunks(chunk * dims).zip(out.chunks_mut(chunk)).enumerate() {
        nearest(isa, centroids, points, out);
        let weights = weights.map(|w| &w[(i * chunk).min(w.len())..]);
        sum(isa, centroids, points, weights, out, sums);
    }
}

versions! {
    /// Adds points to `sums` in f64, in the order of the points. `points` is `[n, dims]`, row-major; `assignment` has the index of the
    /// cluster and `weights` the weight of each point (1 without `weights`). For each point `x` with weight `w`, `w * x` is added to the
    /// vector of its cluster, `w` to the weight of its cluster, and `w` times the [`squared_distance`] to the centroid of its cluster to
    /// the objective.
    ///
    /// Works on as many points as the shortest of the slices has. A point is ignored if its index is not that of a cluster of both
    /// `centroids` and `sums`.
    pub fn sum(
        isa: Isa,
        centroids: &Centroids,
        points: &[f32],
        weights: Option<&[f32]>,
        assignment: &[u32],
        sums: &mut Sums,
    ) {
        match centroids.dims {
            1 => sum_rows::<1>(centroids, points, weights, assignment, sums),
            2 => sum_rows::<2>(centroids, points, weights, assignment, sums),
            4 => sum_rows::<4>(centroids, points, weights, assignment, sums),
            8 => sum_rows::<8>(centroids, points, weights, assignment, sums),
            16 => sum_rows::<16>(centroids, points, weights, assignment, sums),
            _ => sum_rows::<0>(centroids, points, weights, assignment, sums),
        }
    }

    /// Returns the squared Euclidean distance `Σ (a[i] − b[i])²` in f32. If the slices differ in length, only the elements that both have
    /// count. The order of the additions is fixed, so that every instruction set gives the same bits.
    pub fn squared_distance(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
        squared(a, b)
    }

    /// Updates the squared distances that k-means++ draws its next centre from, after `centre` was chosen. `best[i]` is the squared
    /// distance from point `i` to the nearest of the earlier centres, infinity if there are none. The squared distance from point `i` to
    /// `centre` replaces `best[i]` if the new distance is smaller; a NaN is not smaller.
    ///
    /// `columns` holds the points transposed, as `[dims, n]` row-major with `n = best.len()`: coordinate `d` of point `i` is
    /// `columns[d * n + i]`. `centre` is `[dims]`. If `columns` or `centre` has fewer dimensions than the other, only the dimensions that
    /// both have count.
    ///
    /// Returns the sum in f64 of `weights[i] * best[i]` after the update, over the shorter of `weights` and `best`; without `weights` each
    /// weight is 1. The order of the additions is fixed, so that every instruction set gives the same bits.
    pub fn min_distances(isa: Isa, columns: &[f32], centre: &[f32], weights: Option<&[f32]>, best: &mut [f32]) -> f64 {
        const BLOCK: usize = 64;
        let n = best.len();
        let mut lanes = [0f64; 8];
        for (b, best) in best.chunks_mut(BLOCK).enumerate() {
            let first = b * BLOCK;
            let mut squares = [0f32; BLOCK];
            for (column, c) in columns.chunks_exact(n.max(1)).zip(centre) {
                for (s, x) in squares.iter_mut().zip(&column[first..first + best.len()]) {
                    *s = (x - c).mul_add(x - c, *s);
                }
            }
            best.iter_mut().zip(squares).for_each(|(b, s)| *b = if s < *b { s } else { *b });
            match weights.map(|w| &w[first.min(w.len())..]) {
                Some(w) => (0..).zip(best.iter().zip(w)).for_each(|(i, (b, w)): (usize, _)| {
                    lanes[i % 8] = f64::from(*b).mul_add(f64::from(*w), lanes[i % 8]);
                }),
                None => (0..).zip(best.iter()).for_each(|(i, b): (usize, _)| lanes[i % 8] += f64::from(*b)),
            }
        }
        lanes.iter().sum()
    }
}

#[inline(always)]
fn squared(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let ((a, ta), (b, tb)) = (a[..n].as_chunks::<8>(), b[..n].as_chunks::<8>());
    let mut lanes = [0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            let d = a[i] - b[i];
            lanes[i] = d.mul_add(d, lanes[i]);
        }
    }
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    ta.iter().zip(tb).fold(lanes[0], |sum, (a, b)| (a - b).mul_add(a - b, sum))
}

/// [`sum`] with the number of dimensions known to the compiler, or for any number if `D` is 0.
#[inline(always)]
fn sum_rows<const D: usize>(
    centroids: &Centroids,
    points: &[f32],
    weights: Option<&[f32]>,
    assignment: &[u32],
    sums: &mut Sums,
) {
    let dims = if D > 0 { D } else { centroids.dims };
    let n = assignment.len().min(weights.map_or(usize::MAX, <[f32]>::len));
    let mut objective = sums.objective;
    for (i, (x, a)) in points.chunks_exact(dims).zip(&assignment[..n]).enumerate() {
        let (a, w) = (*a as usize, weights.map_or(1.0, |w| f64::from(w[i])));
        let row = a.saturating_mul(dims);
        let range = row..row.saturating_add(dims);
        let (Some(c), Some(sum)) = (centroids.rows.get(range.clone()), sums.vectors.get_mut(range)) else { continue };
        let Some(weight) = sums.weights.get_mut(a) else { continue };
        objective += w * f64::from(squared(x, c));
        *weight += w;
        // A product of two f32 is exact in f64: fused or not, it is the same.
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += w * f64::from(*x));
    }
    sums.objective = objective;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Scores as the documentation states them, one by one.
    fn by_definition(rows: &[f32], dims: usize, points: &[f32]) -> Vec<u32> {
        let nearest = |x: &[f32]| {
            let mut best = (f32::INFINITY, 0);
            for (i, c) in rows.chunks_exact(dims).enumerate() {
                let norm = c.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() as f32;
                let score = x.iter().zip(c).fold(norm, |s, (x, c)| x.mul_add(-2.0 * c, s));
                if score < best.0 {
                    best = (score, i as u32);
                }
            }
            best.1
        };
        points.chunks_exact(dims).map(nearest).collect()
    }

    fn values(n: usize, seed: u64, coarse: bool) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // Coarse values make many ties.
        (0..n)
            .map(|_| if coarse { (next() % 3) as f32 - 1.0 } else { (next() >> 40) as f32 / 8388608.0 - 1.0 })
            .collect()
    }

    proptest! {
        #[test]
        fn every_level_finds_the_same_centroids_and_sums(
            dims in prop_oneof![Just(1usize), Just(2), Just(4), Just(8), Just(16), 1usize..40],
            count in 0usize..40, n in 0usize..100, seed: u64, coarse: bool, weighted: bool,
        ) {
            let rows = values(count * dims, seed, coarse);
            let points = values(n * dims, seed ^ 77, coarse);
            let weights: Vec<f32> = values(n, seed ^ 99, false).iter().map(|v| v.abs()).collect();
            let weights = weighted.then_some(weights.as_slice());
            let centroids = Centroids::new(&rows, dims);
            let run = |isa: Isa| {
                let (mut out, mut sums) = (vec![7u32; n], Sums::new(count, dims));
                step(isa, &centroids, &points, weights, &mut out, &mut sums);
                let mut best = vec![f32::INFINITY; n];
                let total = min_distances(isa, &points, &values(dims, 5, coarse), weights, &mut best);
                let distance = squared_distance(isa, &rows, &points);
                let bits: Vec<u64> = sums.vectors.iter().chain(&sums.weights).map(|v| v.to_bits()).collect();
                (out, bits, sums.objective.to_bits(), best, total.to_bits(), distance)
            };
            let expected = run(Isa::SCALAR);
            prop_assert_eq!(&expected.0, &by_definition(&rows, dims, &points));
            for isa in Isa::available() {
                prop_assert_eq!(&run(isa), &expected, "{}", isa.name());
            }
        }
    }

    #[test]
    fn blocks_and_chunks_do_not_show() {
        // More values than a chunk, and slices that do not fit.
        for dims in [3, 8] {
            let n = if cfg!(miri) { 300 } else { 30_000 };
            let (rows, points) = (values(21 * dims, 1, false), values(n * dims, 2, false));
            let centroids = Centroids::new(&rows, dims);
            for isa in Isa::available().into_iter().filter(|i| *i != Isa::SCALAR) {
                let (mut whole, mut sums) = (vec![0u32; n], Sums::new(21, dims));
                step(isa, &centroids, &points, None, &mut whole, &mut sums);
                let (mut again, mut parts) = (vec![0u32; n], Sums::new(21, dims));
                nearest(isa, &centroids, &points, &mut again);
                sum(isa, &centroids, &points, None, &again, &mut parts);
                assert_eq!((&whole, &sums), (&again, &parts));
                let mut short = vec![0u32; 45];
                nearest(isa, &centroids, &points, &mut short);
                assert_eq!(short, whole[..45]);
                let mut long = vec![9u32; 50];
                nearest(isa, &centroids, &points[..41 * dims + 1], &mut long);
                assert_eq!((&long[..41], &long[41..]), (&whole[..41], &[9; 9][..]));
                let mut none = Sums::new(2, dims);
                sum(isa, &centroids, &points, Some(&[1.0; 4]), &[20, 1, u32::MAX, 0, 0], &mut none);
                assert_eq!(none.weights, [1.0, 1.0]);
            }
        }
        let (mut nothing, empty) = ([3u32; 2], Centroids::new(&[], 4));
        nearest(Isa::detect(), &empty, &[0.0; 8], &mut nothing);
        assert_eq!((nothing, empty.count()), ([0; 2], 0));
    }
}
