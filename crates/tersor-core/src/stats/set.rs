//! [`StatSet`]: the statistics of one site, how they are gathered, added and cut.

use std::ops::Range;
use std::sync::Arc;

use super::sample::Sample;
use super::weights::Weights;
use super::windows::Windows;
use super::{ChannelStats, StatNeeds, WindowStats, gram};
use crate::{Error, IntoMat, MatView, Result};

/// Statistics of the inputs of one [site](crate::Site) (an input that one or more linear layers share, such as q, k and v) over calibration
/// tokens: those that [`StatNeeds`] requests. Batches of tokens are added by [`observe`](StatSet::observe) or
/// [`observe_window`](StatSet::observe_window). The stream of tokens may be cut into shards, whose statistics are gathered separately and
/// added by [`merge`](StatSet::merge). [`save`](StatSet::save) and [`load`](StatSet::load) store them.
///
/// Channel statistics contain sums of squares, and so does the diagonal of a Gram matrix: statistics with one of these have
/// [squares](StatSet::squares) too. A Gram matrix is summed in f32 over up to 512 tokens, then in f64, so that its squares are rounded to
/// f32.
///
/// ```
/// use tersor_core::{MatView, StatNeeds, StatSet};
/// # fn main() -> tersor_core::Result<()> {
/// let mut stats = StatSet::new(2, StatNeeds::none().with_channel().with_windows(), 0, 0)?;
/// // Two windows of two tokens each; the last token is padding.
/// stats.observe_window(&MatView::new(&[1.0, 2.0, 3.0, 2.0], [2, 2])?, None)?;
/// stats.observe_window(&MatView::new(&[5.0, 0.0, 9.0, 9.0], [2, 2])?, Some(&[1.0, 0.0]))?;
/// assert_eq!(stats.require_channel()?.sum, [9.0, 4.0]);
/// assert_eq!((stats.tokens(), stats.weight()), (4, 3.0));
/// assert_eq!(stats.require_windows()?[0].mean, [2.0, 2.0]);
/// assert!(stats.require_gram().is_err(), "it was not requested");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct StatSet {
    pub(super) features: usize,
    pub(super) first_token: u64,
    pub(super) tokens: u64,
    /// Sum of token weights, once one of them was not 1.
    pub(super) weight: Option<f64>,
    pub(super) squares: Option<Vec<f64>>,
    pub(super) channel: Option<ChannelStats>,
    /// Shared with methods that were prepared with it.
    pub(super) gram: Option<Arc<Vec<f64>>>,
    pub(super) sample: Option<Sample>,
    pub(super) windows: Option<Windows>,
}

impl StatSet {
    /// Returns statistics of 0 features that hold nothing, for methods that need no data.
    pub fn none() -> Self {
        Self {
            features: 0,
            first_token: 0,
            tokens: 0,
            weight: None,
            squares: None,
            channel: None,
            gram: None,
            sample: None,
            windows: None,
        }
    }

    /// Returns statistics of `features` input features that hold what `needs` requests, before any token. `seed` determines which tokens
    /// are sampled. These statistics may be those of a shard, a part of the calibration stream: `first_token` is the number of its first
    /// token in the whole stream, counted from 0. Windows (whole sequences) are numbered from 0 unless [`StatSet::with_first_window`] says
    /// otherwise. Errors if the Gram matrix would exceed the address space.
    pub fn new(features: usize, needs: StatNeeds, seed: u64, first_token: u64) -> Result<Self> {
        let gram =
            if needs.gram { Some(Arc::new(vec![0.0; crate::view::elements([features, features])?])) } else { None };
        let sample = (needs.sample > 0).then(|| Sample::new(needs.sample, seed));
        let channel = needs.channel.then(|| ChannelStats::new(features));
        let squares = needs.squares.then(|| vec![0.0; features]);
        let windows = needs.windows.then(|| Windows::new(0));
        Ok(Self { features, first_token, tokens: 0, weight: None, squares, channel, gram, sample, windows })
    }

