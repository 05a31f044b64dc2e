//! What all matrices of a site share: the Hessian, damped and factored.

use tersor_core::{Error, Result};
use tersor_linalg::{check_symmetric, inverse_factor_f32};

use super::{CheckedGptq, OnFailure};

/// Most damping that is tried, as a share of the mean diagonal.
const MOST_DAMPING: f64 = 0.16;

/// The factor of a Hessian, and how it was got.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Upper `U` with `H⁻¹ = UᵀU`, `[k, k]`, axes in `order`. None: nothing could be factored, round to nearest.
    pub(super) u: Option<Vec<f32>>,
    /// Input features.
    pub(super) features: usize,
    /// Feature at each place, where columns are taken by importance.
    pub(super) order: Option<Vec<u32>>,
    /// Which features were always zero.
    pub(super) dead: Vec<bool>,
    /// What was added to the diagonal.
    pub(super) added: f64,
    /// The same, as a share of the mean diagonal.
    pub(super) damping: f64,
    /// What did not go as planned.
    pub(super) fallback: Option<String>,
}

impl CheckedGptq {
    /// Factors a Hessian `XᵀX` (any positive multiple of it gives the same codes), `[features, features]` row-major. Error
    /// when it is not finite or not symmetric, when a diagonal element is negative, and, with [`OnFailure::Error`], when no
    /// damping makes it positive definite.
    pub fn factor(&self, hessian: &[f64], features: usize) -> Result<Factor> {
        let k = features;
        check_symmetric(hessian, k)?;
        let diagonal: Vec<f64> = (0..k).map(|i| hessian[i * k + i]).collect();
        if let Some(i) = diagonal.iter().position(|d| *d < 0.0) {
            let what = format!("the Hessian has {} on its diagonal at {i}: it is no sum of squares", diagonal[i]);
            return Err(Error::Numerical(what));
        }
        let dead: Vec<bool> = diagonal.iter().map(|d| *d == 0.0).collect();
        let live = dead.iter().filter(|d| !**d).count();
        let mean = if live > 0 { diagonal.iter().sum::<f64>() / live as f64 } else { 1.0 };
        let order = self.act_order.then(|| {
            let mut order: Vec<u32> = (0..k as u32).collect();
            // Stable, so of equals the lower number comes first.
            order.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]));
            order
        });
        let at = |i: usize| order.as_ref().map_or(i, |o| o[i] as usize);
        let mut tried = Vec::new();
        let mut damping = self.damping;
        let mut pivot;
        loop {
            let mut h = vec![0f64; k * k];
            for i in 0..k {
                let row = &hessian[at(i) * k..][..k];
                h[i * k..(i + 1) * k].iter_mut().enumerate().for_each(|(j, v)| *v = row[at(j)]);
                // A dead feature has nothing to say to others: its pivot is any positive number.
                h[i * k + i] = if dead[at(i)] { mean } else { row[at(i)] } + damping * mean;
            }
            match inverse_factor_f32(h, k) {
                Ok(u) => {
                    let u = Some(u);
                    let added = damping * mean;
                    return Ok(Factor { u, features, order, dead, added, damping, fallback: None });
                }
                Err(Error::NotPositiveDefinite { pivot: p, .. }) => pivot = at(p),
                Err(e) => return Err(e),
            }
            tried.push(damping);
            if damping * 2.0 > MOST_DAMPING {
                break;
            }
            damping *= 2.0;
        }
        if self.on_failure == OnFailure::Error {
            return Err(Error::NotPositiveDefinite { pivot, damping_tried: tried });
        }
        let fallback = format!(
            "the Hessian is not positive definite at feature {pivot} with damping up to {damping}: rounded to nearest"
        );
        Ok(Factor { u: None, features, order: None, dead, added: 0.0, damping, fallback: Some(fallback) })
    }
}

impl Factor {
    /// Damping that the factorization ended with, as a share of the mean diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Input features that were always zero.
    pub fn dead_columns(&self) -> usize {
        self.dead.iter().filter(|d| **d).count()
    }

    /// What did not go as planned, in words.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}
