//! What a method asks to know about the inputs of a matrix.

/// What a method asks to know about the inputs of a matrix.
///
/// ```
/// use tersor_core::StatNeeds;
/// let needs = StatNeeds::none().with_gram().with_sample(128);
/// assert!(needs.gram && needs.sample == 128 && !needs.channel);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatNeeds {
    /// Per-channel sums of squares, of which an importance matrix consists; part of `channel`, and the diagonal of `gram`.
    pub squares: bool,
    /// Per-channel sums and extremes.
    pub channel: bool,
    /// The Gram matrix `XᵀX`.
    pub gram: bool,
    /// So many whole tokens.
    pub sample: usize,
    /// Mean and variance of each channel in each window.
    pub windows: bool,
}

impl StatNeeds {
    /// Nothing at all.
    pub const fn none() -> Self {
        Self { squares: false, channel: false, gram: false, sample: 0, windows: false }
    }

    /// And the per-channel sums of squares.
    pub const fn with_squares(self) -> Self {
        Self { squares: true, ..self }
    }

    /// And the per-channel sums and extremes.
    pub const fn with_channel(self) -> Self {
        Self { channel: true, ..self }
    }

    /// And the Gram matrix.
    pub const fn with_gram(self) -> Self {
        Self { gram: true, ..self }
    }

    /// And a sample of `tokens` whole tokens, in place of a sample asked for before; none for 0.
    pub const fn with_sample(self, tokens: usize) -> Self {
        Self { sample: tokens, ..self }
    }

    /// And the mean and variance of each channel in each window.
    pub const fn with_windows(self) -> Self {
        Self { windows: true, ..self }
    }

    /// What either of two methods needs.
    pub fn union(self, other: Self) -> Self {
        Self {
            squares: self.squares || other.squares,
            channel: self.channel || other.channel,
            gram: self.gram || other.gram,
            sample: self.sample.max(other.sample),
            windows: self.windows || other.windows,
        }
    }

    /// Whether calibration data is needed at all.
    pub fn any_data(self) -> bool {
        self.squares || self.channel || self.gram || self.sample > 0 || self.windows
    }

    /// Whether statistics made for these needs have all that `other` asks for. Channel figures and a Gram matrix imply squares; a
    /// sample implies a smaller one.
    pub fn implies(self, other: Self) -> bool {
        (self.squares || self.channel || self.gram || !other.squares)
            && (self.channel || !other.channel)
            && (self.gram || !other.gram)
            && self.sample >= other.sample
            && (self.windows || !other.windows)
    }
}
