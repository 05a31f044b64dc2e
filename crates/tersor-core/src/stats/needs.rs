//! [`StatNeeds`]: the statistics of inputs that a method needs.

/// The statistics of a matrix's inputs that a method needs, and that calibration therefore gathers.
///
/// ```
/// use tersor_core::StatNeeds;
/// let needs = StatNeeds::none().with_gram().with_sample(128);
/// assert!(needs.gram && needs.sample == 128 && !needs.channel);
/// // The diagonal of a Gram matrix holds sums of squares.
/// assert!(needs.implies(StatNeeds::none().with_squares()));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatNeeds {
    /// Whether the sum of squares of each feature is needed, which importance matrices consist of. `channel` and `gram` include it.
    pub squares: bool,
    /// Whether sums and extremes of each feature are needed.
    pub channel: bool,
    /// Whether the Gram matrix `XᵀX` is needed.
    pub gram: bool,
    /// The number of whole tokens that are needed as a sample; 0 for none.
    pub sample: usize,
    /// Whether mean and variance of each feature in each window (a whole sequence) are needed.
    pub windows: bool,
}

impl StatNeeds {
    /// Returns needs of nothing, for methods without data.
    pub const fn none() -> Self {
        Self { squares: false, channel: false, gram: false, sample: 0, windows: false }
    }

    /// Returns these needs with the sum of squares of each feature.
    pub const fn with_squares(self) -> Self {
        Self { squares: true, ..self }
    }

    /// Returns these needs with sums and extremes of each feature.
    pub const fn with_channel(self) -> Self {
        Self { channel: true, ..self }
    }

    /// Returns these needs with the Gram matrix.
    pub const fn with_gram(self) -> Self {
        Self { gram: true, ..self }
    }

    /// Returns these needs with a sample of `tokens` whole tokens, instead of a sample requested before; 0 for none.
    pub const fn with_sample(self, tokens: usize) -> Self {
        Self { sample: tokens, ..self }
    }

    /// Returns these needs with mean and variance of each feature in each window (a whole sequence).
    pub const fn with_windows(self) -> Self {
        Self { windows: true, ..self }
    }

    /// Returns what either of two methods needs; of two samples the larger one.
    pub fn union(self, other: Self) -> Self {
        Self {
            squares: self.squares || other.squares,
            channel: self.channel || other.channel,
            gram: self.gram || other.gram,
            sample: self.sample.max(other.sample),
            windows: self.windows || other.windows,
        }
    }

    /// Returns whether calibration data is needed at all.
    pub fn any_data(self) -> bool {
        self.squares || self.channel || self.gram || self.sample > 0 || self.windows
    }

    /// Returns whether statistics made for these needs include all that `other` requests. Channel statistics and a Gram matrix include
    /// squares; a sample includes a smaller one.
    pub fn implies(self, other: Self) -> bool {
        (self.squares || self.channel || self.gram || !other.squares)
            && (self.channel || !other.channel)
            && (self.gram || !other.gram)
            && self.sample >= other.sample
            && (self.windows || !other.windows)
    }
}
