//! Perplexity of a decoder, and the agreement of its predictions with those of another.

use std::ops::Range;

use tersor_core::{Cancel, Error, Exec, Input, Progress, Result, metrics};
use tersor_kernels::par;

use crate::{Decoder, DecoderConfig, SiteKind, State};

/// Number of tokens whose logits are in memory at once.
const BLOCK: usize = 64;

/// Number of tokens of each window whose site inputs are compared with the original's: those of all tokens would not fit in memory.
const COMPARED: usize = 16;

/// Number of tokens on which the noise floor is measured: the first windows that have as many together.
const NOISE_TOKENS: usize = 2048;

/// Number of intervals of [`Agreement::by_confidence`].
pub const CONFIDENCES: usize = 5;

/// The result of [`evaluate`]: the perplexity of a network on a text, and the agreement of its predictions with those of the original
/// network.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Evaluation {
    /// Perplexity: `exp` of the mean negative log-probability (natural logarithm) of the scored tokens, which are all tokens but the first
    /// of each window. It is 1 if the network predicts each of them with certainty, and above 1 otherwise.
    pub perplexity: f64,
    /// Number of scored tokens: all tokens but the first of each window.
    pub tokens: u64,
    /// Agreement with the original network; None if [`evaluate`] got no original.
    pub against: Option<Agreement>,
    /// Mean Kullback-Leibler divergence, in nats per token, of the original network's predictions from those that it makes with the inputs
    /// of its matrices rounded to bf16 ([`Decoder::forward_bf16`]): `KL(f32 ‖ bf16)` over the scored tokens of the first windows that have
    /// 2048 tokens together, or of all windows if they have fewer. A divergence below it is no larger than what the rounding of activations
    /// alone makes. Without an original it is that of the evaluated network. None unless [`Request::noise_floor`] is set.
    pub noise_floor: Option<f64>,
}

/// Agreement of a network's predictions with those of its original, over all scored tokens (all but the first of each window).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Agreement {
    /// Mean Kullback-Leibler divergence `KL(original ‖ this network)` of the next-token distributions over all scored tokens (all but the
    /// first of each window), in nats per token; 0 if they are equal.
    pub kl_mean: f64,
    /// Median of the same divergences, in nats: the [nearest rank](metrics::nearest_rank) of 0.5.
    pub kl_median: f64,
    /// The divergence that 9 of 10 tokens do not exceed, in nats: the [nearest rank](metrics::nearest_rank) of 0.9.
    pub kl_p90: f64,
    /// The divergences by the confidence of the original network, which is its largest probability of a next token: [`CONFIDENCES`] intervals
    /// of equal width, `[0, 0.2)` to `[0.8, 1]`.
    pub by_confidence: Vec<Bucket>,
    /// Share of the scored tokens (all but the first of each window), 0 to 1, for which both networks predict the same most probable token.
    pub top1: f64,
    /// Name and relative input error `‖x - x₀‖ / ‖x₀‖` of each [site](tersor_core::Site) of the layers (an input with the linear layers
    /// that read it), in the order of execution. `x` has the site's inputs in this network and `x₀` those in the original. Both are for the
    /// same sample of tokens from all windows, and `‖·‖` is the root of the sum of squares over all sampled tokens and all features. To
    /// sample, each window is cut into blocks of 512 tokens, the last of which may be shorter: a block of up to 31 tokens gives all of
    /// them, a longer one gives 16 to 24 evenly spaced ones. The error is 0 if `x₀` is 0. The list is empty if names or widths of the sites
    /// of the two networks differ.
    pub sites: Vec<(String, f64)>,
}

/// The scored tokens for which the original network's largest probability is in an interval.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Bucket {
    /// Lower end of the interval, which belongs to it.
    pub from: f64,
    /// Upper end of the interval, which belongs to it only if it is 1.
    pub to: f64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Mean divergence of these tokens in nats; None if there is none.
    pub kl_mean: Option<f64>,
}

/// Returns the intervals of confidence with number and mean divergence of their tokens. `seen` has divergence and confidence of each token.
fn buckets(seen: impl Iterator<Item = (f64, f64)>) -> Vec<Bucket> {
    let mut sums = [(0u64, 0f64); CONFIDENCES];
    // The ends are compared as they are reported: 0.6 times 5 is not 3 in f64.
    let end = |i: usize| i as f64 / CONFIDENCES as f64;
    for (kl, confidence) in seen {
        let at = (1..CONFIDENCES).filter(|i| confidence >= end(*i)).count();
        sums[at].0 += 1;
        sums[at].1 += kl;
    }
    let bucket = |(i, (tokens, kl)): (usize, (u64, f64))| Bucket {
        from: end(i),
        to: end(i + 1),
        tokens,
        kl_mean: (tokens > 0).then(|| kl / tokens as f64),
    };
    sums.into_iter().enumerate().map(bucket).collect()
}

