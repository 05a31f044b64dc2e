//! Parameters of k-means.

use tersor_core::{Check, ParamError};

/// The choice of the initial centroids, a parameter of [`KMeans`]: by k-means++ (the default), random points, or given centroids.
#[derive(Clone, PartialEq, Debug)]
pub enum Seeding {
    /// k-means++ (Arthur and Vassilvitskii 2007): each centroid is a point drawn with a probability proportional to its weight times its
    /// squared distance to the nearest centroid so far. Of more than 65 536 points (or 32 for each centroid, if that is more) only a sample
    /// of this size is considered, drawn by weight from as many strata of equal weight.
    PlusPlus,
    /// Different points of positive weight, all sets of them equally likely.
    Random,
    /// Given centroids, `[k, dims]` row-major.
    Given(Vec<f32>),
}

/// Unchecked parameters of k-means, by default at most 25 Lloyd iterations over all points, a tolerance of 1e-4, k-means++ seeding and one
/// restart. `check` makes them [`CheckedKMeans`]; it errors if `k`, `mini_batch` or `restarts` is 0, `k` exceeds a u32, `tolerance` is not
/// in `0..1`, or several restarts would be identical.
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
    /// Returns the default parameters for `k` clusters.
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

    /// Sets the maximum number of Lloyd iterations, or the exact number of mini-batches. With 0 points are assigned to the initial
    /// centroids.
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    /// Sets the tolerance: Lloyd's iteration stops when the objective drops by no more than this fraction of itself. With 0 all iterations
    /// run. Mini-batches ignore it, because the objective is not computed between them.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }

    /// Sets the choice of the initial centroids.
    pub fn seeding(self, seeding: Seeding) -> Self {
        Self { seeding, ..self }
    }

    /// Replaces Lloyd's iteration by mini-batches (Sculley 2010, "Web-scale k-means clustering"): updates centroids by batches of `size`
    /// points (or the number of all points, if that is less), drawn by weight with replacement, at a learning rate of one over the number
    /// of points that the centroid has received so far. All points are assigned at the end.
    pub fn mini_batch(self, size: usize) -> Self {
        Self { mini_batch: Some(size), ..self }
    }

    /// Sets the number of runs from different random choices; the one with the lowest objective is returned, the first of equal ones.
    pub fn restarts(self, restarts: usize) -> Self {
        Self { restarts, ..self }
    }

    /// Sets the name of the random stream that the clustering draws from, `k-means` by default. The stream depends on this name and the seed of
    /// the [`Context`](tersor_core::Context) alone: clusterings of one name draw the same numbers.
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
