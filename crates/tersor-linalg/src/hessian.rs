//! [`HessianFactor`]: the damped and factored Hessian that the matrices of a site share.

use tersor_core::{Error, ParamError, Result};

use crate::{check_symmetric, inverse_factor_f32};

/// The largest damping that is tried, as a fraction of the mean diagonal.
const MAX_DAMPING: f64 = 0.16;

/// Parameters of the factorization of a Hessian `H` by [`Damping::factor`]: how much is added to the diagonal of `H` first, as a fraction
/// (the damping) of the mean of its nonzero diagonal elements, and in which order the columns (the input features of the weights) come. By
/// default the damping is 0.01; after a failed factorization it is doubled, up to 0.16. Columns are in their own order by default.
///
/// ```
/// use tersor_linalg::Damping;
/// # fn main() -> tersor_core::Result<()> {
/// // Three features; the third one was always zero.
/// let hessian = [1.0, 0.5, 0.0, 0.5, 4.0, 0.0, 0.0, 0.0, 0.0];
/// let factor = Damping::default().by_importance(true).factor(&hessian, 3)?;
/// assert_eq!(factor.order(), Some(&[1, 0, 2][..]));
/// assert_eq!((factor.dead(), factor.damping()), (&[false, false, true][..], 0.01));
/// // U is upper triangular.
/// assert!(factor.upper().is_some_and(|u| u[3] == 0.0 && u[6] == 0.0 && u[7] == 0.0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Damping {
    share: f64,
    by_importance: bool,
}

impl Default for Damping {
    fn default() -> Self {
        Self { share: 0.01, by_importance: false }
    }
}

impl Damping {
    /// Returns the parameters with `share` as the first damping that is tried: `share` times the mean of the Hessian's nonzero diagonal
    /// elements is added to its diagonal. After each failed factorization the doubled damping is tried, unless it is above 0.16, so that a
    /// `share` above 0.08 is the only damping tried. Columns (input features) are in their own order. Errors unless `share` is finite and
    /// above 0.
    pub fn new(share: f64) -> Result<Self, ParamError> {
        if !share.is_finite() || share <= 0.0 {
            return Err(ParamError::new("damping", share, "must be finite and above 0"));
        }
        Ok(Self { share, by_importance: false })
    }

    /// Sets the order of the columns (input features). False, the default, keeps their own order. True puts them in the order of falling
    /// diagonal elements of the Hessian (GPTQ's act-order), with the lower index first among equal ones; features whose diagonal element is
    /// 0 come last.
    pub fn by_importance(self, by_importance: bool) -> Self {
        Self { by_importance, ..self }
    }

    /// Returns the first damping that is tried: the fraction of the mean of the Hessian's nonzero diagonal elements that is added to its
    /// diagonal.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Returns what [`by_importance`](Self::by_importance) set: true if columns come in the order of falling diagonal elements of the
    /// Hessian, false if they are in their own order.
    pub fn order(&self) -> bool {
        self.by_importance
    }

    /// Adds a damping `λ` to the diagonal of a Hessian `H = XᵀX` of the inputs `X`, `[tokens, features]`, and factors it. The result holds
    /// the upper triangular `U` with `(H + λI)⁻¹ = UᵀU`, both axes in the order of the columns that [`by_importance`](Self::by_importance)
    /// sets. `hessian`, `[features, features]` row-major, may be `XᵀX` times any positive number: the compensation in a
    /// [`Sweep`](crate::Sweep) does not depend on the scale. A feature is dead if its diagonal element is zero, because its input was
    /// always zero. The mean of the nonzero diagonal elements (1 if there are none) takes the place of each zero on the diagonal, so that
    /// the factor exists. `λ` is a fraction of that mean: first the fraction [`share`](Self::share), and after each failure twice the
    /// fraction before, as long as that is at most 0.16.
    ///
    /// The factorization fails with a `λ` if `H + λI` is not positive definite, or if an element of the factor exceeds the range of f32. If
    /// it fails with every `λ` that is tried, the result is `Ok` and holds a [`failure`](HessianFactor::failure) instead of a factor.
    ///
    /// Errors if `hessian` does not have `features * features` elements, if an element is not finite, if elements across the diagonal
    /// differ by more than `1e-6` of the largest magnitude, or if a diagonal element is negative. Errors if the Hessian is so large that a
    /// diagonal element of the factor is below the smallest normal f32.
    pub fn factor(&self, hessian: &[f64], features: usize) -> Result<HessianFactor> {
        let k = features;
        check_symmetric(hessian, k)?;
        let diagonal: Vec<f64> = (0..k).map(|i| hessian[i * k + i]).collect();
        if let Some(i) = diagonal.iter().position(|d| *d < 0.0) {
            let what =
                format!("the Hessian has {} on its diagonal at {i}: a sum of squares cannot be negative", diagonal[i]);
            return Err(Error::Numerical(what));
        }
        let dead: Vec<bool> = diagonal.iter().map(|d| *d == 0.0).collect();
        let live = dead.iter().filter(|d| !**d).count();
        let mean = if live > 0 { diagonal.iter().sum::<f64>() / live as f64 } else { 1.0 };
        let order = self.by_importance.then(|| {
            let mut order: Vec<u32> = (0..k as u32).collect();
            // Stable, so of equals the lower number comes first.
            order.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]));
            order
        });
        let at = |i: usize| order.as_ref().map_or(i, |o| o[i] as usize);
        let mut tried = Vec::new();
        let mut damping = self.share;
        let mut pivot;
        loop {
            let mut h = vec![0f64; k * k];
            for i in 0..k {
                let row = &hessian[at(i) * k..][..k];
                h[i * k..(i + 1) * k].iter_mut().enumerate().for_each(|(j, v)| *v = row[at(j)]);
                // A dead feature is uncorrelated with others, so its pivot may be any positive number.
                h[i * k + i] = if dead[at(i)] { mean } else { row[at(i)] } + damping * mean;
            }
            match inverse_factor_f32(h, k) {
                Ok(u) => {
                    let added = damping * mean;
                    return Ok(HessianFactor {
                        u: Some(u),
                        features,
                        order,
                        dead,
                        mean,
                        added,
                        damping,
                        failure: None,
                    });
                }
                Err(Error::NotPositiveDefinite { pivot: p, .. }) => pivot = at(p),
                Err(e) => return Err(e),
            }
            tried.push(damping);
            if damping * 2.0 > MAX_DAMPING {
                break;
            }
            damping *= 2.0;
        }
        let failure = Some(Failure { pivot, damping_tried: tried });
        Ok(HessianFactor { u: None, features, order: None, dead, mean, added: 0.0, damping, failure })
    }
}

