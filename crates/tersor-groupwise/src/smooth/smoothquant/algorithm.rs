//! The factors, from largest magnitudes.

/// Lower bound of magnitudes and factors.
const MIN: f64 = 1e-5;

/// Raises `max`, `[cols]`, to the largest magnitude of each column of `values`, `[rows, cols]`.
pub(super) fn raise_to_columns(max: &mut [f32], values: &[f32], cols: usize) {
    for row in values.chunks_exact(cols.max(1)) {
        max.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs()));
    }
}

/// Returns the factors `inputs^alpha / weights^(1 - alpha)`, at least 1e-5, from the largest magnitude of each input feature and of each column of
/// the weights, `[features]` both.
pub(super) fn factors(inputs: &[f32], weights: &[f32], alpha: f64) -> Vec<f32> {
    let factor = |(x, w): (&f32, &f32)| {
        let (x, w) = (f64::from(*x).max(MIN), f64::from(*w).max(MIN));
        (x.powf(alpha) / w.powf(1.0 - alpha)).max(MIN) as f32
    };
    inputs.iter().zip(weights).map(factor).collect()
}
