//! Distances between vectors and between distributions. All sums are in f64, in index order.
//!
//! ```
//! use tersor_core::metrics;
//! assert_eq!(metrics::mse(&[1.0, 2.0], &[1.0, 4.0]), 2.0);
//! assert_eq!(metrics::cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
//! // Logits that differ by a constant are the same distribution.
//! assert!(metrics::kl_from_logits(&[0.0, 1.0], &[5.0, 6.0]).abs() < 1e-9);
//! assert_eq!(metrics::argmax(&[0.0, 3.0, 3.0]), 1);
//! ```

use crate::{Error, Result};

/// Returns the mean of `(a[i] - b[i])²` over the indices that both slices have; 0 if one is empty.
pub fn mse(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().min(b.len());
    if n == 0 { 0.0 } else { squared_error(a, b) / n as f64 }
}

/// Returns `Σ (a[i] - b[i])²` over the indices that both slices have; 0 if one is empty.
pub fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// Returns the sum of squares, `Σ a[i]²`; 0 for an empty slice.
pub fn energy(a: &[f32]) -> f64 {
    a.iter().map(|&v| f64::from(v).powi(2)).sum()
}

/// Returns the signal-to-quantization-noise ratio in decibels, `10 log10(Σ s² / Σ (s - a)²)`, for a signal `s` and its approximation `a`:
/// infinity if the noise is 0 (also for empty slices), minus infinity if `s` is all zeros and `a` is not. If the lengths differ, the noise
/// is summed over the indices that both have, the signal over all of `s`.
pub fn sqnr_db(signal: &[f32], approximation: &[f32]) -> f64 {
    let noise = squared_error(signal, approximation);
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (energy(signal) / noise).log10() }
}

/// Returns the cosine of the angle between two vectors; 1 for two zero vectors, 0 if only one is zero. If the lengths differ, the shorter
/// vector is continued by zeros.
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

/// Returns `log Σ exp(x[i])` (natural logarithm), computed relative to the maximum so that it does not overflow. NaN if one value is NaN.
/// Otherwise infinity if one is infinity, and minus infinity if the slice is empty or all values are minus infinity.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = largest(x);
    if !max.is_finite() {
        // The maximum ignores NaN.
        return if x.iter().any(|v| v.is_nan()) { f64::NAN } else { f64::from(max) };
    }
    let max = f64::from(max);
    max + x.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
}

/// Returns the Kullback-Leibler divergence in nats, `Σ P log(P / Q)`, for `P = softmax(p)` and `Q = softmax(q)` of the logits `p` and `q`;
/// 0 if a slice is empty.
///
/// If `p` is longer than `q`, the logits of `p` after the length of `q` are ignored. If `p` is shorter, its missing logits count as minus
/// infinity. An index where `p` is minus infinity contributes 0 to the sum.
///
/// The result is NaN if a logit that is not ignored is NaN, if a logit of `p` is plus infinity, or if all logits of `p` or all logits of
/// `q` are minus infinity. Otherwise, if a logit of `q` is plus infinity, it is NaN if the probability in `P` at such an index is above 0
/// in f64, and infinity if not. Otherwise it is infinity if `q` is minus infinity at an index where the probability in `P` is above 0 in
/// f64.
///
/// [`kl_checked`] errors instead if the lengths differ, a logit is NaN or plus infinity, or all logits of one slice are minus infinity.
pub fn kl_from_logits(p: &[f32], q: &[f32]) -> f64 {
    kl_with_norm(p, q, log_sum_exp(q))
}

/// Returns the Kullback-Leibler divergence `Σ P log(P / Q)` in nats, for `P = softmax(p)` and `Q = softmax(q)`, with a given `norm_q`. This
/// must be [`log_sum_exp`] of `q`; a caller that compares `q` with several `p` computes it once. A wrong `norm_q` gives no error: the
/// result is too large by as much as `norm_q` is.
///
/// The result is 0 if a slice is empty. If `p` is longer than `q`, the logits of `p` after the length of `q` are ignored. If `p` is
/// shorter, its missing logits count as minus infinity. Logits that are not finite give the results that [`kl_from_logits`] lists.
///
/// A result that is below 0 by a rounding error is returned as 0. A result that is further below 0, which only a wrong `norm_q` gives, is
/// returned as it is.
pub fn kl_with_norm(p: &[f32], q: &[f32], norm_q: f64) -> f64 {
    kl_and_confidence(p, q, norm_q).0
}

