//! Sums, norms, rotary embedding and activation functions of f32 vectors.
//!
//! Every loop is written once and compiled for each instruction set. Sums run in 32 interleaved lanes that are added pairwise at the end,
//! and fused multiply-adds are explicit, so results have the same bits on every instruction set.
//!
//! ```
//! use tersor_kernels::{Isa, vector};
//! let isa = Isa::detect();
//! assert_eq!(vector::dot(isa, &[1.0, 2.0], &[3.0, 4.0]), 11.0);
//! let mut x = [0.0f32, 0.0, f32::NEG_INFINITY];
//! assert_eq!(vector::softmax(isa, &mut x), [0.0, 2.0]);
//! assert_eq!(x[..2], [0.5, 0.5]);
//! ```

use crate::Isa;
use crate::isa::versions;

versions! {
    /// Returns the dot product `Σ a[i] * b[i]` in f32. If the slices differ in length, only the elements that both have count; 0 if there
    /// are none. The order of the additions is fixed, so that every instruction set gives the same bits.
    #[must_use]
    pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let ((a, ta), (b, tb)) = (a[..n].as_chunks::<32>(), b[..n].as_chunks::<32>());
        let mut lanes = [0f32; 32];
        for (a, b) in a.iter().zip(b) {
            for i in 0..32 {
                lanes[i] = a[i].mul_add(b[i], lanes[i]);
            }
        }
        ta.iter().zip(tb).fold(reduce(lanes), |sum, (&a, &b)| a.mul_add(b, sum))
    }

    /// Adds `c * x[i]` to `y[i]` by fused multiply-add. Works on as many elements as the shorter of `x` and `y` has; later elements of `y`
    /// are unchanged.
    pub fn axpy(isa: Isa, c: f32, x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = c.mul_add(x, *y));
    }

    /// Multiplies every value of `x` by `c` in place.
    pub fn scale(isa: Isa, c: f32, x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v *= c);
    }

    /// RMSNorm (arXiv 1910.07467): writes `x / sqrt(mean(x²) + eps) * weight` to `out` for each row of `x`. `x` and `out` are `[rows, n]`,
    /// row-major, and `weight` is `[n]`. Works on as many whole rows as the shorter of `x` and `out` has; later values of `out` are
    /// unchanged.
    pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len().max(1);
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let (whole, rest) = x.as_chunks::<32>();
            let mut lanes = [0f32; 32];
            for x in whole {
                for i in 0..32 {
                    lanes[i] = x[i].mul_add(x[i], lanes[i]);
                }
            }
            let square = rest.iter().fold(reduce(lanes), |sum, v| v.mul_add(*v, sum));
            let scale = (square / n as f32 + eps).sqrt().recip();
            out.iter_mut().zip(x).zip(weight).for_each(|((o, v), w)| *o = v * scale * w);
        }
    }

    /// LayerNorm (arXiv 1607.06450): replaces each row of `x` in place by `(x - mean) / sqrt(variance + eps) * weight + bias`, with the
    /// mean and the variance (the mean of squared deviations) of the row. `x` is `[rows, n]`, row-major, and `weight` and `bias` are `[n]`,
    /// where `n` is `weight.len()`. If `bias` is shorter, the values of each row from index `bias.len()` on are unchanged; if it is longer,
    /// the rest of it is ignored. Values of `x` after the last whole row are unchanged.
    pub fn layer_norm(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let n = weight.len().max(1);
        for x in x.chunks_exact_mut(n) {
            let (mut sums, mut squares) = ([0f32; 32], [0f32; 32]);
            let (whole, rest) = x.as_chunks::<32>();
            for x in whole {
                for i in 0..32 {
                    sums[i] += x[i];
                }
            }
            let mean = (reduce(sums) + rest.iter().sum::<f32>()) / n as f32;
            for x in whole {
                for i in 0..32 {
                    squares[i] = (x[i] - mean).mul_add(x[i] - mean, squares[i]);
                }
            }
            let square = rest.iter().fold(reduce(squares), |sum, v| (v - mean).mul_add(v - mean, sum));
            let scale = (square / n as f32 + eps).sqrt().recip();
            x.iter_mut().zip(weight).zip(bias).for_each(|((v, w), b)| *v = (*v - mean) * scale * w + b);
        }
    }

    /// Rotary position embedding (RoPE, arXiv 2104.09864), in place: rotates every row of `x` by the same angles. `x` is `[rows, 2 * n]`,
    /// row-major, for example the heads of one token; `cos` and `sin` are `[n]`, where `n` is `cos.len()`. The pair of value `i` of the
    /// first half of a row and value `i` of its second half is rotated by the angle with cosine `cos[i]` and sine `sin[i]`: the layout of
    /// Hugging Face (`rotate_half`). If `sin` is shorter, the pairs from index `sin.len()` on are unchanged; if it is longer, the rest of
    /// it is ignored. Values of `x` after the last whole row are unchanged.
    pub fn apply_rotary(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = cos.len();
        for row in x.chunks_exact_mut((2 * half).max(1)) {
            let (a, b) = row.split_at_mut(half);
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }

    /// Replaces the row `x` in place by its softmax. Returns `[m, Σ exp(x[i] - m)]`, where `m` is the maximum of the row; with these two
    /// numbers the softmax of a longer row can be put together from those of its parts. Returns `[-∞, 0]` for an empty row. Values of more
    /// than 87.3 below the maximum, -∞ included, count as 87.3 below it; a row with a NaN or +∞, or of -∞ only, becomes NaN.
    pub fn softmax(isa: Isa, x: &mut [f32]) -> [f32; 2] {
        let (whole, rest) = x.as_chunks::<32>();
        let mut max = [f32::NEG_INFINITY; 32];
        for x in whole {
            for i in 0..32 {
                max[i] = if x[i] > max[i] { x[i] } else { max[i] };
            }
        }
        let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        let mut lanes = [0f32; 32];
        let (whole, rest) = x.as_chunks_mut::<32>();
        for x in whole {
            for i in 0..32 {
                x[i] = exp(x[i] - max);
                lanes[i] += x[i];
            }
        }
        let mut sum = reduce(lanes);
        for v in rest {
            *v = exp(*v - max);
            sum += *v;
        }
        let scale = sum.recip();
        x.iter_mut().for_each(|v| *v *= scale);
        [max, sum]
    }

    /// The gate of SwiGLU (arXiv 2002.05202), in place: `g[i] = silu(g[i]) * u[i]` with `silu(x) = x / (1 + exp(-x))`. Works on as many
    /// values as the shorter of `g` and `u` has; later values of `g` are unchanged.
    pub fn gated_silu(isa: Isa, g: &mut [f32], u: &[f32]) {
        g.iter_mut().zip(u).for_each(|(g, u)| *g = *g / (1.0 + exp(-*g)) * u);
    }

    /// GELU (arXiv 1606.08415), in place: replaces each value `x` by `x (1 + erf(x / √2)) / 2`, with an error of `erf` of at most 5e-7.
    pub fn gelu(isa: Isa, x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v = 0.5 * *v * (1.0 + erf(*v * std::f32::consts::FRAC_1_SQRT_2)));
    }

    /// The approximation of GELU by the hyperbolic tangent (arXiv 1606.08415, section 2), in place: replaces each value `x` by
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
    pub fn gelu_tanh(isa: Isa, x: &mut [f32]) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        for v in x {
            // (1 + tanh(y)) / 2 = 1 / (1 + e^-2y)
            let y = SQRT_2_OVER_PI * (*v + 0.044715 * *v * *v * *v);
            *v /= 1.0 + exp(-2.0 * y);
        }
    }
}

