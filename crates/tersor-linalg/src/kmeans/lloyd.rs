//! Lloyd's iteration: all points are assigned, then every centroid moves to the mean of its points.

use tersor_core::{Context, Result};
use tersor_kernels::cluster::Centroids;

use super::data::Data;
use super::{CheckedKMeans, Clustering};

/// Iterates from the centroids `seeds`, `[k, dims]`.
pub(super) fn fit(params: &CheckedKMeans, data: &Data, seeds: Vec<f32>, cx: &Context) -> Result<Clustering> {
    let mut centroids = Centroids::new(&seeds, data.dims);
    let mut assignment = vec![0u32; data.n];
    let mut sums = data.step(&centroids, &mut assignment);
    let mut objectives = vec![sums.objective];
    for _ in 0..params.iterations {
        cx.cancel.check()?;
        centroids = Centroids::new(&data.means(&sums, &centroids, &assignment), data.dims);
        let before = sums.objective;
        sums = data.step(&centroids, &mut assignment);
        objectives.push(sums.objective);
        if params.tolerance > 0.0 && before - sums.objective <= params.tolerance * before {
            break;
        }
    }
    Ok(Clustering { centroids: centroids.rows().to_vec(), assignment, objectives })
}
