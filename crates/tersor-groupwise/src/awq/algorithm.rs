//! AWQ's factors, from mean magnitudes and an exponent.

use super::Awq;

/// Number of exponents that are tried: `i / STEPS`, `i` in `0..STEPS`.
const STEPS: usize = 20;

/// Returns the exponents `ρ` that the search tries.
pub(super) fn exponents() -> impl Iterator<Item = f64> {
    (0..STEPS).map(|i| i as f64 / STEPS as f64)
}

impl Awq {
    /// Returns the factors `max(mean^exponent, 1e-4)` of features with the mean magnitudes `mean`, `[features]`, divided by the geometric mean of the
    /// largest and the smallest of them, so that the product of these two is 1.
    pub fn factors_of(mean: &[f64], exponent: f64) -> Vec<f32> {
        let mut factors: Vec<f64> = mean.iter().map(|a| a.powf(exponent).max(1e-4)).collect();
        let max = factors.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let min = factors.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = (max * min).sqrt();
        factors.iter_mut().for_each(|s| *s /= middle);
        factors.into_iter().map(|s| s as f32).collect()
    }
}