/// Returns [`kl_with_norm`] of the same arguments, and the largest probability in `P = softmax(p)`: 0 if a slice is empty, NaN where the
/// divergence is. The probability is a by-product: the two together take the time of the divergence.
///
/// ```
/// let (p, q) = ([0.0f32, 3f32.ln()], [0.0f32, 0.0]);
/// let (kl, confidence) = tersor_core::metrics::kl_and_confidence(&p, &q, 2f64.ln());
/// assert!((kl - 0.1308).abs() < 1e-4 && (confidence - 0.75).abs() < 1e-6);
/// ```
pub fn kl_and_confidence(p: &[f32], q: &[f32], norm_q: f64) -> (f64, f64) {
    if p.is_empty() || q.is_empty() {
        return (0.0, 0.0);
    }
    let p = &p[..p.len().min(q.len())];
    let max = f64::from(largest(p));
    let (mut sum, mut differences) = (0f64, 0f64);
    let mut nan = false;
    for (&a, &b) in p.iter().zip(q) {
        // The maximum and the comparison below ignore NaN.
        nan |= a.is_nan() | b.is_nan();
        let e = (f64::from(a) - max).exp();
        if e > 0.0 {
            sum += e;
            differences += e * (f64::from(a) - f64::from(b));
        }
    }
    if nan {
        return (f64::NAN, f64::NAN);
    }
    // Σ p (a - zp - b + zq)
    let (difference, norm_p) = (differences / sum, max + sum.ln());
    let kl = difference - norm_p + norm_q;
    let rounding = 1e-9 * (1.0 + difference.abs() + norm_p.abs() + norm_q.abs());
    // The largest logit contributes 1 to the sum.
    (if kl < 0.0 && kl >= -rounding { 0.0 } else { kl }, 1.0 / sum)
}

/// Returns the Kullback-Leibler divergence in nats, `Σ P log(P / Q)`, for `P = softmax(p)` and `Q = softmax(q)`, after a check of the
/// logits `p` and `q`. The result is 0 for two empty slices. It is infinity if `q` is minus infinity at an index where the probability in
/// `P` is above 0 in f64.
///
/// Errors with [`Error::Shape`] if the lengths differ. Errors with an [`Error::Tensor`] that names the slice (`logits p` or `logits q`) if
/// a logit is NaN or plus infinity, or if all logits of the slice are minus infinity. In the first case it holds an [`Error::NonFinite`]
/// with row 0 and the index of the logit as its column, in the second an [`Error::Numerical`]. Errors with [`Error::Numerical`] if the
/// result is NaN.
pub fn kl_checked(p: &[f32], q: &[f32]) -> Result<f64> {
    if p.len() != q.len() {
        return Err(Error::shape("logits q", p.len(), q.len()));
    }
    for (name, x) in [("logits p", p), ("logits q", q)] {
        if let Some(col) = x.iter().position(|v| v.is_nan() || *v == f32::INFINITY) {
            return Err(Error::NonFinite { row: 0, col, value: x[col] }.in_tensor(name));
        }
        if !x.is_empty() && x.iter().all(|v| *v == f32::NEG_INFINITY) {
            return Err(Error::Numerical("every logit is minus infinity".into()).in_tensor(name));
        }
    }
    let kl = kl_from_logits(p, q);
    if kl.is_nan() { Err(Error::Numerical("the divergence of the logits is not a number".into())) } else { Ok(kl) }
}

/// Returns the index of the largest value, counted from 0, the lowest one of equal values; 0 for an empty slice. A NaN is skipped, except
/// at index 0, where it makes the result 0.
pub fn argmax(x: &[f32]) -> usize {
    if x.first().is_none_or(|v| v.is_nan()) {
        return 0;
    }
    let max = largest(x);
    x.iter().position(|v| *v == max).unwrap_or(0)
}

/// Returns the largest value that is not NaN; minus infinity if there is none. Of zeros of both signs, either may be returned.
fn largest(x: &[f32]) -> f32 {
    /// Independent maxima, so that one comparison need not wait for the one before.
    const LANES: usize = 32;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut blocks = x.chunks_exact(LANES);
    for block in &mut blocks {
        for (max, v) in lanes.iter_mut().zip(block) {
            *max = if *v > *max { *v } else { *max };
        }
    }
    lanes.iter().chain(blocks.remainder()).fold(f32::NEG_INFINITY, |max, v| if *v > max { *v } else { max })
}

