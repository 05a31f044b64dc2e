//! Reading of statistics: as options, and as results that error if something is missing.

use std::sync::Arc;

use super::{ChannelStats, StatNeeds, StatSet, WindowStats};
use crate::{Error, Result};

const GRAM: &str = "the Gram matrix XᵀX";
const CHANNEL: &str = "per-channel figures";
const SQUARES: &str = "sums of squares";
const SAMPLE: &str = "a sample of tokens";
const WINDOWS: &str = "figures of each window";

impl StatSet {
    /// Returns the number of input features; 0 for [`StatSet::none`].
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the number of tokens observed, those of weight 0 and those of merged shards included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the sum of the weights of the observed tokens, by which weighted sums are divided for means. If every weight was 1, this is
    /// the number of tokens.
    pub fn weight(&self) -> f64 {
        self.weight.unwrap_or(self.tokens as f64)
    }

    /// Returns which statistics are held, with the size of the sample that was requested.
    pub fn needs(&self) -> StatNeeds {
        StatNeeds {
            squares: self.squares.is_some(),
            channel: self.channel.is_some(),
            gram: self.gram.is_some(),
            sample: self.sample.as_ref().map_or(0, |s| s.want),
            windows: self.windows.is_some(),
        }
    }

    /// Returns the weighted sum of squares of each feature over the tokens, `[features]`. It comes from the statistics that hold it: the
    /// squares themselves, otherwise the channel statistics, otherwise the diagonal of the Gram matrix. None if none of these was
    /// requested; zeros if no token was observed.
    pub fn squares(&self) -> Option<Vec<f64>> {
        let diagonal = |g: &Arc<Vec<f64>>| (0..self.features).map(|i| g[i * self.features + i]).collect();
        self.squares
            .clone()
            .or_else(|| self.channel.as_ref().map(|c| c.sum_sq.clone()))
            .or_else(|| self.gram.as_ref().map(diagonal))
    }

    /// Returns the sums and extremes of each feature; None if they were not requested.
    pub fn channel(&self) -> Option<&ChannelStats> {
        self.channel.as_ref()
    }

    /// Returns the Gram matrix `XᵀX` (`Σ w x xᵀ` over tokens `x` of weight `w`), `[features, features]` row-major. None if it was neither
    /// requested nor given by [`StatSet::with_gram`]. A matrix that was summed from observed tokens is exactly symmetric, and all zeros
    /// before the first token. A matrix from [`StatSet::with_gram`] or a file is symmetric to a relative tolerance of 1e-6.
    pub fn gram(&self) -> Option<&[f64]> {
        self.gram.as_deref().map(Vec::as_slice)
    }

    /// Returns the Gram matrix `XᵀX`, `[features, features]` row-major, as a shared value that may outlive these statistics; None if it was
    /// neither requested nor given by [`StatSet::with_gram`]. Nothing is copied.
    pub fn shared_gram(&self) -> Option<Arc<Vec<f64>>> {
        self.gram.clone()
    }

    /// Returns the sampled tokens in the order of the stream, `[n, features]` row-major; None if no sample was requested. `n` is the number
    /// of tokens requested, or of all tokens of weight above 0 if these are fewer.
    pub fn sample(&self) -> Option<Vec<f32>> {
        self.sample.as_ref().map(|s| s.in_order())
    }

    /// Returns the mean and variance of each feature in each observed window (a whole sequence), one entry for each window, ascending by
    /// the numbers of the windows; None if they were not requested.
    pub fn windows(&self) -> Option<&[WindowStats]> {
        self.windows.as_ref().map(|w| &w.stats[..])
    }

    /// Returns the number of each observed window (a whole sequence) in the whole calibration stream, counted from 0 and ascending; entry
    /// `i` belongs to entry `i` of [`StatSet::windows`]. None if statistics of windows were not requested.
    pub fn window_numbers(&self) -> Option<&[u64]> {
        self.windows.as_ref().map(|w| &w.numbers[..])
    }

