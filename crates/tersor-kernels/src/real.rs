//! [`Real`]: the float types in which differentiable functions are computed.

use std::fmt::{Debug, Display};
use std::iter::Sum;

use num_traits::{Float, NumAssign};

use crate::{Isa, vector};

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A float type in which differentiable functions are computed: f32, or f64 for the comparison of gradients with finite differences. The
/// trait is sealed: there are no other implementations.
///
/// Its loops take an instruction-set level [`Isa`]. In f32 they run at that level and give the same bits at every level; in f64 they are
/// plain Rust.
pub trait Real: Float + NumAssign + Sum + Default + Debug + Display + Send + Sync + 'static + private::Sealed {
    /// Returns `value` rounded to this type.
    fn rounded(value: f64) -> Self;

    /// Returns the value in f64; exact.
    fn widened(self) -> f64;

    /// Returns the same slice as a slice of f32 if the type is f32, None if it is f64.
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]>;

    /// Returns `Σ a[i] * b[i]` over the shorter of the two slices.
    fn dot(isa: Isa, a: &[Self], b: &[Self]) -> Self;

    /// Adds `c * x[i]` to `y[i]` over the shorter of the two slices.
    fn axpy(isa: Isa, c: Self, x: &[Self], y: &mut [Self]);

    /// Replaces a row in place by its softmax, `exp(x[i] - max) / Σ exp(x[j] - max)`. A row of which every value is -∞ becomes NaN.
    fn softmax(isa: Isa, x: &mut [Self]);

    /// Returns `log Σ exp(x[i])`, computed as `max + log Σ exp(x[i] - max)`; -∞ for an empty row or one of which every value is -∞.
    fn log_sum_exp(x: &[Self]) -> Self {
        let max = x.iter().fold(Self::neg_infinity(), |m, v| m.max(*v));
        if max == Self::neg_infinity() {
            return max;
        }
        max + x.iter().map(|v| (*v - max).exp()).sum::<Self>().ln()
    }
}

impl Real for f32 {
    fn rounded(value: f64) -> Self {
        value as f32
    }
    fn widened(self) -> f64 {
        f64::from(self)
    }
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        Some(slice)
    }
    fn dot(isa: Isa, a: &[Self], b: &[Self]) -> Self {
        vector::dot(isa, a, b)
    }
    fn axpy(isa: Isa, c: Self, x: &[Self], y: &mut [Self]) {
        vector::axpy(isa, c, x, y);
    }
    fn softmax(isa: Isa, x: &mut [Self]) {
        vector::softmax(isa, x);
    }
}

impl Real for f64 {
    fn rounded(value: f64) -> Self {
        value
    }
    fn widened(self) -> f64 {
        self
    }
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    fn dot(_: Isa, a: &[Self], b: &[Self]) -> Self {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }
    fn axpy(_: Isa, c: Self, x: &[Self], y: &mut [Self]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += c * x);
    }
    fn softmax(_: Isa, x: &mut [Self]) {
        let max = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        x.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = x.iter().sum();
        x.iter_mut().for_each(|v| *v /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_types_agree() {
        let x: Vec<f64> = (0..100).map(|i| ((i * 37) % 101) as f64 / 10.0 - 5.0).collect();
        let narrow: Vec<f32> = x.iter().map(|v| f32::rounded(*v)).collect();
        for isa in Isa::available() {
            let (mut wide, mut single) = (x.clone(), narrow.clone());
            f64::softmax(isa, &mut wide);
            f32::softmax(isa, &mut single);
            assert!(wide.iter().zip(&single).all(|(a, b)| (a - b.widened()).abs() < 1e-6));
            assert!((f64::dot(isa, &x, &x) - f32::dot(isa, &narrow, &narrow).widened()).abs() < 1e-2);
            let (mut wide, mut single) = (x.clone(), narrow.clone());
            f64::axpy(isa, -2.0, &x, &mut wide);
            f32::axpy(isa, -2.0, &narrow, &mut single);
            assert!(wide.iter().zip(&single).all(|(a, b)| (a - b.widened()).abs() < 1e-5));
        }
        assert!((f64::log_sum_exp(&x) - f32::log_sum_exp(&narrow).widened()).abs() < 1e-5);
    }

    #[test]
    fn log_sum_exp_of_large_values_and_of_none() {
        assert_eq!(f64::log_sum_exp(&[1000.0, 1000.0]), 1000.0 + 2f64.ln());
        assert_eq!(f64::log_sum_exp(&[f64::NEG_INFINITY, 3.0]), 3.0);
        assert_eq!(f32::log_sum_exp(&[]), f32::NEG_INFINITY);
        assert_eq!(f32::log_sum_exp(&[f32::NEG_INFINITY; 2]), f32::NEG_INFINITY);
    }
}