    /// Returns statistics that hold only the sum of squares of each feature, `squares` of the shape `[features]`, over `tokens` tokens: the
    /// content of an importance matrix. Errors if a sum is negative or not finite.
    pub fn from_squares(squares: Vec<f64>, tokens: u64) -> Result<Self> {
        if let Some(i) = squares.iter().position(|v| !v.is_finite() || *v < 0.0) {
            return Err(Error::Numerical(format!(
                "the sum of squares of feature {i} is {}; it must be finite and not negative",
                squares[i]
            )));
        }
        let none = Self::new(squares.len(), StatNeeds::none(), 0, 0)?;
        Ok(Self { tokens, squares: Some(squares), ..none })
    }

    /// Returns these statistics with `first` as the number in the whole calibration stream, counted from 0, of the first window (a whole
    /// sequence) that they will observe. They are unchanged if no statistics of windows were requested. Errors if a window was observed
    /// already.
    pub fn with_first_window(mut self, first: u64) -> Result<Self> {
        if let Some(windows) = &mut self.windows {
            if !windows.numbers.is_empty() {
                return Err(Error::order(
                    "number of the first window",
                    "it must be set before any window is observed",
                    windows.numbers.len(),
                ));
            }
            windows.first = first;
        }
        Ok(self)
    }

    /// Returns these statistics with `gram`, `[features, features]` row-major, as their Gram matrix; a Gram matrix held before is replaced.
    /// The number of tokens and the other statistics stay as they are. Errors if `gram` has another length, if a value is not finite, or if
    /// a value on the diagonal is negative. Errors if `gram` is not symmetric: two values across the diagonal may differ by at most 1e-6
    /// times the larger of their magnitudes, or times the root of the product of their two diagonal values if that is larger.
    pub fn with_gram(self, gram: Vec<f64>) -> Result<Self> {
        let k = self.features;
        if Some(gram.len()) != k.checked_mul(k) {
            return Err(Error::shape("Gram matrix", [k, k], gram.len()));
        }
        gram::check(&gram, k)?;
        Ok(Self { gram: Some(Arc::new(gram)), ..self })
    }

    /// Adds a batch of tokens, `[tokens, features]`, each of weight 1; a batch without tokens or features changes nothing.
    ///
    /// All errors leave the statistics unchanged. Errors if the batch has another number of features, or if a value is not finite (the
    /// error has its row and column in the batch). Errors if statistics of windows were requested; [`StatSet::observe_window`] must be used
    /// then. Errors if the index of a token in the whole stream exceeds u64.
    ///
    /// Errors if a sample was requested and holds a token whose index in the stream is not below that of the batch's first token. This
    /// happens after a later shard was merged: a shard must be observed to its end before later shards are merged into it.
    ///
    /// Errors if a Gram matrix was requested and the sum of squares of a feature over 512 consecutive tokens of the batch exceeds f32.
    pub fn observe(&mut self, batch: &impl IntoMat<f32>) -> Result<()> {
        batch.with_mat(|m| self.add(m, Weights::NONE, false))
    }

    /// Adds a window, a whole sequence of tokens, `[tokens, features]`; windows are observed in the order of the stream and numbered in
    /// this order. `weights` has one weight for each token; None means that each is 1. A window without features changes nothing.
    ///
    /// A token of weight `w` adds `w x xᵀ` to the Gram matrix and `w x`, `w |x|`, `w x²` to channel statistics and squares; mean and
    /// variance of the window are weighted too. A token of weight 0, such as padding, counts in [`StatSet::tokens`] and
    /// [`WindowStats::tokens`] and nowhere else. For the Gram matrix, rows are multiplied by the root of their weight and rounded to f32: a
    /// relative error of `2^-24` for each value, none for weights of 1. Weights that are all 1 give the same bits as [`StatSet::observe`].
    ///
    /// All errors leave the statistics unchanged. Errors if the window has no tokens, if there are more or fewer weights than tokens, if a
    /// weight is negative or not finite, or if all weights are 0. Errors if the window has another number of features, or if a value is not
    /// finite (the error has its row and column in the window). Errors if the index of a token in the whole stream exceeds u64.
    ///
    /// Errors if a sample was requested and holds a token whose index in the stream is not below that of the window's first token, which
    /// happens after a later shard was merged. Errors if a Gram matrix was requested and a weighted value, or the weighted sum of squares
    /// of a feature over 512 consecutive tokens, exceeds f32.
    ///
    /// If statistics of windows were requested, errors if a variance exceeds f32, if the window's number exceeds u64, or if that number is
    /// unknown. It is unknown if windows of another shard were merged and the windows held are not numbered without gap from this shard's
    /// first window on.
    pub fn observe_window(&mut self, batch: &impl IntoMat<f32>, weights: Option<&[f32]>) -> Result<()> {
        batch.with_mat(|m| {
            let tokens = m.shape()[0];
            if tokens == 0 {
                return Err(Error::shape("tokens of a window", "at least 1", tokens));
            }
            self.add(m, Weights::check(weights, tokens)?, true)
        })
    }

