//! [`StatNeeds`]: the statistics of inputs that a method needs.

/// Which statistics of the inputs of a linear layer a method needs; calibration gathers these in a [`StatSet`](crate::StatSet). By default
/// none.
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
    /// Whether the sum of squares of each input feature is needed (the content of an importance matrix). Statistics that hold
    /// [`ChannelStats`](crate::ChannelStats) or a Gram matrix provide it too.
    pub squares: bool,
    /// Whether sums and extremes of each input feature are needed: [`ChannelStats`](crate::ChannelStats).
    pub channel: bool,
    /// Whether the Gram matrix `XᵀX` of the inputs is needed, `[features, features]`.
    pub gram: bool,
    /// The number of calibration tokens whose whole input vectors are needed, chosen by a hash; 0 for none.
    pub sample: usize,
    /// Whether the mean and variance of each input feature in each window (a whole sequence) are needed:
    /// [`WindowStats`](crate::WindowStats).
    pub windows: bool,
}

impl StatNeeds {
    /// Returns needs that request no statistics, for methods without calibration data.
    pub const fn none() -> Self {
        Self { squares: false, channel: false, gram: false, sample: 0, windows: false }
    }

    /// Returns these needs and, in addition, the sum of squares of each input feature.
    pub const fn with_squares(self) -> Self {
        Self { squares: true, ..self }
    }

    /// Returns these needs and, in addition, sums and extremes of each input feature.
    pub const fn with_channel(self) -> Self {
        Self { channel: true, ..self }
    }

    /// Returns these needs and, in addition, the Gram matrix `XᵀX` of the inputs.
    pub const fn with_gram(self) -> Self {
        Self { gram: true, ..self }
    }

    /// Returns these needs with a sample of the input vectors of `tokens` calibration tokens, instead of a sample requested before; 0
    /// requests no sample.
    pub const fn with_sample(self, tokens: usize) -> Self {
        Self { sample: tokens, ..self }
    }

    /// Returns these needs and, in addition, the mean and variance of each input feature in each window (a whole sequence).
    pub const fn with_windows(self) -> Self {
        Self { windows: true, ..self }
    }

    /// Returns needs that request every statistic that `self` or `other` requests; the sample is the larger of the two.
    pub fn union(self, other: Self) -> Self {
        Self {
            squares: self.squares || other.squares,
            channel: self.channel || other.channel,
            gram: self.gram || other.gram,
            sample: self.sample.max(other.sample),
            windows: self.windows || other.windows,
        }
    }

    /// Returns whether at least one statistic is requested, so that calibration data is needed.
    pub fn any_data(self) -> bool {
        self.squares || self.channel || self.gram || self.sample > 0 || self.windows
    }

    /// Returns whether statistics made for these needs include everything that `other` requests. Channel statistics include squares (the
    /// sum of squares of each feature), and so does a Gram matrix; a sample includes a smaller one.
    pub fn implies(self, other: Self) -> bool {
        (self.squares || self.channel || self.gram || !other.squares)
            && (self.channel || !other.channel)
            && (self.gram || !other.gram)
            && self.sample >= other.sample
            && (self.windows || !other.windows)
    }
}
