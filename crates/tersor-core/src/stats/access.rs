//! What statistics give, as an option and as a demand.

use std::sync::Arc;

use super::{ChannelStats, StatNeeds, StatSet, WindowStats};
use crate::{Error, Result};

const GRAM: &str = "the Gram matrix XᵀX";
const CHANNEL: &str = "per-channel figures";
const SQUARES: &str = "sums of squares";
const SAMPLE: &str = "a sample of tokens";
const WINDOWS: &str = "figures of each window";

impl StatSet {
    /// Input features of the site.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Tokens seen, those of weight 0 included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sum of the weights of the tokens seen, by which sums are to be divided for means; the number of tokens where no weights were given.
    pub fn weight(&self) -> f64 {
        self.weight.unwrap_or(self.tokens as f64)
    }

    /// Returns the needs that these statistics were made for.
    pub fn needs(&self) -> StatNeeds {
        StatNeeds {
            squares: self.squares.is_some(),
            channel: self.channel.is_some(),
            gram: self.gram.is_some(),
            sample: self.sample.as_ref().map_or(0, |s| s.want),
            windows: self.windows.is_some(),
        }
    }

    /// Sums of squares of each channel, `[features]`, from whichever of the statistics has them: squares themselves, else channel
    /// figures, else the diagonal of the Gram matrix.
    pub fn squares(&self) -> Option<Vec<f64>> {
        let diagonal = |g: &Arc<Vec<f64>>| (0..self.features).map(|i| g[i * self.features + i]).collect();
        self.squares
            .clone()
            .or_else(|| self.channel.as_ref().map(|c| c.sum_sq.clone()))
            .or_else(|| self.gram.as_ref().map(diagonal))
    }

    /// Per-channel figures, if they were asked for.
    pub fn channel(&self) -> Option<&ChannelStats> {
        self.channel.as_ref()
    }

    /// `XᵀX`, `[features, features]`, symmetric to the last bit, if it was asked for.
    pub fn gram(&self) -> Option<&[f64]> {
        self.gram.as_deref().map(Vec::as_slice)
    }

    /// [`StatSet::gram`], to keep beyond these statistics.
    pub fn shared_gram(&self) -> Option<Arc<Vec<f64>>> {
        self.gram.clone()
    }

    /// The sampled tokens in the order of the stream, `[n, features]` row-major, if they were asked for.
    pub fn sample(&self) -> Option<Vec<f32>> {
        self.sample.as_ref().map(|s| s.in_order())
    }

    /// Means and variances of the windows, in order of their numbers, if they were asked for.
    pub fn windows(&self) -> Option<&[WindowStats]> {
        self.windows.as_ref().map(|w| &w.stats[..])
    }

    /// The number of each window of [`StatSet::windows`] in the whole stream, ascending.
    pub fn window_numbers(&self) -> Option<&[u64]> {
        self.windows.as_ref().map(|w| &w.numbers[..])
    }

    /// The number of this shard's first window in the whole stream, if windows were asked for.
    pub fn first_window(&self) -> Option<u64> {
        self.windows.as_ref().map(|w| w.first)
    }

    /// [`StatSet::gram`] of one token or more. [`Error::Missing`] when it was not asked for, or no token was seen.
    pub fn require_gram(&self) -> Result<&[f64]> {
        self.demand(self.gram(), GRAM)
    }

    /// [`StatSet::shared_gram`] of one token or more. [`Error::Missing`] when it was not asked for, or no token was seen.
    pub fn require_shared_gram(&self) -> Result<Arc<Vec<f64>>> {
        self.demand(self.shared_gram(), GRAM)
    }

    /// [`StatSet::channel`] of one token or more. [`Error::Missing`] when it was not asked for, or no token was seen.
    pub fn require_channel(&self) -> Result<&ChannelStats> {
        self.demand(self.channel(), CHANNEL)
    }

    /// [`StatSet::squares`] of one token or more. [`Error::Missing`] when nothing that has them was asked for, or no token was seen.
    pub fn require_squares(&self) -> Result<Vec<f64>> {
        self.demand(self.squares(), SQUARES)
    }

    /// [`StatSet::sample`] of one token or more. [`Error::Missing`] when it was not asked for, or no token was seen.
    pub fn require_sample(&self) -> Result<Vec<f32>> {
        let none = self.sample.as_ref().is_some_and(|s| s.keys.is_empty());
        if none { Err(nothing_seen(SAMPLE)) } else { self.demand(self.sample(), SAMPLE) }
    }

    /// [`StatSet::windows`], one or more. [`Error::Missing`] when they were not asked for, or none was seen.
    pub fn require_windows(&self) -> Result<&[WindowStats]> {
        let none = self.windows.as_ref().is_some_and(|w| w.stats.is_empty());
        if none { Err(nothing_seen(WINDOWS)) } else { self.demand(self.windows(), WINDOWS) }
    }

    /// [`Error::Shape`] unless these are statistics of `features` input features.
    pub fn require_features(&self, features: usize) -> Result<()> {
        if self.features == features {
            Ok(())
        } else {
            Err(Error::shape("features of the statistics", features, self.features))
        }
    }

    fn demand<T>(&self, value: Option<T>, what: &str) -> Result<T> {
        let place = "the statistics of the inputs; calibrate with a method or a recipe that needs it".into();
        let value = value.ok_or_else(|| Error::Missing { name: what.into(), place })?;
        if self.tokens == 0 { Err(nothing_seen(what)) } else { Ok(value) }
    }
}

fn nothing_seen(what: &str) -> Error {
    let place = "the statistics of the inputs, which saw no token; calibrate with one window of text or more".into();
    Error::Missing { name: what.into(), place }
}