/// What a network computes for one window, as far as an evaluation compares it: enough to store in a file and compare other networks with,
/// without running the network again.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct States {
    /// Final hidden states of all tokens, after the last norm, `[tokens, hidden]` row-major. The network's output head makes its logits of
    /// them ([`Decoder::logits_into`]).
    pub hidden: Vec<f32>,
    /// Inputs of the four [sites](SiteKind) of each layer, in the order of execution, `[sampled, features]` row-major, for the
    /// [sampled](States::sampled) tokens.
    pub sites: Vec<Vec<f32>>,
}

impl States {
    /// Returns the number of sampled tokens of a window of `tokens` tokens. The window is cut into blocks of 512 tokens, the last of which
    /// may be shorter: of a block of up to 31 tokens all are sampled, of a longer one 16 to 24 evenly spaced ones.
    ///
    /// ```
    /// use tersor_models::States;
    /// assert_eq!([20, 64, 512, 532].map(States::sampled), [20, 16, 16, 36]);
    /// ```
    pub fn sampled(tokens: usize) -> usize {
        let of_block = |n: usize| n.div_ceil((n / COMPARED).max(1));
        tokens / crate::decoder::BLOCK * of_block(crate::decoder::BLOCK) + of_block(tokens % crate::decoder::BLOCK)
    }

    /// Returns the number of features of each entry of [`States::sites`] in a decoder with the configuration `config`.
    pub fn features(config: &DecoderConfig) -> Vec<usize> {
        config.sites().iter().filter(|s| s.layer.is_some()).map(|s| s.features).collect()
    }

    /// Errors unless these are states of a window of `tokens` tokens in a decoder with the configuration `config`, by their lengths.
    fn check(&self, config: &DecoderConfig, tokens: usize) -> Result<()> {
        let sites: Vec<usize> = Self::features(config).iter().map(|f| f * Self::sampled(tokens)).collect();
        let found: Vec<usize> = self.sites.iter().map(Vec::len).collect();
        if self.hidden.len() != tokens * config.hidden {
            return Err(Error::shape("stored hidden states of a window", tokens * config.hidden, self.hidden.len()));
        }
        if found != sites {
            return Err(Error::shape("stored inputs of sites", sites, found));
        }
        Ok(())
    }

    /// Adds the sampled tokens of a block.
    fn observe(&mut self, layer: usize, kind: SiteKind, x: &Input<'_>) {
        if let Some(site) = self.sites.get_mut(site(layer, kind)) {
            site.extend(sampled(x).flatten());
        }
    }
}

/// Returns the index of a site in the order of execution.
fn site(layer: usize, kind: SiteKind) -> usize {
    layer * SiteKind::ALL.len() + SiteKind::ALL.iter().position(|k| *k == kind).unwrap_or(0)
}

/// Returns the inputs of the sampled tokens, which are evenly spaced in the block.
fn sampled<'x>(x: &'x Input<'_>) -> impl Iterator<Item = &'x [f32]> {
    let [tokens, features] = x.shape();
    x.data().chunks_exact(features.max(1)).step_by((tokens / COMPARED).max(1))
}

/// The original network, which another one is compared with.
pub enum Original<'a> {
    /// It runs on every window.
    Network(&'a Decoder),
    /// Its predictions were stored. Of `network` the output head is used if the logits were not stored; the layers only for a noise floor.
    Stored {
        /// The original network.
        network: &'a Decoder,
        /// Its predictions for the same windows.
        predictions: &'a mut dyn StoredPredictions,
    },
}

impl<'a> Original<'a> {
    fn network(&self) -> &'a Decoder {
        match self {
            Self::Network(network) | Self::Stored { network, .. } => network,
        }
    }
}

