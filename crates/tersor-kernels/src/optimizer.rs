//! Loops of optimizers: the update of the moments by a gradient, and the direction `u` of the step. Products are not fused with sums, so
//! that every instruction set gives the same bits. All functions work over the shortest of their slices.
//!
//! ```
//! use tersor_kernels::{Isa, optimizer};
//! let (isa, g) = (Isa::detect(), [1.0f32, -4.0]);
//! let (mut m, mut u, mut p) = ([0f32; 2], [0f32; 2], [1f32; 2]);
//! // The first step of momentum has the direction of the gradient.
//! optimizer::momentum(isa, 0.9, true, false, &g, &mut m, &mut u);
//! optimizer::advance(isa, &u, 0.25, 1.0, 1.0, &mut p);
//! assert_eq!(p, [0.75, 2.0]);
//! ```

use crate::Isa;
use crate::isa::versions;

/// The hyperparameters of [`adam`] and [`ademamix`] at one step `t`, counted from 1, with the bias corrections of that step. Any values are
/// accepted and used in the formulas as they are: a correction of 0, for example, gives infinities or NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adam {
    /// The decay rate `β1` of Adam's mean of gradients, for example 0.9.
    pub beta1: f32,
    /// The decay rate `β2` of Adam's mean of squared gradients, for example 0.999.
    pub beta2: f32,
    /// Adam's `ε`, added to the square root of the bias-corrected mean of squared gradients.
    pub eps: f32,
    /// Adam's bias correction of the mean of gradients, `1 - β1^t` at step `t`, by which the mean is divided; 1 for none.
    pub correction1: f32,
    /// The square root of Adam's bias correction of the mean of squared gradients, `sqrt(1 - β2^t)` at step `t`, by which the root of that
    /// mean is divided; 1 for none.
    pub correction2: f32,
}

/// The hyperparameters that [`ademamix`] (arXiv 2409.03137) has in addition to those of [`Adam`]: the decay rate `β3` of the slow mean of
/// gradients and its factor `α` in the direction of the step. Both follow schedules; these are their values at one step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SlowMean {
    /// The decay rate `β3` of the slow mean of gradients of AdEMAMix.
    pub beta3: f32,
    /// The factor `α` by which AdEMAMix multiplies the slow mean of gradients before it adds it to the bias-corrected fast mean. It should be
    /// finite and at least 0; the loops compute with any number.
    pub alpha: f32,
}

