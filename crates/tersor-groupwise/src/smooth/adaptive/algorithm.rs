//! The thresholds and their factors.

/// Smallest threshold.
const MIN: f32 = 0.1;

/// Number of steps between thresholds.
const STEPS: usize = 100;

/// Returns the thresholds to try, falling from `max` to 0.1; none if `max` is not above 0.1. Steps are equal, as in the released code, while they
/// are at most 0.5; for larger inputs ratios are equal, so that small thresholds are tried as well.
pub(super) fn thresholds(max: f32) -> Vec<f32> {
    if max <= MIN {
        return Vec::new();
    }
    let even = max <= 0.5 * STEPS as f32;
    let step = |i: usize| {
        let share = i as f32 / STEPS as f32;
        if even { max - share * (max - MIN) } else { max * (MIN / max).powf(share) }
    };
    (0..=STEPS).map(step).collect()
}

/// Returns the factors `max(a / threshold, 1)` of channels with the smallest and largest values `min` and `max`, `[features]` both, `a` being the
/// larger magnitude of the two.
pub(super) fn factors(min: &[f32], max: &[f32], threshold: f32) -> Vec<f32> {
    min.iter().zip(max).map(|(lo, hi)| (hi / threshold).max(lo / -threshold).max(1.0)).collect()
}
