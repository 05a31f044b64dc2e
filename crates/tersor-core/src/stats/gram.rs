//! Preparation and checks of Gram matrices.

use std::borrow::Cow;

use super::weights::Weights;
use crate::{Error, Result};

/// Tokens whose products the kernel sums in f32 before they are added to the f64 sums.
const F32_TOKENS: usize = 512;

/// Returns the batch whose Gram matrix is `Σ w x xᵀ`: rows times the root of their weights. The product is computed in f64 and rounded to
/// f32 once, so a value is off by a relative `2^-24` at most (above the smallest normal f32) and is exact for a weight of 1.
///
/// Weights on one of the two factors, `(w x) xᵀ`, would round once less, but the kernel multiplies one matrix with itself, which makes its
/// result exactly symmetric.
///
/// Errors if a value exceeds f32, or the sum of squares of a feature over 512 tokens does.
pub(super) fn batch<'x>(x: &'x [f32], k: usize, weights: Weights<'_>) -> Result<Cow<'x, [f32]>> {
    let Some(weights) = weights.other_than_1() else {
        check_range(x, k)?;
        return Ok(Cow::Borrowed(x));
    };
    let mut scaled = Vec::with_capacity(x.len());
    for (row, w) in x.chunks_exact(k).zip(weights) {
        let root = f64::from(*w).sqrt();
        scaled.extend(row.iter().map(|v| (root * f64::from(*v)) as f32));
    }
    if let Some(i) = scaled.iter().position(|v| !v.is_finite()) {
        let (t, w) = (i / k, weights[i / k]);
        let what = format!(
            "feature {} of token {t} times the root of its weight {w:e} is too large for f32; scale inputs or weights down",
            i % k
        );
        return Err(Error::Numerical(what));
    }
    check_range(&scaled, k)?;
    Ok(Cow::Owned(scaled))
}

/// Errors if sums of squares would exceed f32 inside of the kernel: the Gram matrix would become infinite. Products of two features are no
/// larger than the squares of one of them.
fn check_range(x: &[f32], k: usize) -> Result<()> {
    // Magnitudes of finite values are ordered as their bits.
    let max = f32::from_bits(x.iter().fold(0, |m, v| v.abs().to_bits().max(m)));
    // The kernel's own rounding is far below this margin.
    let limit = f64::from(f32::MAX) * (1.0 - 1e-4);
    if f64::from(max).powi(2) * F32_TOKENS as f64 <= limit {
        return Ok(());
    }
    for (block, rows) in x.chunks(F32_TOKENS * k).enumerate() {
        let mut squares = vec![0f64; k];
        for row in rows.chunks_exact(k) {
            squares.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v).powi(2));
        }
        if let Some(i) = squares.iter().position(|s| *s > limit) {
            let (first, sum) = (block * F32_TOKENS, squares[i]);
            let what = format!(
                "the squares of feature {i} over tokens {first} to {} sum to {sum:e}, too large for f32; scale the inputs down",
                first + rows.len() / k - 1
            );
            return Err(Error::Numerical(what));
        }
    }
    Ok(())
}

/// Errors unless a matrix `[k, k]` can be a sum of products `x xᵀ`: finite, symmetric to rounding, no negative value on the diagonal.
pub(super) fn check(gram: &[f64], k: usize) -> Result<()> {
    if let Some(i) = gram.iter().position(|v| !v.is_finite()) {
        return Err(Error::NonFinite { row: i / k, col: i % k, value: gram[i] as f32 });
    }
    for r in 0..k {
        let own = gram[r * k + r];
        if own < 0.0 {
            return Err(Error::Numerical(format!(
                "the Gram matrix has {own:e} on its diagonal at {r}; a sum of squares cannot be negative"
            )));
        }
        for c in 0..r {
            let (a, b) = (gram[r * k + c], gram[c * k + r]);
            let scale = a.abs().max(b.abs()).max((own * gram[c * k + c]).abs().sqrt());
            if (a - b).abs() > 1e-6 * scale {
                let what = format!(
                    "the Gram matrix is not symmetric: {a:e} at row {r}, column {c}, and {b:e} across the diagonal"
                );
                return Err(Error::Numerical(what));
            }
        }
    }
    Ok(())
}
