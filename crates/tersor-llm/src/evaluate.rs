//! Perplexity of a decoder, and the agreement of its predictions with those of another.

use std::collections::VecDeque;

use tersor_core::{Cancel, Error, Exec, Input, Progress, Result, metrics};
use tersor_kernels::par;

use crate::{Decoder, SiteKind};

/// Number of tokens whose logits are in memory at once.
const BLOCK: usize = 64;

/// Number of tokens of each window whose site inputs are compared with the original's: those of all tokens would not fit in memory.
const COMPARED: usize = 16;

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
}

/// Agreement of a network's predictions with those of its original, over all scored tokens (all but the first of each window).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Agreement {
    /// Mean Kullback-Leibler divergence `KL(original ‖ this network)` of the next-token distributions over all scored tokens (all but the
    /// first of each window), in nats per token; 0 if they are equal.
    pub kl_mean: f64,
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

/// Cuts the token sequence `tokens` into non-overlapping windows of `ctx` tokens each and returns the first `count` of them, or all if
/// `count` is None. Tokens at the end that do not fill a window are dropped. Errors if `ctx` is below 2, `count` is 0, or the tokens do not
/// fill one window.
///
/// ```
/// let tokens = [1, 2, 3, 4, 5];
/// assert_eq!(tersor_llm::windows(&tokens, 2, None).unwrap(), [[1, 2], [3, 4]]);
/// assert_eq!(tersor_llm::windows(&tokens, 2, Some(1)).unwrap(), [[1, 2]]);
/// assert!(tersor_llm::windows(&tokens, 6, None).is_err());
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

/// Measures the perplexity of `decoder` on the token sequences `windows`. Each window has at least 2 tokens and is read on its own; all its
/// tokens but the first are scored. If `original` is given, also measures how far the predictions of the two decoders agree. Reports each
/// window as one step to `progress`; `cancel` is checked before each window. Errors if there is no window, a window has fewer than 2
/// tokens, a token is outside of the vocabulary, the two vocabularies differ in size, a token's log-probability is not finite, a logit of
/// the original is NaN or plus infinity, a decoder fails, or the work is cancelled.
///
/// ```
/// use tersor_core::{Cancel, Exec, Silent};
/// use tersor_llm::{Checkpoint, Decoder, evaluate};
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
    let vocab = decoder.config().vocab;
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
    let (mut nll, mut kl, mut same, mut scored) = (0f64, 0f64, 0u64, 0u64);
    let (mut state, mut state_o) = (decoder.state()?, original.map(Decoder::state).transpose()?);
    let (mut p, mut q) = (Vec::new(), Vec::new());
    let mut drift = original.and_then(|o| Drift::new(decoder, o));
    progress.begin("evaluate", windows.len() as u64);
    for window in windows {
        cancel.check()?;
        state.clear();
        let hidden_o = match (original, &mut state_o) {
            (Some(o), Some(s)) => {
                s.clear();
                let seen = &mut |layer, kind, x: &Input<'_>| {
                    drift.iter_mut().for_each(|d| d.original(layer, kind, x));
                    Ok(())
                };
                Some((o, o.forward_observed(window, s, exec, seen)?))
            }
            _ => None,
        };
        let seen = &mut |layer, kind, x: &Input<'_>| {
            drift.iter_mut().for_each(|d| d.compare(layer, kind, x));
            Ok(())
        };
        let hidden = decoder.forward_observed(window, &mut state, exec, seen)?;
        let predicted = window.len() - 1;
        for first in (0..predicted).step_by(BLOCK) {
            let n = BLOCK.min(predicted - first);
            let rows = |h: &[f32], d: &Decoder| -> Vec<f32> {
                let w = d.config().hidden;
                h[first * w..(first + n) * w].to_vec()
            };
            q.resize(n * vocab, 0.0);
            decoder.logits_into(&rows(&hidden, decoder), &mut q, exec)?;
            if let Some((o, h)) = &hidden_o {
                p.resize(n * vocab, 0.0);
                o.logits_into(&rows(h, o), &mut p, exec)?;
            }
            let scores = par::map(
                n,
                exec.parallel(),
                || (),
                |t, ()| {
                    let q = &q[t * vocab..(t + 1) * vocab];
                    let target = window[first + t + 1] as usize;
                    let norm = metrics::log_sum_exp(q);
                    let nll = norm - f64::from(q[target]);
                    let against = hidden_o.as_ref().map(|_| {
                        let p = &p[t * vocab..(t + 1) * vocab];
                        (metrics::kl_with_norm(p, q, norm), metrics::argmax(p) == metrics::argmax(q))
                    });
                    (nll, against)
                },
            );
            for (t, (n, against)) in scores.into_iter().enumerate() {
                if !n.is_finite() {
                    let value = n as f32;
                    return Err(Error::NonFinite { row: first + t, col: 0, value }.in_tensor("logits"));
                }
                nll += n;
                if let Some((k, equal)) = against {
                    // A NaN here is one of the original's logits: those of this network gave a finite `n`.
                    if k.is_nan() {
                        let value = k as f32;
                        return Err(
                            Error::NonFinite { row: first + t, col: 0, value }.in_tensor("logits of the original")
                        );
                    }
                    kl += k;
                    same += u64::from(equal);
                }
            }
        }
        scored += predicted as u64;
        progress.advance(1, "");
    }
    progress.end();
    let n = scored as f64;
    let sites = drift.map(Drift::finish).unwrap_or_default();
    let against = original.map(|_| Agreement { kl_mean: kl / n, top1: same as f64 / n, sites });
    Ok(Evaluation { perplexity: (nll / n).exp(), tokens: scored, against })
}