/// Returns the nearest-rank quantile of values in ascending order: the smallest value such that at least the share `share`, 0 to 1, of all
/// values is not above it, `sorted[ceil(share * n) - 1]`; the first value for a share of 0. None if there is no value. The quantile of 0.5 is
/// the median, of an even number of values the lower one of the middle two.
///
/// ```
/// use tersor_core::metrics::nearest_rank;
/// let sorted = [1.0, 2.0, 3.0, 4.0];
/// assert_eq!((nearest_rank(&sorted, 0.5), nearest_rank(&sorted, 0.9)), (Some(2.0), Some(4.0)));
/// assert_eq!(nearest_rank(&[], 0.5), None);
/// ```
pub fn nearest_rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
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

    #[test]
    fn largest_values_and_quantiles_are_those_of_a_plain_search() {
        let plain = |x: &[f32]| (1..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best });
        let specials = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        for n in 0..100usize {
            for round in 0..20usize {
                let value = |i: usize| match (i * 7919 + round * 104_729) % 31 {
                    k if k < round.min(5) => specials[k],
                    k => (k % 11) as f32 - 15.0,
                };
                let x: Vec<f32> = (0..n).map(value).collect();
                assert_eq!(argmax(&x), plain(&x), "{x:?}");
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(largest(&x), max, "{x:?}");
                let mut sorted: Vec<f64> = x.iter().filter(|v| !v.is_nan()).map(|v| f64::from(*v)).collect();
                sorted.sort_by(f64::total_cmp);
                for share in [0.0, 0.1, 0.5, 0.9, 1.0] {
                    // The first value that enough values are not above.
                    let enough =
                        |v: &&f64| sorted.iter().filter(|w| *w <= *v).count() as f64 >= share * sorted.len() as f64;
                    assert_eq!(nearest_rank(&sorted, share), sorted.iter().find(enough).copied());
                }
            }
        }
    }

    #[test]
    fn nan_logits_give_nan_and_never_zero() {
        const NAN: f32 = f32::NAN;
        const INF: f32 = f32::INFINITY;
        let sound = [0.5f32, -1.0, 2.0];
        for at in 0..3 {
            let mut bad = sound;
            bad[at] = NAN;
            assert!(log_sum_exp(&bad).is_nan());
            assert!(kl_from_logits(&bad, &sound).is_nan(), "NaN at {at} of p");
            assert!(kl_from_logits(&sound, &bad).is_nan(), "NaN at {at} of q");
            assert!(kl_from_logits(&bad, &bad).is_nan());
            assert!(kl_with_norm(&sound, &bad, log_sum_exp(&sound)).is_nan(), "NaN of q that the norm does not show");
        }
        assert!(kl_with_norm(&sound, &sound, f64::NAN).is_nan());
        assert!(kl_from_logits(&[NAN; 3], &[NAN; 3]).is_nan() && log_sum_exp(&[NAN, INF]).is_nan());
        // Also where the probability in p is 0.
        assert!(kl_with_norm(&[0.0, -INF], &[0.0, NAN], 0.0).is_nan());
        // Plus infinity has no softmax.
        assert!(kl_from_logits(&[INF, 0.0], &[0.0, 0.0]).is_nan() && kl_from_logits(&[0.0, 0.0], &[INF, 0.0]).is_nan());
        // Valid logits are unaffected.
        assert_eq!(kl_from_logits(&[], &[]), 0.0);
        assert_eq!(kl_from_logits(&[0.0, 0.0], &[0.0, -INF]), f64::INFINITY);
    }

    #[test]
    fn rounding_below_zero_is_zero_and_a_wrong_norm_shows() {
        let p: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.31 - 9.0).collect();
        for scale in [1.0, 100.0, 1e6] {
            let p: Vec<f32> = p.iter().map(|v| v * scale).collect();
            assert_eq!(kl_from_logits(&p, &p), 0.0);
            let near: Vec<f32> = p.iter().map(|v| v + 1e-7).collect();
            let kl = kl_from_logits(&p, &near);
            assert!((0.0..1e-6).contains(&kl), "{kl}");
        }
        let wrong = kl_with_norm(&p, &p, log_sum_exp(&p) - 1.0);
        assert!((wrong + 1.0).abs() < 1e-9, "{wrong}");
    }

    #[test]
    fn checked_divergence_names_the_logit() {
        const INF: f32 = f32::INFINITY;
        let (p, q) = ([0.0f32, 3f32.ln()], [0.0f32, 0.0]);
        assert_eq!(kl_checked(&p, &q).unwrap(), kl_from_logits(&p, &q));
        assert_eq!(kl_checked(&[0.0, -INF], &[1.0, -INF]).unwrap(), 0.0);
        assert_eq!(kl_checked(&[0.0, 0.0], &[0.0, -INF]).unwrap(), INF.into());
        assert_eq!(kl_checked(&[], &[]).unwrap(), 0.0);
        assert!(matches!(kl_checked(&p, &[0.0]), Err(Error::Shape { .. })));
        for bad in [f32::NAN, INF] {
            for (e, name) in [(kl_checked(&[0.0, bad], &q), "logits p"), (kl_checked(&p, &[0.0, bad]), "logits q")] {
                let Err(Error::Tensor { tensor, source }) = e else { panic!("{e:?}") };
                assert_eq!(tensor, name);
                assert!(matches!(*source, Error::NonFinite { row: 0, col: 1, .. }), "{source}");
            }
        }
        assert!(kl_checked(&[-INF; 2], &q).is_err() && kl_checked(&p, &[-INF; 2]).is_err());
    }
}
