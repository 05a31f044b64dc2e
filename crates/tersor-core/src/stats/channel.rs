//! [`ChannelStats`]: sums and extremes of each input feature.

use std::ops::Range;

use super::weights::Weights;

/// Sums and extremes of each input feature (channel) over the observed tokens, each a vector `[features]`. In the formulas `x` is the value
/// of a feature and `w` the weight of its token, 1 by default. A token of weight 0 is ignored.
/// [`StatSet::channel`](crate::StatSet::channel) returns them.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    /// Minimum of each input feature over the tokens of weight above 0, `[features]`; infinity if there is no such token.
    pub min: Vec<f32>,
    /// Maximum of each input feature over the tokens of weight above 0, `[features]`; minus infinity if there is no such token.
    pub max: Vec<f32>,
    /// Weighted sum of each input feature over tokens, `[features]`: `Σ w x` for values `x` and token weights `w`.
    pub sum: Vec<f64>,
    /// Weighted sum of each input feature's magnitude over tokens, `[features]`: `Σ w |x|` for values `x` and token weights `w`. Each batch
    /// is summed first, so the rounding depends on how the stream is cut into batches.
    pub sum_abs: Vec<f64>,
    /// Weighted sum of each input feature's square over tokens, `[features]`: `Σ w x²` for values `x` and token weights `w`.
    pub sum_sq: Vec<f64>,
    /// The largest mean magnitude of each input feature in any one batch, `[features]`: the maximum over batches of `Σ w |x| / Σ w`, for
    /// the values `x` and token weights `w` of a batch. It depends on how the stream is cut into batches; 0 if no token was observed.
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

    /// Adds the statistics of as many features.
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

    /// Returns the statistics of a range of features; panics if it is not inside of the features.
    pub(super) fn columns(&self, columns: &Range<usize>) -> Self {
        Self {
            min: self.min[columns.clone()].to_vec(),
            max: self.max[columns.clone()].to_vec(),
            sum: self.sum[columns.clone()].to_vec(),
            sum_abs: self.sum_abs[columns.clone()].to_vec(),
            sum_sq: self.sum_sq[columns.clone()].to_vec(),
            max_mean_abs: self.max_mean_abs[columns.clone()].to_vec(),
        }
    }
}