    fn add(&mut self, m: MatView<'_, f32>, weights: Weights<'_>, window: bool) -> Result<()> {
        let [tokens, k] = m.shape();
        if k != self.features {
            return Err(Error::shape("features of a batch", self.features, k));
        }
        let x = m.to_f32();
        crate::rows::check_finite(&x, k, 0)?;
        if tokens == 0 || k == 0 {
            return Ok(());
        }
        // Everything that can fail is computed before the first change.
        let first = self.first_token.checked_add(self.tokens);
        let end = first.and_then(|first| first.checked_add(tokens as u64));
        let (Some(first), Some(_)) = (first, end) else {
            return Err(Error::Overflow { what: "the number of a token".into() });
        };
        if let Some(last) = self.sample.as_ref().and_then(|s| s.keys.iter().map(|key| key.1).max())
            && last >= first
        {
            let rule = "it must be after all tokens of the sample; merge the shards before it first";
            return Err(Error::order("number of a token", rule, (first, last)));
        }
        let new_window = match &self.windows {
            Some(_) if !window => {
                let value = "these statistics need whole windows; use `observe_window`".into();
                return Err(Error::Unsupported { what: "a batch that is not a window", value });
            }
            Some(windows) => Some((windows.next()?, WindowStats::of(&x, k, weights)?)),
            None => None,
        };
        if let Some(gram) = &mut self.gram {
            let rows = gram::batch(&x, k, weights)?;
            let gram = Arc::make_mut(gram);
            tersor_kernels::dense::add_gram(&rows, [tokens, k], gram, cfg!(feature = "rayon"))?;
        }
        if let Some(squares) = &mut self.squares {
            for (row, w) in x.chunks_exact(k).zip(weights.each()) {
                squares.iter_mut().zip(row).for_each(|(s, v)| *s += w * f64::from(*v).powi(2));
            }
        }
        if let Some(channel) = &mut self.channel {
            channel.observe(&x, k, weights);
        }
        if let Some(sample) = &mut self.sample {
            for ((row, w), number) in x.chunks_exact(k).zip(weights.each()).zip(first..) {
                if w > 0.0 {
                    sample.offer(number, || row.to_vec());
                }
            }
        }
        if let (Some(windows), Some((number, stats))) = (&mut self.windows, new_window) {
            windows.insert(number, stats);
        }
        if self.weight.is_some() || weights.other_than_1().is_some() {
            self.weight = Some(weights.add_to(self.weight(), tokens));
        }
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Adds the statistics `other` of another shard, a separately gathered part of the same calibration stream, to these. Floating-point
    /// sums depend on the order in which shards are added, so a caller should fix this order. Windows are put in the order of their
    /// numbers. The two shards must not overlap: a token that both have observed counts twice in sums and in [`StatSet::tokens`], without
    /// an error.
    ///
    /// Both must hold the same statistics ([`StatSet::needs`]), with one exception. If only one of them holds squares, the other may hold
    /// channel statistics or a Gram matrix instead, from which its squares are taken. The result then holds the same statistics as the one
    /// with squares. Channel statistics or a Gram matrix that only the other holds are dropped.
    ///
    /// Errors, with `self` unchanged, if the two differ in the number of features, or in the statistics that they hold, apart from this
    /// exception. Errors if they differ in the requested size or the seed of a sample, if they have a window of the same number, or if the
    /// number of tokens exceeds u64.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let needs = self.needs_of_sum(other);
        let needs = needs.ok_or_else(|| Error::shape("statistics to merge", self.summary(), other.summary()))?;
        let tokens = self.tokens.checked_add(other.tokens);
        let tokens = tokens.ok_or_else(|| Error::Overflow { what: "the number of tokens".into() })?;
        if let (Some(a), Some(b)) = (&self.windows, &other.windows) {
            a.check_disjoint(b)?;
        }
        let squares = if needs.squares { self.squares().zip(other.squares()) } else { None };
        self.squares = squares.map(|(mut sum, b)| {
            sum.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
            sum
        });
        self.channel.take_if(|_| !needs.channel);
        self.gram.take_if(|_| !needs.gram);
        if let (Some(a), Some(b)) = (&mut self.channel, &other.channel) {
            a.merge(b);
        }
        if let (Some(a), Some(b)) = (self.gram.as_mut().map(Arc::make_mut), &other.gram) {
            a.iter_mut().zip(b.iter()).for_each(|(a, b)| *a += b);
        }
        if let (Some(a), Some(b)) = (&mut self.sample, &other.sample) {
            a.merge(b);
        }
        if let (Some(a), Some(b)) = (&mut self.windows, &other.windows) {
            a.merge(b);
        }
        if self.weight.is_some() || other.weight.is_some() {
            self.weight = Some(self.weight() + other.weight());
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Returns the needs that the sum of two shards is made for; None if they cannot be added.
    fn needs_of_sum(&self, other: &Self) -> Option<StatNeeds> {
        let (a, b) = (self.needs(), other.needs());
        let seed = |s: &Self| s.sample.as_ref().map(|s| s.seed);
        if self.features != other.features
            || (a.sample, a.windows) != (b.sample, b.windows)
            || seed(self) != seed(other)
        {
            return None;
        }
        match (a.squares, b.squares) {
            (true, false) => b.implies(a).then_some(a),
            (false, true) => a.implies(b).then_some(b),
            _ => (a == b).then_some(a),
        }
    }

    /// Returns these statistics reduced to what `needs` requests; a statistic that is requested but not held stays absent. Squares that are
    /// requested and not stored are derived from channel statistics or the Gram matrix, so that the result merges with statistics made for
    /// `needs`. A sample that is requested keeps its own size, even if `needs` has a smaller one.
    pub fn only(self, needs: StatNeeds) -> Self {
        let squares = if needs.squares { self.squares() } else { None };
        Self {
            squares,
            channel: self.channel.filter(|_| needs.channel),
            gram: self.gram.filter(|_| needs.gram),
            sample: self.sample.filter(|_| needs.sample > 0),
            windows: self.windows.filter(|_| needs.windows),
            ..self
        }
    }

    /// Returns the statistics of the features in the range `columns` alone, counted from 0; the result has `columns.len()` features. Errors
    /// if the range is reversed or leaves the features.
    pub fn columns(&self, columns: Range<usize>) -> Result<Self> {
        let k = self.features;
        if columns.start > columns.end || columns.end > k {
            return Err(Error::range("columns of statistics", 0..k, columns));
        }
        let gram = self.gram.as_ref().map(|gram| {
            let rows = gram.chunks_exact(k.max(1)).skip(columns.start).take(columns.len());
            Arc::new(rows.flat_map(|row| &row[columns.clone()]).copied().collect())
        });
        Ok(Self {
            features: columns.len(),
            gram,
            channel: self.channel.as_ref().map(|c| c.columns(&columns)),
            sample: self.sample.as_ref().map(|s| s.columns(&columns)),
            squares: self.squares.as_ref().map(|v| v[columns.clone()].to_vec()),
            windows: self.windows.as_ref().map(|w| w.columns(&columns)),
            ..*self
        })
    }

    fn summary(&self) -> String {
        let n = self.needs();
        let seed = self.sample.as_ref().map_or(String::new(), |s| format!(" of seed {}", s.seed));
        format!(
            "{} features, squares {}, channel {}, gram {}, sample {}{seed}, windows {}",
            self.features, n.squares, n.channel, n.gram, n.sample, n.windows
        )
    }
}