    /// Returns the number in the whole calibration stream, counted from 0, of the first window (a whole sequence) of this shard, which is a
    /// part of the stream. It is 0 unless [`StatSet::with_first_window`] has set it; None if statistics of windows were not requested.
    pub fn first_window(&self) -> Option<u64> {
        self.windows.as_ref().map(|w| w.first)
    }

    /// Returns the Gram matrix `XᵀX`, `[features, features]` row-major. Errors with [`Error::Missing`] if it was neither requested nor
    /// given by [`StatSet::with_gram`], or if no token was observed.
    pub fn require_gram(&self) -> Result<&[f64]> {
        self.demand(self.gram(), GRAM)
    }

    /// Returns the Gram matrix `XᵀX`, `[features, features]` row-major, as a shared value that may outlive these statistics. Errors with
    /// [`Error::Missing`] if it was neither requested nor given by [`StatSet::with_gram`], or if no token was observed.
    pub fn require_shared_gram(&self) -> Result<Arc<Vec<f64>>> {
        self.demand(self.shared_gram(), GRAM)
    }

    /// Returns the sums and extremes of each feature. Errors with [`Error::Missing`] if they were not requested or no token was observed.
    pub fn require_channel(&self) -> Result<&ChannelStats> {
        self.demand(self.channel(), CHANNEL)
    }

    /// Returns the weighted sum of squares of each feature over the tokens, `[features]`. Errors with [`Error::Missing`] if neither squares
    /// nor channel statistics nor a Gram matrix were requested, or no token was observed.
    pub fn require_squares(&self) -> Result<Vec<f64>> {
        self.demand(self.squares(), SQUARES)
    }

    /// Returns the sampled tokens in the order of the stream, `[n, features]` row-major, with `n` at least 1. Errors with
    /// [`Error::Missing`] if no sample was requested or no token was observed.
    pub fn require_sample(&self) -> Result<Vec<f32>> {
        let none = self.sample.as_ref().is_some_and(|s| s.keys.is_empty());
        if none { Err(nothing_seen(SAMPLE)) } else { self.demand(self.sample(), SAMPLE) }
    }

    /// Returns the mean and variance of each feature in each observed window (a whole sequence), at least one entry, ascending by the
    /// numbers of the windows. Errors with [`Error::Missing`] if they were not requested or no window was observed.
    pub fn require_windows(&self) -> Result<&[WindowStats]> {
        let none = self.windows.as_ref().is_some_and(|w| w.stats.is_empty());
        if none { Err(nothing_seen(WINDOWS)) } else { self.demand(self.windows(), WINDOWS) }
    }

    /// Returns the sum of the weights of the observed tokens, their number if they are not weighted, by which sums become means. Errors
    /// with [`Error::Missing`] unless it is above 0.
    pub fn require_weight(&self) -> Result<f64> {
        let place = "the statistics of the inputs";
        Some(self.weight()).filter(|w| *w > 0.0).ok_or_else(|| Error::missing("a token of a weight above 0", place))
    }

    /// Errors with [`Error::Shape`] unless these statistics have `features` input features.
    pub fn require_features(&self, features: usize) -> Result<()> {
        if self.features == features {
            Ok(())
        } else {
            Err(Error::shape("features of the statistics", features, self.features))
        }
    }

    /// Returns the value. Errors with [`Error::Missing`] if it is None or no token was observed.
    fn demand<T>(&self, value: Option<T>, what: &str) -> Result<T> {
        let place = "the statistics of the inputs; calibrate with a method or a recipe that needs it".into();
        let value = value.ok_or_else(|| Error::Missing { name: what.into(), place })?;
        if self.tokens == 0 { Err(nothing_seen(what)) } else { Ok(value) }
    }
}

fn nothing_seen(what: &str) -> Error {
    let place =
        "the statistics of the inputs, which have observed no token; calibrate with one window of text or more".into();
    Error::Missing { name: what.into(), place }
}