/// Predictions of an original network that were stored, such as in a file. Windows are counted from 0.
///
/// ```
/// use tersor_core::Result;
/// use tersor_models::{States, StoredPredictions};
/// /// The states of each window, in memory.
/// struct InMemory(Vec<States>);
/// impl StoredPredictions for InMemory {
///     fn states(&mut self, window: usize) -> Result<States> {
///         Ok(self.0[window].clone())
///     }
/// }
/// assert!(InMemory(vec![States::default()]).states(0).is_ok());
/// ```
pub trait StoredPredictions {
    /// Returns the states of a window. [`evaluate_with`] calls it once for each window, in order, and passes an error on.
    fn states(&mut self, window: usize) -> Result<States>;
    /// Writes the logits of a window's tokens `tokens` to `out`, `[tokens, vocab]`, and returns true. Returns false, with `out` unchanged,
    /// if logits were not stored, as the provided method does: the network's output head then makes them from the states.
    fn logits(&mut self, window: usize, tokens: Range<usize>, out: &mut [f32]) -> Result<bool> {
        let _ = (window, tokens, out);
        Ok(false)
    }
}

/// Receives the predictions of a network while [`evaluate_with`] runs, to store them. Windows are counted from 0 and come in order.
pub trait KeepPredictions {
    /// Receives the states of a window. An error ends the evaluation.
    fn states(&mut self, window: usize, states: &States) -> Result<()>;
    /// Receives, after its states, the logits of a window's tokens `tokens`, `[tokens, vocab]`: of all tokens but the last, in blocks in
    /// order. An error ends the evaluation. The provided method stores nothing.
    fn logits(&mut self, window: usize, tokens: Range<usize>, logits: &[f32]) -> Result<()> {
        let _ = (window, tokens, logits);
        Ok(())
    }
}

/// What [`evaluate_with`] measures beside the perplexity. The default is nothing.
#[derive(Default)]
pub struct Request<'a> {
    /// The original network, to measure how far predictions agree.
    pub original: Option<Original<'a>>,
    /// Receives the predictions for each window: those of the original if it runs, those of the evaluated network if there is no original.
    /// It is not called if the predictions of the original were stored.
    pub keep: Option<&'a mut dyn KeepPredictions>,
    /// Whether to measure [`Evaluation::noise_floor`].
    pub noise_floor: bool,
}

/// Cuts the token sequence `tokens` into non-overlapping windows of `ctx` tokens each and returns the first `count` of them, or all if
/// `count` is None. Tokens at the end that do not fill a window are dropped. Errors if `ctx` is below 2, `count` is 0, or the tokens do not
/// fill one window.
///
/// ```
/// let tokens = [1, 2, 3, 4, 5];
/// assert_eq!(tersor_models::windows(&tokens, 2, None).unwrap(), [[1, 2], [3, 4]]);
/// assert_eq!(tersor_models::windows(&tokens, 2, Some(1)).unwrap(), [[1, 2]]);
/// assert!(tersor_models::windows(&tokens, 6, None).is_err());
/// ```
pub fn windows(tokens: &[u32], ctx: usize, count: Option<usize>) -> Result<Vec<&[u32]>> {
    if ctx < 2 {
        return Err(tersor_core::ParamError::new("ctx", ctx, "must be at least 2").into());
    }
    let all: Vec<&[u32]> = tokens.chunks_exact(ctx).take(count.unwrap_or(usize::MAX)).collect();
    if all.is_empty() {
        return Err(Error::format("text", format!("{} tokens do not fill one window of {ctx}", tokens.len())));
    }
    Ok(all)
}

