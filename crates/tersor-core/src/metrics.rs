//! How far two sets of values lie apart. All sums are in f64, in index order.

/// Mean squared difference over the shorter of the two; 0 for nothing.
pub fn mse(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().min(b.len());
    if n == 0 { 0.0 } else { squared_error(a, b) / n as f64 }
}

/// Sum of squared differences.
pub fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// Sum of squares.
pub fn energy(a: &[f32]) -> f64 {
    a.iter().map(|&v| f64::from(v).powi(2)).sum()
}

/// Signal to quantization noise in decibels, `10 log10(Σ a² / Σ (a - b)²)`; infinite when they are equal.
pub fn sqnr_db(signal: &[f32], approximation: &[f32]) -> f64 {
    let noise = squared_error(signal, approximation);
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (energy(signal) / noise).log10() }
}

/// Cosine of the angle between two vectors; 1 for two zero vectors, 0 for one.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    let (x, y) = (energy(a), energy(b));
    if x == 0.0 && y == 0.0 {
        1.0
    } else if x == 0.0 || y == 0.0 {
        0.0
    } else {
        dot / (x.sqrt() * y.sqrt())
    }
}

/// `log Σ exp(x)`, stable; negative infinity for nothing.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    let max = f64::from(max);
    max + x.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
}

/// Kullback-Leibler divergence in nats of `softmax(q)` from `softmax(p)`: `Σ p log(p / q)`. A logit of minus
/// infinity in `p` contributes 0.
pub fn kl_from_logits(p: &[f32], q: &[f32]) -> f64 {
    kl_with_norm(p, q, log_sum_exp(q))
}

/// [`kl_from_logits`] where `log_sum_exp(q)` is known: one pass of exponentials.
pub fn kl_with_norm(p: &[f32], q: &[f32], norm_q: f64) -> f64 {
    let max = f64::from(p.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (mut sum, mut differences) = (0f64, 0f64);
    for (&a, &b) in p.iter().zip(q) {
        let e = (f64::from(a) - max).exp();
        if e > 0.0 {
            sum += e;
            differences += e * (f64::from(a) - f64::from(b));
        }
    }
    // Σ p (a - zp - b + zq)
    (differences / sum - (max + sum.ln()) + norm_q).max(0.0)
}

/// Index of the largest value, the lowest of equals; 0 for nothing.
pub fn argmax(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_examples() {
        assert_eq!(mse(&[1.0, 2.0], &[1.0, 4.0]), 2.0);
        assert_eq!(mse(&[], &[]), 0.0);
        assert!((sqnr_db(&[3.0, 4.0], &[3.0, 4.5]) - 20.0).abs() < 1e-9);
        assert_eq!(sqnr_db(&[1.0], &[1.0]), f64::INFINITY);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-9);
        let (p, q) = ([0.0f32, 3f32.ln()], [0.0f32, 0.0]);
        let want = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((kl_from_logits(&p, &q) - want).abs() < 1e-6);
        assert_eq!(kl_from_logits(&p, &p), 0.0);
        assert_eq!(kl_from_logits(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }
}
