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
    /// Returns the number of input features of the site.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the number of tokens observed, those of weight 0 included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the sum of the weights of the observed tokens, by which sums are divided for means; the number of tokens if no weights were
    /// given.
    pub fn weight(&self) -> f64 {
        self.weight.unwrap_or(self.tokens as f64)
    }

    /// Returns which statistics these hold: the needs that they were made for.
    pub fn needs(&self) -> StatNeeds {
        StatNeeds {
            squares: self.squares.is_some(),
            channel: self.channel.is_some(),
            gram: self.gram.is_some(),
            sample: self.sample.as_ref().map_or(0, |s| s.want),
            windows: self.windows.is_some(),
        }
    }

    /// Returns the sum of squares of each feature, `[features]`, from the statistics that hold it: the squares themselves, else the channel
    /// statistics, else the diagonal of the Gram matrix. None if there are none of these.
    pub fn squares(&self) -> Option<Vec<f64>> {
        let diagonal = |g: &Arc<Vec<f64>>| (0..self.features).map(|i| g[i * self.features + i]).collect();
        self.squares
            .clone()
            .or_else(|| self.channel.as_ref().map(|c| c.sum_sq.clone()))
            .or_else(|| self.gram.as_ref().map(diagonal))
    }

    /// Returns the statistics of each feature; None if they were not requested.
    pub fn channel(&self) -> Option<&ChannelStats> {
        self.channel.as_ref()
    }

    /// Returns the Gram matrix `XᵀX`, `[features, features]`, exactly symmetric; None if it was not requested.
    pub fn gram(&self) -> Option<&[f64]> {
        self.gram.as_deref().map(Vec::as_slice)
    }

    /// Returns [`StatSet::gram`] as a shared value that may outlive these statistics.
    pub fn shared_gram(&self) -> Option<Arc<Vec<f64>>> {
        self.gram.clone()
    }

    /// Returns the sampled tokens in the order of the stream, `[n, features]` row-major; None if no sample was requested.
    pub fn sample(&self) -> Option<Vec<f32>> {
        self.sample.as_ref().map(|s| s.in_order())
    }

    /// Returns the mean and variance of each window (a whole sequence), in the order of window numbers; None if they were not requested.
    pub fn windows(&self) -> Option<&[WindowStats]> {
        self.windows.as_ref().map(|w| &w.stats[..])
    }

    /// Returns the number of each window of [`StatSet::windows`] in the whole stream, ascending; None if windows were not requested.
    pub fn window_numbers(&self) -> Option<&[u64]> {
        self.windows.as_ref().map(|w| &w.numbers[..])
    }

    /// Returns the number of this shard's first window (a whole sequence) in the whole stream; None if windows were not requested.
    pub fn first_window(&self) -> Option<u64> {
        self.windows.as_ref().map(|w| w.first)
    }

    /// Returns [`StatSet::gram`]. Errors with [`Error::Missing`] if it was not requested or no token was observed.
    pub fn require_gram(&self) -> Result<&[f64]> {
        self.demand(self.gram(), GRAM)
    }

    /// Returns [`StatSet::shared_gram`]. Errors with [`Error::Missing`] if it was not requested or no token was observed.
    pub fn require_shared_gram(&self) -> Result<Arc<Vec<f64>>> {
        self.demand(self.shared_gram(), GRAM)
    }

    /// Returns [`StatSet::channel`]. Errors with [`Error::Missing`] if it was not requested or no token was observed.
    pub fn require_channel(&self) -> Result<&ChannelStats> {
        self.demand(self.channel(), CHANNEL)
    }

    /// Returns [`StatSet::squares`]. Errors with [`Error::Missing`] if nothing that holds them was requested or no token was observed.
    pub fn require_squares(&self) -> Result<Vec<f64>> {
        self.demand(self.squares(), SQUARES)
    }

    /// Returns [`StatSet::sample`], one token or more. Errors with [`Error::Missing`] if it was not requested or no token was observed.
    pub fn require_sample(&self) -> Result<Vec<f32>> {
        let none = self.sample.as_ref().is_some_and(|s| s.keys.is_empty());
        if none { Err(nothing_seen(SAMPLE)) } else { self.demand(self.sample(), SAMPLE) }
    }

    /// Returns [`StatSet::windows`], one window or more. Errors with [`Error::Missing`] if they were not requested or none was observed.
    pub fn require_windows(&self) -> Result<&[WindowStats]> {
        let none = self.windows.as_ref().is_some_and(|w| w.stats.is_empty());
        if none { Err(nothing_seen(WINDOWS)) } else { self.demand(self.windows(), WINDOWS) }
    }

    /// Errors with [`Error::Shape`] unless these are statistics of `features` input features.
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