/// Measures the perplexity of `decoder` on the token sequences `windows`, and how far its predictions agree with those of `original`, if one
/// is given: [`evaluate_with`] without further measurements, which states progress and errors.
///
/// ```
/// use tersor_core::{Cancel, Exec, Silent};
/// use tersor_models::{Checkpoint, Decoder, evaluate};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let decoder = Decoder::load(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let window = [1, 2, 3, 4];
/// let found = evaluate(&decoder, Some(&decoder), &[&window[..]], &Exec::new(), &Silent, &Cancel::new())?;
/// assert_eq!(found.tokens, 3);
/// assert_eq!(found.against.unwrap().top1, 1.0);
/// # Ok(())
/// # }
/// ```
pub fn evaluate(
    decoder: &Decoder,
    original: Option<&Decoder>,
    windows: &[&[u32]],
    exec: &Exec,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Evaluation> {
    let request = Request { original: original.map(Original::Network), ..Request::default() };
    evaluate_with(decoder, request, windows, exec, progress, cancel)
}

/// Measures the perplexity of `decoder` on the token sequences `windows`, and what `request` has beside it. Each window has at least 2 tokens
/// and is read on its own; all its tokens but the first are scored.
///
/// Reports to `progress` one step for each pass of a window through a network: `original` if it runs, `bf16` in the windows of a noise
/// floor, and `model`. `cancel` is checked before each pass. Errors if there is no window, a window has fewer than 2 tokens, a token is
/// outside of the vocabulary, the two vocabularies differ in size, a token's log-probability is not finite, a logit of the original is NaN
/// or plus infinity, stored states are not those of such a window, a callback or a decoder fails, or the work is cancelled.
///
/// ```
/// use tersor_core::{Cancel, Exec, Silent};
/// use tersor_core::Result;
/// use tersor_models::{Checkpoint, Decoder, KeepPredictions, Original, Request, States, StoredPredictions, evaluate_with};
/// /// The states of each window, in memory.
/// #[derive(Default)]
/// struct InMemory(Vec<States>);
/// impl KeepPredictions for InMemory {
///     fn states(&mut self, _: usize, states: &States) -> Result<()> {
///         self.0.push(states.clone());
///         Ok(())
///     }
/// }
/// impl StoredPredictions for InMemory {
///     fn states(&mut self, window: usize) -> Result<States> {
///         Ok(self.0[window].clone())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let decoder = Decoder::load(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let (window, mut predictions) = ([1, 2, 3, 4], InMemory::default());
/// // The network runs once; its states are compared with it later.
/// let request = Request { keep: Some(&mut predictions), noise_floor: true, ..Request::default() };
/// let alone = evaluate_with(&decoder, request, &[&window[..]], &Exec::new(), &Silent, &Cancel::new())?;
/// assert!(alone.noise_floor.unwrap() > 0.0);
///
/// let original = Some(Original::Stored { network: &decoder, predictions: &mut predictions });
/// let request = Request { original, ..Request::default() };
/// let found = evaluate_with(&decoder, request, &[&window[..]], &Exec::new(), &Silent, &Cancel::new())?;
/// assert_eq!(found.against.unwrap().kl_mean, 0.0);
/// # Ok(())
/// # }
/// ```
pub fn evaluate_with(
    decoder: &Decoder,
    mut request: Request<'_>,
    windows: &[&[u32]],
    exec: &Exec,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Evaluation> {
    let vocab = decoder.config().vocab;
    let original = request.original.as_ref().map(Original::network);
    if let Some(o) = original
        && o.config().vocab != vocab
    {
        return Err(Error::shape("vocabulary of the original", vocab, o.config().vocab));
    }
    if windows.is_empty() {
        return Err(Error::missing("a window", "the text to evaluate"));
    }
    if let Some(window) = windows.iter().find(|w| w.len() < 2) {
        return Err(Error::shape(
            "tokens of a window",
            "at least 2, of which all but the first are scored",
            window.len(),
        ));
    }
    // Of the network whose noise is measured.
    let source = original.unwrap_or(decoder);
    let noisy = if request.noise_floor { windows_of(windows, NOISE_TOKENS) } else { 0 };
    let (mut nll, mut same, mut scored) = (0f64, 0u64, 0u64);
    // Divergence and confidence of each scored token, and the divergences that bf16 makes: their sum and number.
    let (mut divergences, mut noise) = (Vec::new(), (0f64, 0u64));
    let mut kl = 0f64;
    let runs = matches!(request.original, Some(Original::Network(_)));
    let mut state = decoder.state()?;
    let mut state_o = if runs || noisy > 0 { Some(source.state()?) } else { None };
    let (mut p, mut q, mut r) = (Vec::new(), Vec::new(), Vec::new());
    let mut drift = original.and_then(|o| Drift::new(decoder, o));
    let passes = windows.len() * if runs { 2 } else { 1 } + noisy;
    progress.begin("evaluate", passes as u64);
    for (index, window) in windows.iter().enumerate() {
        let of_original = match (&mut request.original, &mut state_o) {
            (Some(Original::Network(o)), Some(s)) => {
                cancel.check()?;
                s.clear();
                let found = run(o, window, s, exec)?;
                progress.advance(1, "original");
                Some(found)
            }
            (Some(Original::Stored { network, predictions }), _) => {
                let found = predictions.states(index)?;
                found.check(network.config(), window.len())?;
                Some(found)
            }
            _ => None,
        };
        let rounded = match &mut state_o {
            Some(s) if index < noisy => {
                cancel.check()?;
                s.clear();
                let found = source.forward_bf16(window, s, exec)?;
                progress.advance(1, "bf16");
                Some(found)
            }
            _ => None,
        };
        cancel.check()?;
        state.clear();
        let hidden = match (&of_original, &mut request.keep) {
            (Some(of_original), keep) => {
                if let (true, Some(keep)) = (runs, keep) {
                    keep.states(index, of_original)?;
                }
                let mut drift = drift.as_mut().map(|d| d.window(&of_original.sites));
                let seen = &mut |layer, kind, x: &Input<'_>| {
                    drift.iter_mut().for_each(|d| d.compare(layer, kind, x));
                    Ok(())
                };
                decoder.forward_observed(window, &mut state, exec, seen)?
            }
            (None, Some(keep)) => {
                let found = run(decoder, window, &mut state, exec)?;
                keep.states(index, &found)?;
                found.hidden
            }
            (None, None) => decoder.forward(window, &mut state, exec)?,
        };
        progress.advance(1, "model");
        let predicted = window.len() - 1;
        for first in (0..predicted).step_by(BLOCK) {
            let n = BLOCK.min(predicted - first);
            // Logits of this block's tokens.
            let logits = |hidden: &[f32], d: &Decoder, out: &mut Vec<f32>| {
                let w = d.config().hidden;
                out.resize(n * vocab, 0.0);
                d.logits_into(&hidden[first * w..(first + n) * w], out, exec)
            };
            logits(&hidden, decoder, &mut q)?;
            if let Some(o) = &of_original {
                let stored = match &mut request.original {
                    Some(Original::Stored { predictions, .. }) => {
                        p.resize(n * vocab, 0.0);
                        predictions.logits(index, first..first + n, &mut p)?
                    }
                    _ => false,
                };
                if !stored {
                    logits(&o.hidden, source, &mut p)?;
                }
            }
            if let Some(keep) = &mut request.keep
                && (runs || of_original.is_none())
            {
                keep.logits(index, first..first + n, if runs { &p } else { &q })?;
            }
            if let Some(rounded) = &rounded {
                logits(rounded, source, &mut r)?;
            }
            let scores = par::map(
                n,
                exec.parallel(),
                || (),
                |t, ()| {
                    let row = t * vocab..(t + 1) * vocab;
                    let q = &q[row.clone()];
                    let target = window[first + t + 1] as usize;
                    let norm = metrics::log_sum_exp(q);
                    let nll = norm - f64::from(q[target]);
                    let against = of_original.as_ref().map(|_| {
                        let p = &p[row.clone()];
                        (metrics::kl_and_confidence(p, q, norm), metrics::argmax(p) == metrics::argmax(q))
                    });
                    let base = if of_original.is_some() { &p[row.clone()] } else { q };
                    let noise = rounded.as_ref().map(|_| metrics::kl_from_logits(base, &r[row]));
                    (nll, against, noise)
                },
            );
            let of_source = if original.is_some() { "logits of the original" } else { "logits" };
            for (t, (n, against, floor)) in scores.into_iter().enumerate() {
                let not_finite = |value: f64, of: &str| {
                    Err(Error::NonFinite { row: first + t, col: 0, value: value as f32 }.in_tensor(of))
                };
                if !n.is_finite() {
                    return not_finite(n, "logits");
                }
                nll += n;
                if let Some(((k, confidence), equal)) = against {
                    // A NaN here is one of the original's logits: those of this network gave a finite `n`.
                    if k.is_nan() {
                        return not_finite(k, "logits of the original");
                    }
                    kl += k;
                    divergences.push((k, confidence));
                    same += u64::from(equal);
                }
                if let Some(k) = floor {
                    if k.is_nan() {
                        return not_finite(k, of_source);
                    }
                    noise = (noise.0 + k, noise.1 + 1);
                }
            }
        }
        scored += predicted as u64;
    }
    progress.end();
    let n = scored as f64;
    let sites = drift.map(Drift::finish).unwrap_or_default();
    let against = original.map(|_| {
        let by_confidence = buckets(divergences.iter().copied());
        let mut sorted: Vec<f64> = divergences.iter().map(|d| d.0).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share| metrics::nearest_rank(&sorted, share).unwrap_or(0.0);
        Agreement {
            kl_mean: kl / n,
            kl_median: quantile(0.5),
            kl_p90: quantile(0.9),
            by_confidence,
            top1: same as f64 / n,
            sites,
        }
    });
    let noise_floor = request.noise_floor.then(|| noise.0 / noise.1 as f64);
    Ok(Evaluation { perplexity: (nll / n).exp(), tokens: scored, against, noise_floor })
}

/// Returns the number of first windows that have `tokens` tokens together, or of all windows if they have fewer.
fn windows_of(windows: &[&[u32]], tokens: usize) -> usize {
    let mut sum = 0;
    let enough = windows.iter().position(|w| {
        sum += w.len();
        sum >= tokens
    });
    enough.map_or(windows.len(), |last| last + 1)
}

/// Runs a network on a window and returns its states.
fn run(network: &Decoder, window: &[u32], state: &mut State, exec: &Exec) -> Result<States> {
    let mut states = States { sites: vec![Vec::new(); States::features(network.config()).len()], ..States::default() };
    let seen = &mut |layer, kind, x: &Input<'_>| {
        states.observe(layer, kind, x);
        Ok(())
    };
    states.hidden = network.forward_observed(window, state, exec, seen)?;
    Ok(states)
}

