//! AWQ's factors, from mean magnitudes and an exponent.

use super::Awq;

/// Number of exponents that are tried: `i / STEPS`, `i` in `0..STEPS`.
const STEPS: usize = 20;

/// Returns the exponents `ρ` that the search tries.
pub(super) fn exponents() -> impl Iterator<Item = f64> {
    (0..STEPS).map(|i| i as f64 / STEPS as f64)
}

impl Awq {
    /// Returns AWQ's factors `s` of features with the mean input magnitudes `mean`, one factor for each feature: `s = t / sqrt(max(t) *
    /// min(t))` where each feature has `t = max(mean^exponent, 1e-4)`, and `max(t)` and `min(t)` are over all features, so that the product
    /// of the largest and the smallest factor is 1. The result is empty if `mean` is.
    ///
    /// `mean` should hold finite numbers of at least 0. A mean for which `mean^exponent` is NaN, such as a negative one with the exponent
    /// 0.5, gets `t = 1e-4`. If `mean^exponent` is infinite for a feature, its own factor becomes NaN and those of features with finite
    /// powers become 0.
    pub fn factors_of(mean: &[f64], exponent: f64) -> Vec<f32> {
        let mut factors: Vec<f64> = mean.iter().map(|a| a.powf(exponent).max(1e-4)).collect();
        let max = factors.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let min = factors.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = (max * min).sqrt();
        factors.iter_mut().for_each(|s| *s /= middle);
        factors.into_iter().map(|s| s as f32).collect()
    }
}