/// Why a Hessian could not be factored: the input feature at whose pivot the last attempt failed, and all dampings that were tried. A
/// damping is the number that was added to the diagonal, as a fraction of the mean of the Hessian's nonzero diagonal elements. Returned by
/// [`HessianFactor::failure`]. It converts into [`Error::NotPositiveDefinite`], which has the same two fields.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// The zero-based index of the input feature, in the features' own order, at whose pivot the last of the failed attempts to factor the
    /// damped Hessian stopped. A failure exists only if the attempts with all dampings failed.
    pub pivot: usize,
    /// All dampings that were tried, in this order, each without success. Each is a fraction of the mean of the Hessian's nonzero diagonal
    /// elements.
    pub damping_tried: Vec<f64>,
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Self {
        Error::NotPositiveDefinite { pivot: f.pivot, damping_tried: f.damping_tried }
    }
}

/// A Hessian `H`, `[features, features]`, of the inputs of a weight matrix, with a damping `λ` added to its diagonal and factored: the
/// upper triangular `U` with `(H + λI)⁻¹ = UᵀU` (GPTQ, arXiv 2210.17323), both axes in the order of the columns ([`order`](Self::order)).
/// If the factorization failed with every `λ` that was tried, it holds a [`failure`](Self::failure) and no `U`. Made by
/// [`Damping::factor`].
#[derive(Clone, Debug)]
pub struct HessianFactor {
    u: Option<Vec<f32>>,
    features: usize,
    order: Option<Vec<u32>>,
    dead: Vec<bool>,
    /// The mean of the nonzero diagonal elements, which stands on the diagonal in place of each zero.
    pub(crate) mean: f64,
    added: f64,
    damping: f64,
    failure: Option<Failure>,
}

impl HessianFactor {
    /// Returns the upper triangular factor `U`, `[features, features]` row-major in f32, with `(H + λI)⁻¹ = UᵀU` for the Hessian `H` and
    /// the number `λ` that was [added](Self::added) to its diagonal. In `H`, the mean of the nonzero diagonal elements stands in place of
    /// each zero on the diagonal. Both axes of `H` and `U` are in the order of the columns ([`order`](Self::order)). None if the
    /// factorization failed.
    pub fn upper(&self) -> Option<&[f32]> {
        self.u.as_deref()
    }

    /// Returns the number of input features: the size of each axis of the Hessian.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the order of the columns (input features) in the factor, `[features]`: element `i` is the zero-based index of the feature
    /// that comes at place `i`. None if columns are in their own order or the factorization failed.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Returns one flag for each feature, `[features]` in the features' own order: true if the feature is dead, which means that its
    /// diagonal element of the Hessian is zero because its input was always zero.
    pub fn dead(&self) -> &[bool] {
        &self.dead
    }

    /// Returns the number of dead features: those whose diagonal element of the Hessian is zero.
    pub fn dead_columns(&self) -> usize {
        self.dead.iter().filter(|d| **d).count()
    }

    /// Returns `λ`, the number that was added to each diagonal element of the Hessian: the [`damping`](Self::damping) times the mean of the
    /// nonzero diagonal elements, or the damping itself if all diagonal elements are zero. 0 if the factorization failed.
    pub fn added(&self) -> f64 {
        self.added
    }

    /// Returns the last damping that was tried, as a fraction of the mean of the Hessian's nonzero diagonal elements: the one with which
    /// the factorization succeeded, or the largest one if it failed.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Returns why the Hessian could not be factored: the index of the input feature at whose pivot the last attempt failed, and all
    /// dampings that were tried, as fractions of the mean of the Hessian's nonzero diagonal elements. None if the factorization succeeded.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}