/// Accumulates the relative error of site inputs against the original network.
struct Drift {
    names: Vec<String>,
    /// The original's inputs in the current window, by site, one entry for each block of tokens.
    seen: Vec<VecDeque<Vec<f32>>>,
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
        (ours == theirs).then(|| Self {
            names: ours.into_iter().map(|s| s.0).collect(),
            seen: vec![VecDeque::new(); n],
            sums: vec![(0.0, 0.0); n],
        })
    }

    fn site(layer: usize, kind: SiteKind) -> usize {
        layer * SiteKind::ALL.len() + SiteKind::ALL.iter().position(|k| *k == kind).unwrap_or(0)
    }

    /// Returns the inputs of the compared tokens, which are evenly spaced in the block.
    fn rows<'x>(x: &'x Input<'_>) -> impl Iterator<Item = &'x [f32]> {
        let [tokens, features] = x.shape();
        x.data().chunks_exact(features.max(1)).step_by((tokens / COMPARED).max(1))
    }

    fn original(&mut self, layer: usize, kind: SiteKind, x: &Input<'_>) {
        if let Some(seen) = self.seen.get_mut(Self::site(layer, kind)) {
            seen.push_back(Self::rows(x).flatten().copied().collect());
        }
    }

    fn compare(&mut self, layer: usize, kind: SiteKind, x: &Input<'_>) {
        let at = Self::site(layer, kind);
        let seen = self.seen.get_mut(at).and_then(VecDeque::pop_front);
        if let (Some(seen), Some(sums)) = (seen, self.sums.get_mut(at)) {
            for (x, o) in Self::rows(x).flatten().zip(&seen) {
                sums.0 += f64::from(x - o).powi(2);
                sums.1 += f64::from(*o).powi(2);
            }
        }
    }

    fn finish(self) -> Vec<(String, f64)> {
        let relative = |(e, o): (f64, f64)| if o > 0.0 { (e / o).sqrt() } else { 0.0 };
        self.names.into_iter().zip(self.sums).map(|(name, sums)| (name, relative(sums))).collect()
    }
}
