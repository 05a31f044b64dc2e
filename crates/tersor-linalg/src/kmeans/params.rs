//! Parameters of k-means.

use tersor_core::{Check, ParamError};

/// How the initial centroids of k-means are chosen, set by [`KMeans::seeding`]: by k-means++ (the default), as points drawn at random from
/// those that are clustered, or as given centroids.
#[derive(Clone, PartialEq, Debug)]
pub enum Seeding {
    /// k-means++ (Arthur and Vassilvitskii 2007): each centroid is a point drawn with a probability proportional to its weight times its
    /// squared distance to the nearest centroid so far. Of more than 65 536 points (or 32 for each centroid, if that is more) only a sample
    /// of this size is considered, drawn by weight from as many strata of equal weight.
    PlusPlus,
    /// Different points of positive weight, all sets of them equally likely.
    Random,
    /// Given centroids, `[k, dims]` row-major. [`CheckedKMeans::fit`] errors if there are not `k * dims` values.
    Given(Vec<f32>),
}

/// Parameters of k-means, unchecked until `check` turns them into [`CheckedKMeans`]. By default at most 25 Lloyd iterations run over all
/// points, with a tolerance of 1e-4, k-means++ seeding and one run. `check` errors if `k`, the size of mini-batches or the number of
/// restarts is 0, `k` exceeds 4 294 967 295, the tolerance is negative, NaN, or 1 or more, or several restarts would be identical because
/// nothing is random (given centroids and no mini-batches).
///
/// ```
/// use tersor_core::{Check, Context};
/// use tersor_linalg::kmeans::{KMeans, Seeding};
/// # fn main() -> tersor_core::Result<()> {
/// let params = KMeans::new(2).seeding(Seeding::Given(vec![0.0, 5.0])).iterations(10).check()?;
/// // Three points of one dimension; the last one counts three times.
/// let found = params.fit(&[0.0, 4.0, 8.0], [3, 1], Some(&[1.0, 1.0, 3.0]), &Context::new())?;
/// assert_eq!((found.centroids(), found.assignment()), (&[0.0, 7.0][..], &[0, 1, 1][..]));
/// assert!(KMeans::new(0).check().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct KMeans {
    k: usize,
    iterations: usize,
    tolerance: f64,
    seeding: Seeding,
    mini_batch: Option<usize>,
    restarts: usize,
    stream: String,
}

impl KMeans {
    /// Returns parameters for `k` clusters with the defaults: k-means++ seeding, at most 25 Lloyd iterations, a tolerance of 1e-4, one run,
    /// and the random stream `k-means`. A `k` of 0 or above 4 294 967 295 is refused by `check`.
    pub fn new(k: usize) -> Self {
        Self {
            k,
            iterations: 25,
            tolerance: 1e-4,
            seeding: Seeding::PlusPlus,
            mini_batch: None,
            restarts: 1,
            stream: "k-means".into(),
        }
    }

    /// Sets the maximum number of Lloyd iterations, 25 by default; with mini-batches it is the exact number of batches. If it is 0, the
    /// initial centroids are kept and the points are assigned to them; only [mini-batches](Self::mini_batch) then still replace centroids
    /// without points.
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    /// Sets the tolerance, 1e-4 by default. If it is above 0, Lloyd's iteration stops after an iteration that lowers the objective (the
    /// weighted sum of squared distances) by no more than this fraction of the objective before that iteration. If it is 0, all iterations
    /// run. `check` errors unless it is at least 0 and below 1. Mini-batches ignore it, because the objective is not computed between them.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }

    /// Sets how the initial centroids are chosen; [`Seeding::PlusPlus`] by default.
    pub fn seeding(self, seeding: Seeding) -> Self {
        Self { seeding, ..self }
    }

    /// Replaces Lloyd's iteration by mini-batches of `size` points (Sculley 2010, "Web-scale k-means clustering"); a size above the number
    /// of points counts as that number. Points are drawn with replacement, with probabilities proportional to their weights, and each point
    /// moves its nearest centroid at a learning rate of one over the number of points that this centroid has received so far. At the end
    /// all points are assigned. If a cluster then has no weight, its centroid is replaced by the point with the largest weighted squared
    /// distance from the centroid that the point is assigned to (another point for each such cluster), and all points are assigned once
    /// more. `check` errors if `size` is 0.
    pub fn mini_batch(self, size: usize) -> Self {
        Self { mini_batch: Some(size), ..self }
    }

    /// Sets the number of runs with different random choices, 1 by default. The run with the lowest objective is returned, the first of
    /// equal ones. `check` errors if the number is 0, or above 1 with given initial centroids and without mini-batches, since all runs
    /// would be equal.
    pub fn restarts(self, restarts: usize) -> Self {
        Self { restarts, ..self }
    }

    /// Sets the name of the random stream that the clustering draws from, `k-means` by default. The random numbers depend only on this name
    /// and on the seed of the [`Context`](tersor_core::Context): clusterings with the same name and seed draw the same numbers. Any name is
    /// valid.
    pub fn stream(self, name: impl Into<String>) -> Self {
        Self { stream: name.into(), ..self }
    }
}

/// Checked parameters of k-means, made by `check` of [`KMeans`]; [`fit`](Self::fit) clusters points with them.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedKMeans {
    pub(super) k: usize,
    pub(super) iterations: usize,
    pub(super) tolerance: f64,
    pub(super) seeding: Seeding,
    pub(super) mini_batch: Option<usize>,
    pub(super) restarts: usize,
    pub(super) stream: String,
}

impl Check for KMeans {
    type Checked = CheckedKMeans;
    fn check(self) -> Result<CheckedKMeans, ParamError> {
        if self.k == 0 || u32::try_from(self.k).is_err() {
            return Err(ParamError::new("k", self.k, "must be 1 to 4294967295"));
        }
        if !(0.0..1.0).contains(&self.tolerance) {
            return Err(ParamError::new("tolerance", self.tolerance, "must be at least 0 and below 1"));
        }
        if self.mini_batch == Some(0) {
            return Err(ParamError::new("mini_batch", 0, "must be at least 1"));
        }
        if self.restarts == 0 {
            return Err(ParamError::new("restarts", 0, "must be at least 1"));
        }
        let draws = !matches!(self.seeding, Seeding::Given(_)) || self.mini_batch.is_some();
        if self.restarts > 1 && !draws {
            let rule = "must be 1 with given centroids and no mini-batches: every run would be the same";
            return Err(ParamError::new("restarts", self.restarts, rule));
        }
        let Self { k, iterations, tolerance, seeding, mini_batch, restarts, stream } = self;
        Ok(CheckedKMeans { k, iterations, tolerance, seeding, mini_batch, restarts, stream })
    }
}