/// Accumulates the relative error of site inputs against the original network.
struct Drift {
    names: Vec<String>,
    /// `Σ (x - x₀)²` and `Σ x₀²` of each site.
    sums: Vec<(f64, f64)>,
}

impl Drift {
    /// None if the two networks have different sites.
    fn new(decoder: &Decoder, original: &Decoder) -> Option<Self> {
        let sites =
            |d: &Decoder| d.sites().into_iter().filter(|s| s.layer.is_some()).map(|s| (s.name, s.features)).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = (sites(decoder), sites(original));
        let n = ours.len();
        (ours == theirs).then(|| Self { names: ours.into_iter().map(|s| s.0).collect(), sums: vec![(0.0, 0.0); n] })
    }

    /// Begins a window, for which the original has the inputs `sites`.
    fn window<'d>(&'d mut self, sites: &'d [Vec<f32>]) -> DriftOfWindow<'d> {
        DriftOfWindow { sums: &mut self.sums, remaining: sites.iter().map(Vec::as_slice).collect() }
    }

    fn finish(self) -> Vec<(String, f64)> {
        let relative = |(e, o): (f64, f64)| if o > 0.0 { (e / o).sqrt() } else { 0.0 };
        self.names.into_iter().zip(self.sums).map(|(name, sums)| (name, relative(sums))).collect()
    }
}