/// Returns the sum of 32 lanes, added in halves: 16 + 16, 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline(always)]
fn reduce(mut lanes: [f32; 32]) -> f32 {
    let mut width = 16;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Returns `e^x` for `x` from -87.3 to 88, within 2 units in the last place and with the same bits on every instruction set. A smaller `x`
/// counts as -87.3 and a larger one as 88, so that the result is never 0 or infinite; a NaN gives NaN.
#[must_use]
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // In this order of comparisons a NaN stays a NaN.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // x = n ln 2 + r, |r| <= ln 2 / 2: adding 1.5 * 2^23 leaves n in the lowest bits.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    // The Taylor series with its last terms fitted to the interval.
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let value = (p * r).mul_add(r, r) + 1.0;
    // 2^n by its exponent: n + 127 is 1 to 254.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    value * power
}

/// Returns the error function of `x`, within 5e-7: an odd rational function on -4..=4, constant outside.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let s = x * x;
    let p = -2.726_142_3e-10f32;
    let p = p.mul_add(s, 2.770_681_4e-8);
    let p = p.mul_add(s, -2.101_024e-6);
    let p = p.mul_add(s, -5.692_506_4e-5);
    let p = p.mul_add(s, -7.349_906_3e-4);
    let p = p.mul_add(s, -2.954_6e-3);
    let p = p.mul_add(s, -1.609_603_3e-2);
    let q = -1.456_606_6e-5f32;
    let q = q.mul_add(s, -2.133_740_6e-4);
    let q = q.mul_add(s, -1.682_827e-3);
    let q = q.mul_add(s, -7.373_329e-3);
    let q = q.mul_add(s, -1.426_473_9e-2);
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_level_gives_the_same_bits(x in prop::collection::vec(-10f32..10.0, 0..300), c in -2f32..2.0) {
            let y: Vec<f32> = x.iter().rev().map(|v| v * 0.37 + 1.0).collect();
            let n = x.len() / 2;
            let changed = |isa: Isa| -> Vec<Vec<f32>> {
                let run = |f: &dyn Fn(&mut [f32])| { let mut v = x.clone(); f(&mut v); v };
                vec![
                    vec![dot(isa, &x, &y)],
                    run(&|v| axpy(isa, c, &y, v)),
                    run(&|v| scale(isa, c, v)),
                    run(&|v| rms_norm(isa, &x, &y[..n.max(1).min(y.len())], 1e-5, v)),
                    run(&|v| layer_norm(isa, v, &y[..n], &y[..n], 1e-5)),
                    run(&|v| apply_rotary(isa, v, &y[..n / 2], &y[n..n + n / 2])),
                    run(&|v| { softmax(isa, v); }),
                    run(&|v| gated_silu(isa, v, &y)),
                    run(&|v| gelu(isa, v)),
                    run(&|v| gelu_tanh(isa, v)),
                ]
            };
            let bits = |v: Vec<Vec<f32>>| -> Vec<u32> { v.concat().iter().map(|v| v.to_bits()).collect() };
            prop_assert_eq!(bits(changed(Isa::detect())), bits(changed(Isa::SCALAR)));
        }

        #[test]
        fn values_are_those_of_f64(x in prop::collection::vec(-30f32..30.0, 1..300)) {
            let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let isa = Isa::detect();
            let close = |got: &[f32], want: &dyn Fn(usize) -> f64, tolerance: f64| {
                got.iter().enumerate().all(|(i, v)| (f64::from(*v) - want(i)).abs() <= tolerance * (1e-3 + want(i).abs()))
            };
            let max = wide.iter().fold(f64::MIN, |m, v| m.max(*v));
            let sum: f64 = wide.iter().map(|v| (v - max).exp()).sum();
            let mut got = x.clone();
            let [found, total] = softmax(isa, &mut got);
            prop_assert!(f64::from(found) == max && (f64::from(total) / sum - 1.0).abs() < 1e-5);
            prop_assert!(close(&got, &|i| (wide[i] - max).exp() / sum, 2e-6));
            let mut got = x.clone();
            gated_silu(isa, &mut got, &vec![1.0; x.len()]);
            prop_assert!(close(&got, &|i| wide[i] / (1.0 + (-wide[i]).exp()), 1e-6));
            let mut got = x.clone();
            gelu(isa, &mut got);
            let exact = |i: usize| 0.5 * wide[i] * (1.0 + libm::erf(wide[i] * std::f64::consts::FRAC_1_SQRT_2));
            prop_assert!(got.iter().enumerate().all(|(i, v)| (f64::from(*v) - exact(i)).abs() <= 5e-7 * (1.0 + wide[i].abs())));
            let mut got = x.clone();
            gelu_tanh(isa, &mut got);
            let exact = |i: usize| {
                let v = wide[i];
                0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh())
            };
            prop_assert!(got.iter().enumerate().all(|(i, v)| (f64::from(*v) - exact(i)).abs() <= 1e-6 * (1.0 + wide[i].abs())));
            let square: f64 = wide.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let mut got = vec![0f32; x.len()];
            rms_norm(isa, &x, &vec![1.0; x.len()], 1e-5, &mut got);
            prop_assert!(close(&got, &|i| wide[i] / (square + 1e-5).sqrt(), 1e-6));
            let exact: f64 = wide.iter().map(|v| v * v).sum();
            prop_assert!((f64::from(dot(isa, &x, &x)) - exact).abs() <= 1e-6 * (1.0 + exact));
        }
    }

    #[test]
    fn the_exponential_is_within_two_units_and_saturates() {
        for i in (-87_000..88_000).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let x = i as f32 / 1000.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 2.0 * f64::from(f32::EPSILON) * want, "{x}: {got} for {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp(-1e30) < 1.3e-38 && exp(1e30) > 1e38 && exp(1e30).is_finite());
        for i in (-5000..5000).step_by(if cfg!(miri) { 97 } else { 1 }) {
            let x = i as f32 / 1000.0;
            assert!((f64::from(erf(x)) - libm::erf(f64::from(x))).abs() < 5e-7, "{x}");
        }
    }
}
