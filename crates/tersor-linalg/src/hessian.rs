//! [`HessianFactor`]: the damped and factored Hessian that the matrices of a site share.

use tersor_core::{Error, ParamError, Result};

use crate::{check_symmetric, inverse_factor_f32};

/// The largest damping that is tried, as a fraction of the mean diagonal.
const MAX_DAMPING: f64 = 0.16;

/// Parameters of the factorization of a Hessian. By default the damping is 0.01 of the mean diagonal, doubled after a failure up to 0.16,
/// and columns are in their own order.
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
    /// Returns a damping that begins with the fraction `share` of the mean diagonal. Errors unless it is finite and above 0.
    pub fn new(share: f64) -> Result<Self, ParamError> {
        if !share.is_finite() || share <= 0.0 {
            return Err(ParamError::new("damping", share, "must be finite and above 0"));
        }
        Ok(Self { share, by_importance: false })
    }

    /// Returns the same with columns in the order of falling diagonal (GPTQ's act-order) if `by_importance`, in their own order otherwise.
    pub fn by_importance(self, by_importance: bool) -> Self {
        Self { by_importance, ..self }
    }

    /// Returns the first damping that is tried, as a fraction of the mean diagonal.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Returns whether columns are taken in the order of falling diagonal.
    pub fn order(&self) -> bool {
        self.by_importance
    }

    /// Damps and factors a Hessian `XᵀX`, `[features, features]` row-major. A positive multiple of it serves as well: the compensation in a
    /// [`Sweep`](crate::Sweep) does not depend on the scale. Features whose diagonal element is zero (dead features) do not affect others.
    /// If no damping makes the Hessian positive definite, the result holds a [`failure`](HessianFactor::failure) and no factor. Errors if
    /// the length does not match, the matrix is not finite or not symmetric, or a diagonal element is negative.
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
                    return Ok(HessianFactor { u: Some(u), features, order, dead, added, damping, failure: None });
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
        Ok(HessianFactor { u: None, features, order: None, dead, added: 0.0, damping, failure })
    }
}

/// Why a Hessian could not be factored; converts into [`Error::NotPositiveDefinite`].
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// The index of the input feature, in the features' own order, at whose pivot the last factorization of the damped Hessian failed.
    pub pivot: usize,
    /// The dampings that were tried without success, as fractions of the mean diagonal.
    pub damping_tried: Vec<f64>,
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Self {
        Error::NotPositiveDefinite { pivot: f.pivot, damping_tried: f.damping_tried }
    }
}

/// A Hessian `H` of `features` inputs, damped by `λ` and factored: the upper triangular `U` with `(H + λI)⁻¹ = UᵀU` (GPTQ, arXiv
/// 2210.17323). Made by [`Damping::factor`].
#[derive(Clone, Debug)]
pub struct HessianFactor {
    u: Option<Vec<f32>>,
    features: usize,
    order: Option<Vec<u32>>,
    dead: Vec<bool>,
    added: f64,
    damping: f64,
    failure: Option<Failure>,
}

impl HessianFactor {
    /// Returns the upper triangular factor `U` with `H⁻¹ = UᵀU` of the damped Hessian `H`, `[features, features]` row-major, with both axes in
    /// [`order`](Self::order); None if the factorization failed.
    pub fn upper(&self) -> Option<&[f32]> {
        self.u.as_deref()
    }

    /// Returns the number of features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the order of the columns, `[features]`: element `i` is the feature at place `i`. None if columns are in their own order or
    /// the factorization failed.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Returns for each feature, in its own order, whether it is dead: its diagonal element of the Hessian is zero, since the input was
    /// always zero.
    pub fn dead(&self) -> &[bool] {
        &self.dead
    }

    /// Returns the number of [`dead`](Self::dead) features.
    pub fn dead_columns(&self) -> usize {
        self.dead.iter().filter(|d| **d).count()
    }

    /// Returns `λ`, the number that was added to the diagonal of the Hessian; 0 if the factorization failed.
    pub fn added(&self) -> f64 {
        self.added
    }

    /// Returns the last damping that was tried, as a fraction of the mean diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Returns why the Hessian could not be factored; None if it was.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}