/// [`Drift`] in one window.
struct DriftOfWindow<'d> {
    sums: &'d mut [(f64, f64)],
    /// The original's inputs of the tokens that have not been compared yet, by site.
    remaining: Vec<&'d [f32]>,
}

impl DriftOfWindow<'_> {
    /// Compares the sampled tokens of a block.
    fn compare(&mut self, layer: usize, kind: SiteKind, x: &Input<'_>) {
        let at = site(layer, kind);
        if let (Some(remaining), Some(sums)) = (self.remaining.get_mut(at), self.sums.get_mut(at)) {
            let mut compared = 0;
            for (x, o) in sampled(x).flatten().zip(*remaining) {
                sums.0 += f64::from(x - o).powi(2);
                sums.1 += f64::from(*o).powi(2);
                compared += 1;
            }
            *remaining = &remaining[compared..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_a_plain_count() {
        let edges = [0.0, 0.1, 0.2, 0.2 - 1e-12, 0.4, 0.6, 0.6 - 1e-12, 0.7, 0.8, 0.999, 1.0];
        let seen: Vec<(f64, f64)> = edges.iter().enumerate().map(|(i, c)| (i as f64 * 0.37, *c)).collect();
        let found = buckets(seen.iter().copied());
        let ends = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
        for (b, w) in found.iter().zip(ends.windows(2)) {
            assert_eq!([b.from, b.to], [w[0], w[1]]);
            let inside = |c: f64| c >= w[0] && (c < w[1] || w[1] == 1.0);
            let kls: Vec<f64> = seen.iter().filter(|s| inside(s.1)).map(|s| s.0).collect();
            assert_eq!(b.tokens, kls.len() as u64);
            assert_eq!(b.kl_mean, Some(kls.iter().sum::<f64>() / kls.len() as f64));
        }
        assert_eq!(found.iter().map(|b| b.tokens).collect::<Vec<_>>(), [3, 1, 2, 2, 3]);
        assert!(buckets([].into_iter()).iter().all(|b| b.tokens == 0 && b.kl_mean.is_none()));
    }

    #[test]
    fn the_noise_floor_takes_the_first_windows_with_enough_tokens() {
        let (short, long) = ([0u32; 3], [0u32; 8]);
        assert_eq!(windows_of(&[&short, &short, &long, &long], 7), 3);
        assert_eq!(windows_of(&[&short, &short, &long, &long], 6), 2);
        assert_eq!(windows_of(&[&short, &short], 7), 2);
    }
}
