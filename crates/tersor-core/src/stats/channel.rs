//! Per-channel figures.

use std::ops::Range;

use super::weights::Weights;

/// Per-channel figures, each `[features]`. Sums are over `w x`, `w |x|` and `w x²` where `w` is the weight of a token, 1 unless the
/// caller gave another.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    /// Smallest value of the tokens whose weight is above 0.
    pub min: Vec<f32>,
    /// Largest value of the tokens whose weight is above 0.
    pub max: Vec<f32>,
    /// Sum.
    pub sum: Vec<f64>,
    /// Sum of magnitudes. Each batch is summed on its own, so another cut into batches changes the rounding.
    pub sum_abs: Vec<f64>,
    /// Sum of squares.
    pub sum_sq: Vec<f64>,
    /// The largest mean magnitude that one batch had: it depends on the cut into batches.
    pub max_mean_abs: Vec<f64>,
}

impl ChannelStats {
    pub(super) fn new(k: usize) -> Self {
        Self {
            min: vec![f32::INFINITY; k],
            max: vec![f32::NEG_INFINITY; k],
            sum: vec![0.0; k],
            sum_abs: vec![0.0; k],
            sum_sq: vec![0.0; k],
            max_mean_abs: vec![0.0; k],
        }
    }

    /// Adds a batch of `k` features, one token or more. Products are rounded once: `x²` is exact in f64.
    pub(super) fn observe(&mut self, x: &[f32], k: usize, weights: Weights<'_>) {
        let mut abs = vec![0f64; k];
        for (row, w) in x.chunks_exact(k).zip(weights.each()) {
            if w == 0.0 {
                continue;
            }
            for (i, &v) in row.iter().enumerate() {
                self.min[i] = self.min[i].min(v);
                self.max[i] = self.max[i].max(v);
                let v = f64::from(v);
                self.sum[i] += w * v;
                abs[i] += w * v.abs();
                self.sum_sq[i] += w * (v * v);
            }
        }
        let total = weights.total(x.len() / k);
        for (i, a) in abs.into_iter().enumerate() {
            self.sum_abs[i] += a;
            self.max_mean_abs[i] = self.max_mean_abs[i].max(a / total);
        }
    }

    /// Adds figures of as many channels.
    pub(super) fn merge(&mut self, other: &Self) {
        fn zip<T: Copy>(a: &mut [T], b: &[T], f: impl Fn(T, T) -> T) {
            a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b));
        }
        zip(&mut self.min, &other.min, f32::min);
        zip(&mut self.max, &other.max, f32::max);
        zip(&mut self.sum, &other.sum, |a, b| a + b);
        zip(&mut self.sum_abs, &other.sum_abs, |a, b| a + b);
        zip(&mut self.sum_sq, &other.sum_sq, |a, b| a + b);
        zip(&mut self.max_mean_abs, &other.max_mean_abs, f64::max);
    }

    /// Those of a run of channels, which must lie inside.
    pub(super) fn columns(&self, run: &Range<usize>) -> Self {
        Self {
            min: self.min[run.clone()].to_vec(),
            max: self.max[run.clone()].to_vec(),
            sum: self.sum[run.clone()].to_vec(),
            sum_abs: self.sum_abs[run.clone()].to_vec(),
            sum_sq: self.sum_sq[run.clone()].to_vec(),
            max_mean_abs: self.max_mean_abs[run.clone()].to_vec(),
        }
    }
}
