//! Parameters of k-means.

use tersor_core::{Check, ParamError};

/// Where the first centroids come from.
#[derive(Clone, PartialEq, Debug)]
pub enum Seeding {
    /// k-means++ (Arthur and Vassilvitskii 2007): each centroid is a point drawn with a probability in proportion to its
    /// weight times its squared distance to the nearest one before. Of more than 65536 points (32 for each centroid, if
    /// that is more) it sees a sample of so many, drawn by weight from as many strata of equal weight.
    PlusPlus,
    /// Different points of positive weight, all sets of them equally likely.
    Random,
    /// These, `[k, dims]`.
    Given(Vec<f32>),
}

/// Parameters of k-means, unchecked: at most 25 Lloyd iterations over all points, a tolerance of 1e-4, k-means++, one run.
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
    /// The defaults, for `k` clusters.
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

    /// Lloyd iterations at most, or mini-batches exactly. With 0 the points are assigned to the seeds.
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    /// Lloyd's iteration stops once the objective drops by no more than this share of itself. With 0 all iterations run.
    /// Mini-batches always do: the objective is not known between them.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }

    /// Where the first centroids come from.
    pub fn seeding(self, seeding: Seeding) -> Self {
        Self { seeding, ..self }
    }

    /// Updates centroids by batches of `size` points (or `n`, if that is less) that are drawn by weight, with replacement,
    /// at a learning rate of one over the number of points that the centroid has got so far (Sculley 2010, "Web-scale
    /// k-means clustering"); assigns all points at the end.
    pub fn mini_batch(self, size: usize) -> Self {
        Self { mini_batch: Some(size), ..self }
    }

    /// Runs so many times from different seeds and keeps the lowest objective, the first of equal ones.
    pub fn restarts(self, restarts: usize) -> Self {
        Self { restarts, ..self }
    }

    /// The random stream of the context, `k-means` by default: clusterings that should not share their random choices
    /// take different names.
    pub fn stream(self, name: impl Into<String>) -> Self {
        Self { stream: name.into(), ..self }
    }
}

/// Checked parameters.
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
