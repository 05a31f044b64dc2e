//! Weights of the tokens of a batch.

use crate::{Error, ParamError, Result};

/// The checked weights of the tokens of one batch; None if each is 1, so that such a batch takes the path without weights.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a>(Option<&'a [f32]>);

impl<'a> Weights<'a> {
    pub const NONE: Self = Self(None);

    /// Checks the weights of a batch of `tokens` tokens and wraps them; None as argument means that each weight is 1. Errors if the number
    /// of weights is not `tokens`, a weight is negative or not finite, or all are 0.
    pub fn check(weights: Option<&'a [f32]>, tokens: usize) -> Result<Self> {
        let Some(all) = weights else { return Ok(Self::NONE) };
        if all.len() != tokens {
            return Err(Error::shape("token weights", tokens, all.len()));
        }
        if let Some(t) = all.iter().position(|w| !(0.0..f32::INFINITY).contains(w)) {
            let rule = format!("the weight of token {t} of the batch must be finite and not negative");
            return Err(ParamError::new("weights", all[t], rule).into());
        }
        if tokens > 0 && all.iter().all(|w| *w == 0.0) {
            let rule = format!("at least one of the {tokens} tokens must have a weight above 0");
            return Err(ParamError::new("weights", "all zero", rule).into());
        }
        Ok(Self(Some(all).filter(|all| all.iter().any(|w| *w != 1.0))))
    }

    /// Returns the weight of each token, `[tokens]`; None if every weight is 1.
    pub fn other_than_1(self) -> Option<&'a [f32]> {
        self.0
    }

    /// Returns an iterator over the weight of each token, in order; an endless one of ones if every weight is 1.
    pub fn each(self) -> impl Iterator<Item = f64> + 'a {
        let given = self.0.unwrap_or_default().iter().map(|w| f64::from(*w));
        given.chain(std::iter::repeat_n(1.0, if self.0.is_some() { 0 } else { usize::MAX }))
    }

    /// Returns `sum` plus the weights of the first `tokens` tokens, added one after another in order. With a list of weights, tokens past its
    /// end add nothing. Without a list every token weighs 1, and `tokens` is added.
    pub fn add_to(self, sum: f64, tokens: usize) -> f64 {
        self.each().take(tokens).fold(sum, |sum, w| sum + w)
    }

    /// Returns the sum of the weights of the first `tokens` tokens. With a list of weights, tokens past its end add nothing. Without a list
    /// every token weighs 1, and the result is `tokens`.
    pub fn total(self, tokens: usize) -> f64 {
        if self.0.is_none() { tokens as f64 } else { self.add_to(0.0, tokens) }
    }
}