versions! {
    /// Writes the gradient that an optimizer uses, `out[i] = g[i] * scale + decay * p[i]`: `scale` clips or unscales the gradient `g`, and
    /// `decay` is the factor of L2 weight decay of the parameters `p`. If `decay` is 0, the values of `p` have no effect, even if they are
    /// NaN. Works on as many elements as the shortest slice has; later elements are unchanged.
    pub fn effective(isa: Isa, g: &[f32], scale: f32, p: &[f32], decay: f32, out: &mut [f32]) {
        let n = g.len().min(p.len()).min(out.len());
        let (g, p, out) = (&g[..n], &p[..n], &mut out[..n]);
        if decay == 0.0 {
            (0..n).for_each(|i| out[i] = g[i] * scale);
        } else {
            (0..n).for_each(|i| out[i] = g[i] * scale + decay * p[i]);
        }
    }

    /// Adam (arXiv 1412.6980) with the hyperparameters `k`: updates the mean of gradients `m` and the mean of squared gradients `v` in
    /// place by the gradient `g`, and writes the direction of the step, `u = (m / k.correction1) / (sqrt(v) / k.correction2 + k.eps)`,
    /// where `k.correction1` is usually `1 - k.beta1^t` and `k.correction2` `sqrt(1 - k.beta2^t)` at step `t`; [`advance`] moves the
    /// parameters against it. Works on as many elements as the shortest slice has; later elements are unchanged.
    pub fn adam(isa: Isa, k: Adam, g: &[f32], m: &mut [f32], v: &mut [f32], u: &mut [f32]) {
        let n = g.len().min(m.len()).min(v.len()).min(u.len());
        let (g, m, v, u) = (&g[..n], &mut m[..n], &mut v[..n], &mut u[..n]);
        let (rest1, rest2) = (1.0 - k.beta1, 1.0 - k.beta2);
        let (factor, eps) = (k.correction2 / k.correction1, k.eps * k.correction2);
        for i in 0..n {
            m[i] = k.beta1 * m[i] + rest1 * g[i];
            v[i] = k.beta2 * v[i] + rest2 * (g[i] * g[i]);
            u[i] = factor * (m[i] / (v[i].sqrt() + eps));
        }
    }

    /// AdEMAMix (arXiv 2409.03137): updates the fast mean of gradients `means[0]` (by `k.beta1`), the slow mean `means[1]` (by
    /// `slow.beta3`) and the mean of squared gradients `v` in place by the gradient `g`, and writes the direction of the step,
    /// `u = (means[0] / k.correction1 + slow.alpha * means[1]) / (sqrt(v) / k.correction2 + k.eps)`, where `k.correction1` is usually
    /// `1 - k.beta1^t` and `k.correction2` `sqrt(1 - k.beta2^t)` at step `t`; [`advance`] moves the parameters against it. Works on as many
    /// elements as the shortest slice has; later elements are unchanged.
    pub fn ademamix(isa: Isa, k: Adam, slow: SlowMean, g: &[f32], means: [&mut [f32]; 2], v: &mut [f32], u: &mut [f32]) {
        let [m, s] = means;
        let n = g.len().min(m.len()).min(s.len()).min(v.len()).min(u.len());
        let (g, m, s, v, u) = (&g[..n], &mut m[..n], &mut s[..n], &mut v[..n], &mut u[..n]);
        let (rest1, rest2, rest3) = (1.0 - k.beta1, 1.0 - k.beta2, 1.0 - slow.beta3);
        for i in 0..n {
            m[i] = k.beta1 * m[i] + rest1 * g[i];
            s[i] = slow.beta3 * s[i] + rest3 * g[i];
            v[i] = k.beta2 * v[i] + rest2 * (g[i] * g[i]);
            u[i] = (m[i] / k.correction1 + slow.alpha * s[i]) / (v[i].sqrt() / k.correction2 + k.eps);
        }
    }

    /// SGD with momentum: updates the momentum in place, `m = beta * m + g` for the gradient `g`, and writes the direction of the step:
    /// `u = m`, or `u = g + beta * m` with `nesterov`; [`advance`] moves the parameters against it. At the `first` step the old values of
    /// `m` do not count: `m = g`. Works on as many elements as the shortest slice has; later elements are unchanged.
    pub fn momentum(isa: Isa, beta: f32, first: bool, nesterov: bool, g: &[f32], m: &mut [f32], u: &mut [f32]) {
        let n = g.len().min(m.len()).min(u.len());
        let (g, m, u) = (&g[..n], &mut m[..n], &mut u[..n]);
        let (decay, ahead, own) = if nesterov { (beta, beta, 1.0) } else { (beta, 1.0, 0.0) };
        for i in 0..n {
            let old = if first { 0.0 } else { m[i] };
            m[i] = decay * old + g[i];
            u[i] = own * g[i] + ahead * m[i];
        }
    }

    /// Lion (arXiv 2302.06675): writes the direction of the step, `u = sign(beta1 * m + (1 - beta1) * g)` with values -1, 0 and 1, then
    /// updates the momentum in place, `m = beta2 * m + (1 - beta2) * g`, for the gradient `g`; [`advance`] moves the parameters against
    /// `u`. Works on as many elements as the shortest slice has; later elements are unchanged.
    pub fn lion(isa: Isa, beta1: f32, beta2: f32, g: &[f32], m: &mut [f32], u: &mut [f32]) {
        let n = g.len().min(m.len()).min(u.len());
        let (g, m, u) = (&g[..n], &mut m[..n], &mut u[..n]);
        let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
        for i in 0..n {
            let c = beta1 * m[i] + rest1 * g[i];
            u[i] = f32::from(u8::from(c > 0.0)) - f32::from(u8::from(c < 0.0));
            m[i] = beta2 * m[i] + rest2 * g[i];
        }
    }

    /// RMSProp and Adagrad: updates a running sum of squared gradients in place, `s = decay * s + new * g²` for the gradient `g`, and
    /// writes the direction of the step, `u = g / (sqrt(s) + eps)`; [`advance`] moves the parameters against it. RMSProp has
    /// `new = 1 - decay`; Adagrad (JMLR 12, 2011) has 1 for both factors. Works on as many elements as the shortest slice has; later
    /// elements are unchanged.
    pub fn scaled(isa: Isa, decay: f32, new: f32, eps: f32, g: &[f32], s: &mut [f32], u: &mut [f32]) {
        let n = g.len().min(s.len()).min(u.len());
        let (g, s, u) = (&g[..n], &mut s[..n], &mut u[..n]);
        for i in 0..n {
            s[i] = decay * s[i] + new * (g[i] * g[i]);
            u[i] = g[i] / (s[i].sqrt() + eps);
        }
    }

    /// Moves the parameters `p` in place against the direction `u`: `p = (p * before - step * u) * after`, where `step` is the learning
    /// rate. `before` and `after` are factors of decoupled weight decay, before and after the step; 1 for none. Works on as many elements
    /// as the shorter of `u` and `p` has; later elements are unchanged.
    pub fn advance(isa: Isa, u: &[f32], step: f32, before: f32, after: f32, p: &mut [f32]) {
        p.iter_mut().zip(u).for_each(|(p, u)| *p = (*p * before - step * u) * after);
    }

    /// Sets `new[i]` back to `old[i]` wherever the gradient `g[i]` is 0, as if the step had left out that parameter. Works on as many
    /// elements as the shortest slice has; later elements are unchanged.
    pub fn restore(isa: Isa, g: &[f32], old: &[f32], new: &mut [f32]) {
        for ((new, old), g) in new.iter_mut().zip(old).zip(g) {
            *new = if *g == 0.0 { *old } else { *new };
        }
    }

    /// Lowers a code by one where it is equal to `zero`, the code of the value 0, and `x[i]` is negative, so that no negative value
    /// dequantizes to 0. If `zero` is 0, there is no lower code, and the codes are unchanged. Works on as many elements as the shorter of
    /// `x` and `codes` has.
    pub fn keep_signs(isa: Isa, x: &[f32], zero: u8, codes: &mut [u8]) {
        codes.iter_mut().zip(x).for_each(|(c, x)| *c = c.saturating_sub(u8::from(*x < 0.0) & u8::from(*c == zero)));
    }
}

