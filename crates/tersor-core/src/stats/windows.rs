//! [`WindowStats`]: mean and variance of each feature in each window.

use std::ops::Range;

use super::weights::Weights;
use crate::{Error, Result};

/// Mean and variance of each input feature over the tokens of one window, which is a whole calibration sequence.
#[derive(Clone, PartialEq, Debug)]
pub struct WindowStats {
    /// Weighted mean of each input feature over the tokens of the window, `[features]`: `Σ w x / Σ w`, where `w` is the weight of a token.
    pub mean: Vec<f32>,
    /// Weighted variance of each input feature over the tokens of the window, `[features]`: `Σ w (x - mean)² / Σ w`, where `w` is the
    /// weight of a token. It is 0 for a window of one token.
    pub variance: Vec<f32>,
    /// The number of tokens of this window (a whole calibration sequence), including those of weight 0.
    pub tokens: u64,
}

impl WindowStats {
    /// Returns the statistics of a window of `k` features, one token or more, with a weight above 0 somewhere: two passes in f64, rounded
    /// at the end. Errors if a variance is too large for f32.
    pub(super) fn of(x: &[f32], k: usize, weights: Weights<'_>) -> Result<Self> {
        let tokens = x.len() / k;
        let total = weights.total(tokens);
        let (mut mean, mut variance) = (vec![0f64; k], vec![0f64; k]);
        for (row, w) in x.chunks_exact(k).zip(weights.each()) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += w * f64::from(*v));
        }
        mean.iter_mut().for_each(|m| *m /= total);
        for (row, w) in x.chunks_exact(k).zip(weights.each()) {
            let each = variance.iter_mut().zip(&mean).zip(row);
            each.for_each(|((s, m), v)| *s += w * (f64::from(*v) - m).powi(2));
        }
        let variance: Vec<f32> = variance.into_iter().map(|s| (s / total) as f32).collect();
        if let Some(i) = variance.iter().position(|v| !v.is_finite()) {
            return Err(Error::Numerical(format!("the variance of feature {i} in a window is too large for f32")));
        }
        Ok(Self { mean: mean.into_iter().map(|m| m as f32).collect(), variance, tokens: tokens as u64 })
    }
}

/// The windows that were observed, in the order of their numbers.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Windows {
    /// The number in the whole calibration stream, counted from 0, of the first window (a whole sequence) of this shard, which is a part of
    /// the stream.
    pub first: u64,
    /// The number of each observed window (a whole sequence) in the whole calibration stream, counted from 0 and ascending. The field
    /// `stats` has the mean and variance of the windows in this order.
    pub numbers: Vec<u64>,
    pub stats: Vec<WindowStats>,
}

impl Windows {
    pub fn new(first: u64) -> Self {
        Self { first, numbers: Vec::new(), stats: Vec::new() }
    }

    /// Returns the number, in the whole calibration stream, that the next observed window (a whole sequence) gets: `first`, the number of
    /// this shard's first window, if no window is held, otherwise the number after that of the last window held. Errors if the windows
    /// held, merged ones included, are not numbered `first`, `first + 1` and so on without gap: the number of the next window is unknown
    /// then. Errors if the number exceeds u64.
    pub fn next(&self) -> Result<u64> {
        // Numbers ascend, so that the ends tell whether one is missing between them.
        if let (Some(first), Some(last)) = (self.numbers.first(), self.numbers.last())
            && (*first != self.first || last - first != self.numbers.len() as u64 - 1)
        {
            let rule = "windows are observed before shards that do not begin where they end are merged";
            return Err(Error::order("number of a window", rule, [first, last]));
        }
        let next = self.first.checked_add(self.numbers.len() as u64);
        next.ok_or_else(|| Error::Overflow { what: "the number of a window".into() })
    }

    fn check_new(&self, number: u64) -> Result<()> {
        match self.numbers.binary_search(&number) {
            Ok(_) => Err(Error::order("number of a window", "it must differ from those of all other windows", number)),
            Err(_) => Ok(()),
        }
    }

    /// Errors with [`Error::Order`] if both hold a window of the same number.
    pub fn check_disjoint(&self, other: &Self) -> Result<()> {
        other.numbers.iter().try_for_each(|n| self.check_new(*n))
    }

    /// Adds the statistics of the window with this number, in the order of numbers; if a window of this number is held already, it stays
    /// and `stats` is dropped.
    pub fn insert(&mut self, number: u64, stats: WindowStats) {
        if let Err(at) = self.numbers.binary_search(&number) {
            self.numbers.insert(at, number);
            self.stats.insert(at, stats);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (number, stats) in other.numbers.iter().zip(&other.stats) {
            self.insert(*number, stats.clone());
        }
    }

    /// Returns the means and variances of the same windows (whole sequences of tokens) for the features of the range `columns` alone,
    /// counted from 0. Panics if the range is not inside of the features.
    pub fn columns(&self, columns: &Range<usize>) -> Self {
        let some = |w: &WindowStats| WindowStats {
            mean: w.mean[columns.clone()].to_vec(),
            variance: w.variance[columns.clone()].to_vec(),
            tokens: w.tokens,
        };
        Self { first: self.first, numbers: self.numbers.clone(), stats: self.stats.iter().map(some).collect() }
    }
}
