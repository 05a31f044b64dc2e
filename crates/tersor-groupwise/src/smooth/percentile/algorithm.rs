//! The baseline and the factors above it.

/// Share of the channels that are smoothed.
const SHARE: f64 = 0.005;

/// Smallest baseline.
const MIN: f32 = 1e-4;

/// Returns the factors `max(input / baseline, 1)` of channels with the largest magnitudes `inputs`, `[features]`. `None` if there are too few
/// channels for a baseline, or it is below 1e-4.
pub(super) fn factors(inputs: &[f32]) -> Option<Vec<f32>> {
    let mut sorted = inputs.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let rank = (SHARE * inputs.len() as f64 + 1.5) as usize;
    let baseline = *sorted.get(rank.saturating_sub(1))?;
    if baseline < MIN {
        return None;
    }
    Some(inputs.iter().map(|a| (a / baseline).max(1.0)).collect())
}