/// Returns `Σ x[i]²`, computed in f64 in an order that is the same on every processor; 0 for an empty slice.
#[must_use]
pub fn sum_squares(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for x in whole {
        for i in 0..8 {
            lanes[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|v| f64::from(*v) * f64::from(*v))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Slices<'a> = [&'a mut [f32]; 4];

    /// Every loop on the same values; everything they write.
    fn all(isa: Isa, x: &[f32]) -> Vec<u32> {
        let g: Vec<f32> = x.iter().map(|v| v * 0.37 - 0.1).collect();
        let k = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, correction1: 0.3, correction2: 0.2 };
        let slow = SlowMean { beta3: 0.999, alpha: 5.0 };
        let mut out = Vec::new();
        let mut run = |f: &dyn Fn(Slices<'_>)| {
            let mut slots = [x.to_vec(), x.to_vec(), x.iter().map(|v| v * v).collect(), x.to_vec()];
            let [a, b, c, d] = &mut slots;
            f([a, b, c, d]);
            out.extend(slots.iter().flatten().map(|v| v.to_bits()));
        };
        run(&|[a, _, _, u]| effective(isa, &g, 0.3, a, 0.0, u));
        run(&|[a, _, _, u]| effective(isa, &g, 0.3, a, 0.1, u));
        run(&|[m, _, v, u]| adam(isa, k, &g, m, v, u));
        run(&|[m, s, v, u]| ademamix(isa, k, slow, &g, [m, s], v, u));
        for (first, nesterov) in [(false, false), (true, false), (false, true)] {
            run(&|[m, _, _, u]| momentum(isa, 0.9, first, nesterov, &g, m, u));
        }
        run(&|[m, _, _, u]| lion(isa, 0.9, 0.99, &g, m, u));
        run(&|[_, _, s, u]| scaled(isa, 0.9, 0.1, 1e-8, &g, s, u));
        run(&|[_, _, u, p]| advance(isa, u, 0.1, 0.99, 0.98, p));
        run(&|[a, b, _, _]| restore(isa, &g, a, b));
        let mut codes: Vec<u8> = x.iter().map(|v| 126 + (v.to_bits() as u8 & 3)).collect();
        keep_signs(isa, x, 127, &mut codes);
        out.extend(codes.into_iter().map(u32::from));
        out
    }

    proptest! {
        #[test]
        fn every_level_gives_the_same_bits(x in prop::collection::vec(-3f32..3.0, 0..200)) {
            let want = all(Isa::SCALAR, &x);
            for isa in Isa::available() {
                prop_assert_eq!(&all(isa, &x), &want);
            }
        }
    }

    #[test]
    fn small_cases() {
        let mut u = [9f32; 3];
        lion(Isa::detect(), 0.9, 0.99, &[1.0, 0.0, -2.0], &mut [0.0; 3], &mut u);
        assert_eq!(u, [1.0, 0.0, -1.0]);
        let mut m = [2f32];
        momentum(Isa::detect(), 0.5, false, true, &[1.0], &mut m, &mut u);
        assert_eq!((m[0], u[0]), (2.0, 2.0));
        for nesterov in [false, true] {
            let mut unset = [f32::NAN];
            momentum(Isa::detect(), 0.5, true, nesterov, &[2.0], &mut unset, &mut u);
            assert_eq!((unset[0], u[0]), (2.0, if nesterov { 3.0 } else { 2.0 }));
        }
        let mut codes = [127, 127, 127, 3];
        keep_signs(Isa::detect(), &[-1e-9, 0.0, 1e-9, -1.0], 127, &mut codes);
        assert_eq!(codes, [126, 127, 127, 3]);
        assert_eq!(sum_squares(&[2.0; 9]), 36.0);
    }

    #[test]
    fn no_code_lies_below_a_zero_of_zero() {
        for isa in Isa::available() {
            let mut codes = [0u8, 0, 3];
            keep_signs(isa, &[-1.0, 1.0, -1.0], 0, &mut codes);
            assert_eq!(codes, [0, 0, 3]);
            let mut codes = [7u8, 7, 3];
            keep_signs(isa, &[-1.0, 1.0, -1.0], 7, &mut codes);
            assert_eq!(codes, [6, 7, 3]);
        }
    }
}
