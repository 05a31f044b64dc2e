//! Parameters of optimizers and of single steps.

use std::ops::Range;

use tersor_core::{Check, ParamError};

use crate::Map;

/// The update rule of an optimizer: Adam, AdEMAMix, stochastic gradient descent with momentum, Lion, RMSProp or Adagrad. No rule is the
/// default; each constructor of [`OptimizerConfig`] chooses one.
///
/// A step is `p -= lr * u` for the parameters `p`, with the learning rate `lr` and a direction `u`. The direction is computed from the
/// gradient `g` and from moments: running means or sums, one value for each element, which begin at 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Rule {
    /// Adam (arXiv 1412.6980): bias-corrected running means of the gradient and of its square; with decoupled weight decay AdamW (arXiv 1711.05101).
    Adam,
    /// AdEMAMix (arXiv 2409.03137): Adam with a second, slow running mean of the gradient.
    AdEmaMix,
    /// Stochastic gradient descent with momentum: `m = beta1 * m + g`, `u = m`.
    Momentum,
    /// Lion (arXiv 2302.06675): `u = sign(beta1 * m + (1 - beta1) * g)`, then `m = beta2 * m + (1 - beta2) * g`.
    Lion,
    /// RMSProp: `v = beta2 * v + (1 - beta2) * g²`, `u = g / (sqrt(v) + eps)`.
    RmsProp,
    /// Adagrad: `v = v + g²`, `u = g / (sqrt(v) + eps)`.
    Adagrad,
}

impl Rule {
    /// Returns the name of the rule in saved states: `adam`, `ademamix`, `momentum`, `lion`, `rmsprop` or `adagrad`.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::Adam => "adam",
            Rule::AdEmaMix => "ademamix",
            Rule::Momentum => "momentum",
            Rule::Lion => "lion",
            Rule::RmsProp => "rmsprop",
            Rule::Adagrad => "adagrad",
        }
    }

    /// Returns the names of the moments that the rule keeps for each element, in the order in which they are stored: `mean` and `square`
    /// for Adam; `mean`, `slow` and `square` for AdEMAMix; `mean` for momentum and Lion; `square` for RMSProp and Adagrad.
    ///
    /// `mean` and `slow` are the fast and the slow running mean of the gradient, except that `mean` of momentum is a decaying sum: each
    /// step makes it `beta1 * mean + g` with the gradient `g` and the momentum `beta1`. `square` is the running mean of the squared
    /// gradient, for Adagrad its sum.
    pub const fn moments(self) -> &'static [&'static str] {
        match self {
            Rule::Adam => &["mean", "square"],
            Rule::AdEmaMix => &["mean", "slow", "square"],
            Rule::Momentum | Rule::Lion => &["mean"],
            Rule::RmsProp | Rule::Adagrad => &["square"],
        }
    }
}

/// How weight decay enters a step of the parameters `p` with the learning rate `lr`: `weight_decay * p` is added to the gradient (L2
/// regularization, [`Decay::Gradient`]), or `p` is multiplied by `1 - lr * weight_decay`, decoupled from the gradient as in AdamW, after
/// the update ([`Decay::AfterStep`]) or before it ([`Decay::BeforeStep`]). The default depends on the update rule: `Gradient` for momentum,
/// RMSProp and Adagrad, `AfterStep` for Adam and AdEMAMix, `BeforeStep` for Lion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decay {
    /// `weight_decay * p` is added to the gradient (L2 regularization).
    Gradient,
    /// Decoupled: `p *= 1 - lr * weight_decay` after the update.
    AfterStep,
    /// Decoupled: `p *= 1 - lr * weight_decay` before the update.
    BeforeStep,
}

/// Unchecked parameters of an optimizer: the update rule, its hyperparameters, and how moments are stored. A constructor such as
/// [`OptimizerConfig::adam`] chooses the rule; `check()` errors if a value is out of range, and otherwise returns a [`CheckedConfig`],
/// which makes steps.
///
/// By default moments are stored as 8-bit codes, in blocks of 256 values that share a scale (arXiv 2110.02861). The mean of squared
/// gradients of Adam and AdEMAMix uses the unsigned dynamic map as its codebook, all other moments use the signed one. Tensors of fewer
/// than 4096 elements keep their moments in f32.
///
/// ```
/// use tersor_blockwise::{Check, optimizer::OptimizerConfig};
///
/// # fn main() -> tersor_blockwise::Result<()> {
/// let adamw = OptimizerConfig::adamw().lr(0.1).check()?;
/// let (mut param, grad) = (vec![1.0f32; 8192], vec![0.5f32; 8192]);
/// let mut state = adamw.state(8192)?;
/// adamw.step(&mut state, &mut param, &grad)?;
/// assert_eq!(state.steps(), 1);
/// assert!((param[0] - 0.9).abs() < 2e-3);
/// assert!(state.bytes() < 8192 * 2 + 8192 / 16);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct OptimizerConfig {
    pub(super) rule: Rule,
    pub(super) lr: f32,
    pub(super) betas: [f32; 3],
    pub(super) alpha: f32,
    pub(super) warmup: [u64; 2],
    pub(super) eps: f32,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f32,
    pub(super) decay: Decay,
    pub(super) max_update: f32,
    pub(super) bits: u32,
    pub(super) block: usize,
    pub(super) min_8bit_size: usize,
    pub(super) percentile: usize,
    pub(super) skip_zeros: bool,
    pub(super) maps: [Map; 2],
}

impl OptimizerConfig {
    fn new(rule: Rule, lr: f32, decay: Decay) -> Self {
        Self {
            rule,
            lr,
            betas: [0.9, 0.999, 0.9999],
            alpha: 5.0,
            warmup: [0; 2],
            eps: 1e-8,
            nesterov: false,
            weight_decay: 0.0,
            decay,
            max_update: 0.0,
            bits: 8,
            block: 256,
            min_8bit_size: 4096,
            percentile: 100,
            skip_zeros: false,
            maps: [Map::dynamic(true), Map::dynamic(false)],
        }
    }

    /// Returns Adam: learning rate 1e-3, `beta1` 0.9, `beta2` 0.999, `eps` 1e-8, weight decay 0. A weight decay that is set is decoupled
    /// and applied after the step, as in AdamW, unless [`OptimizerConfig::decay`] chooses otherwise.
    pub fn adam() -> Self {
        Self::new(Rule::Adam, 1e-3, Decay::AfterStep)
    }

    /// Returns AdamW: learning rate 1e-3, `beta1` 0.9, `beta2` 0.999, `eps` 1e-8, and a weight decay of 0.01 that is decoupled and applied
    /// after the step.
    pub fn adamw() -> Self {
        Self::adam().weight_decay(0.01)
    }

    /// Returns AdEMAMix: learning rate 1e-3, decay rates 0.9 (`beta1`, the mean), 0.999 (`beta2`, the mean of squares) and 0.9999 (`beta3`,
    /// the slow mean), weight `alpha` of the slow mean 5, no warm-up, `eps` 1e-8, and a weight decay of 0.01 that is decoupled and applied
    /// after the step.
    pub fn ademamix() -> Self {
        Self::new(Rule::AdEmaMix, 1e-3, Decay::AfterStep).weight_decay(0.01)
    }

    /// Returns stochastic gradient descent with momentum: learning rate 1e-2, momentum `beta1` 0.9 (not Nesterov's), weight decay 0. A
    /// weight decay that is set is added to the gradient.
    pub fn momentum() -> Self {
        Self::new(Rule::Momentum, 1e-2, Decay::Gradient)
    }

    /// Returns Lion: learning rate 1e-4, `beta1` 0.9, `beta2` 0.99, weight decay 0. A weight decay that is set is decoupled and applied
    /// before the step.
    pub fn lion() -> Self {
        Self::new(Rule::Lion, 1e-4, Decay::BeforeStep).betas(0.9, 0.99)
    }

    /// Returns RMSProp: learning rate 1e-2, decay rate `beta2` of the mean of squares 0.99, `eps` 1e-8, weight decay 0. A weight decay that
    /// is set is added to the gradient.
    pub fn rmsprop() -> Self {
        Self::new(Rule::RmsProp, 1e-2, Decay::Gradient).betas(0.0, 0.99)
    }

    /// Returns Adagrad: learning rate 1e-2, `eps` 1e-10, weight decay 0. A weight decay that is set is added to the gradient.
    pub fn adagrad() -> Self {
        Self::new(Rule::Adagrad, 1e-2, Decay::Gradient).eps(1e-10)
    }

    /// Returns LARS (arXiv 1708.03888): momentum with a limit of the update of each tensor by itself. The learning rate is 1e-2, `beta1` is
    /// 0.9, and the weight decay is 0; a weight decay that is set is added to the gradient.
    ///
    /// The limit, which [`OptimizerConfig::max_update`] changes, is 0.02 times the Euclidean norm of the tensor's parameters. If the
    /// direction of the update, before the learning rate multiplies it, has a larger norm, the direction is scaled down to this limit. A
    /// tensor whose parameters are all zero has no limit.
    pub fn lars() -> Self {
        Self::momentum().max_update(0.02)
    }

    /// Returns LAMB (arXiv 1904.00962): AdamW with a limit of the update of each tensor by itself. The learning rate is 1e-3, `beta1` is
    /// 0.9, `beta2` is 0.999, `eps` is 1e-8, and the weight decay is 0.01, decoupled and applied after the step.
    ///
    /// The limit, which [`OptimizerConfig::max_update`] changes, is the Euclidean norm of the tensor's parameters. If the direction of the
    /// update, before the learning rate multiplies it, has a larger norm, the direction is scaled down to this limit. A tensor whose
    /// parameters are all zero has no limit.
    pub fn lamb() -> Self {
        Self::adamw().max_update(1.0)
    }

    /// Sets the learning rate. `check()` errors unless it is finite and at least 0.
    pub fn lr(self, lr: f32) -> Self {
        Self { lr, ..self }
    }

    /// Returns the configured learning rate, without factors of a schedule.
    pub fn learning_rate(&self) -> f32 {
        self.lr
    }

    /// Sets `beta1` and `beta2`. For Adam and AdEMAMix they are the decay rates of the running means of the gradient and of its square.
    /// [`Rule::Momentum`] uses `beta1` alone (the momentum), RMSProp `beta2` alone (the mean of squares), Adagrad neither; Lion uses
    /// `beta1` in its direction and `beta2` for its mean, see [`Rule::Lion`].
    ///
    /// `check()` errors unless both are at least 0 and below 1, even one that the rule does not use. With [`Rule::Momentum`] and an
    /// [`OptimizerConfig::max_update`] above 0, as in LARS, `check()` errors also if `beta1` is 0.
    pub fn betas(mut self, beta1: f32, beta2: f32) -> Self {
        self.betas[..2].copy_from_slice(&[beta1, beta2]);
        self
    }

    /// Sets the slow running mean of the gradient of AdEMAMix; other rules do not use it. `beta3` is the decay rate of the slow mean, and
    /// `alpha` is its weight in the direction of the update. `check()` errors unless `beta3` is at least 0 and below 1, and `alpha` is
    /// finite and at least 0.
    ///
    /// `warmup` holds two numbers of steps, of which each may be 0 for no warm-up. Over the first `warmup[0]` steps the weight grows
    /// linearly from 0 to `alpha`. Over the first `warmup[1]` steps the decay rate grows from `beta1` to `beta3`, as arXiv 2409.03137,
    /// section 3, says; it is `beta3` from the start if `beta1` is 0 or not below `beta3`.
    pub fn slow_mean(mut self, beta3: f32, alpha: f32, warmup: [u64; 2]) -> Self {
        (self.betas[2], self.alpha, self.warmup) = (beta3, alpha, warmup);
        self
    }

    /// Sets `eps`. The direction of the update is divided by `sqrt(v) + eps`, where `v` is the mean (for Adagrad the sum) of an element's
    /// squared gradients. Momentum and Lion do not use it. `check()` errors unless it is finite and above 0.
    pub fn eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    /// Sets whether [`Rule::Momentum`] uses Nesterov's momentum: the direction `u = g + beta1 * m` of the gradient `g` and the updated
    /// momentum `m`, instead of `u = m`. Other rules do not use it. False by default.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }

    /// Sets the strength `weight_decay` of the weight decay of the parameters `p`: `weight_decay * p` is added to the gradient, or `p` is
    /// multiplied by `1 - lr * weight_decay` with the learning rate `lr`; [`OptimizerConfig::decay`] sets which. 0 turns it off. `check()`
    /// errors unless it is finite and at least 0.
    pub fn weight_decay(self, weight_decay: f32) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets how weight decay enters a step: added to the gradient ([`Decay::Gradient`]), or decoupled from the gradient, after the update
    /// ([`Decay::AfterStep`]) or before it ([`Decay::BeforeStep`]). The default depends on the update rule, see [`Decay`]. It has an effect
    /// only if [`OptimizerConfig::weight_decay`] is above 0.
    pub fn decay(self, decay: Decay) -> Self {
        Self { decay, ..self }
    }

    /// Sets a limit of the update of each tensor by itself: `max_update` times the Euclidean norm of the tensor's parameters. If the
    /// direction of the update, before the learning rate multiplies it, has a larger norm, the direction is scaled down to this limit. By
    /// default `max_update` is 0.02 for LARS, 1 for LAMB and otherwise 0, which means no limit. A tensor whose parameters are all zero has
    /// no limit either.
    ///
    /// `check()` errors unless `max_update` is finite and at least 0. With [`Rule::Momentum`] and a `max_update` above 0, `check()` errors
    /// also if `beta1` is 0.
    pub fn max_update(self, max_update: f32) -> Self {
        Self { max_update, ..self }
    }

    /// Sets the bits of each stored value of a moment, such as Adam's running means: 8 for codes with block scales (the default), or 32 for
    /// f32. `check()` errors for other numbers. Tensors below [`OptimizerConfig::min_8bit_size`] use f32 in any case.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of consecutive values of an 8-bit moment that share a scale; 256 by default. `check()` errors unless it is 1 to
    /// 2^30.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets the smallest number of elements of a tensor whose moments are stored in 8 bits; the moments of smaller tensors are stored in
    /// f32. 4096 by default; every number is valid.
    pub fn min_8bit_size(self, min_8bit_size: usize) -> Self {
        Self { min_8bit_size, ..self }
    }

    /// Sets percentile clipping (arXiv 2110.02861, appendix C). If the Euclidean norm of a tensor's gradient exceeds this percentile of the
    /// last 100 norms of the same tensor (the new one included), the gradient is scaled down to that percentile. Before 100 steps are done,
    /// the norm of the first step stands for each missing one. 0 stands for the smallest of the norms, 5 is usual, 100 (the default) turns
    /// clipping off. `check()` errors above 100.
    pub fn percentile(self, percentile: usize) -> Self {
        Self { percentile, ..self }
    }

    /// Sets whether elements whose gradient is exactly zero are skipped: they keep their parameters and moments. False by default. If other
    /// elements of the same 8-bit block have gradients, the block gets a new scale, to which the moments of skipped elements are rounded
    /// again; a block whose gradients are all zero stays bit for bit.
    pub fn skip_zeros(self, skip_zeros: bool) -> Self {
        Self { skip_zeros, ..self }
    }

    /// Sets the codebooks of 8-bit moments: `unsigned` for the mean of squared gradients of Adam and AdEMAMix, `signed` for all other
    /// moments, the squares of RMSProp and Adagrad included. The default is [`Map::dynamic`], signed and unsigned. `check()` errors unless
    /// each codebook has more than 16 values, so that its codes have 8 bits.
    pub fn maps(self, signed: Map, unsigned: Map) -> Self {
        Self { maps: [signed, unsigned], ..self }
    }
}

impl Check for OptimizerConfig {
    type Checked = CheckedConfig;
    fn check(self) -> Result<CheckedConfig, ParamError> {
        let at_least = |name, value: f32, low: bool| {
            let fine = value.is_finite() && if low { value > 0.0 } else { value >= 0.0 };
            let what = if low { "must be finite and above 0" } else { "must be finite and at least 0" };
            if fine { Ok(()) } else { Err(ParamError::new(name, value, what)) }
        };
        at_least("lr", self.lr, false)?;
        at_least("eps", self.eps, true)?;
        at_least("weight_decay", self.weight_decay, false)?;
        at_least("max_update", self.max_update, false)?;
        at_least("alpha", self.alpha, false)?;
        if let Some(b) = self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(ParamError::new("beta", b, "must be at least 0 and below 1"));
        }
        if self.rule == Rule::Momentum && self.max_update > 0.0 && self.betas[0] == 0.0 {
            return Err(ParamError::new("beta1", 0, "must be above 0 for momentum with a limited update (LARS)"));
        }
        if !matches!(self.bits, 8 | 32) {
            return Err(ParamError::new("bits", self.bits, "must be 8 or 32"));
        }
        if self.block == 0 || self.block > 1 << 30 {
            return Err(ParamError::new("block", self.block, "must be 1 to 2^30"));
        }
        if self.percentile > 100 {
            return Err(ParamError::new("percentile", self.percentile, "must be 0 to 100"));
        }
        if let Some(m) = self.maps.iter().find(|m| m.bits() != 8) {
            return Err(ParamError::new("map", m.kind().name(), "must have 8-bit codes: more than 16 values"));
        }
        Ok(CheckedConfig(self))
    }
}

/// Checked parameters of an optimizer, made by `check()` of an [`OptimizerConfig`]. [`CheckedConfig::state`] makes the state of a tensor,
/// [`CheckedConfig::step`] updates a tensor and its state.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedConfig(pub(super) OptimizerConfig);

/// Options of one step of one tensor, which [`CheckedConfig::step_with`] takes: learning rate, factor of the gradient, switch of weight
/// decay, and range of trained elements. [`CheckedConfig::options`] returns the usual ones.
#[derive(Clone, PartialEq, Debug)]
pub struct StepOptions {
    /// The learning rate of this step, instead of the configured one. [`CheckedConfig::step_with`] errors unless it is finite and at least
    /// 0.
    pub lr: f32,
    /// The factor that multiplies the gradient before it enters the moments, for clipping by a norm over several tensors; 1 leaves the
    /// gradient unchanged. Percentile clipping measures the gradient before this factor multiplies it. [`CheckedConfig::step_with`] errors
    /// unless the factor is finite and at least 0.
    pub grad_scale: f32,
    /// Whether the configured weight decay applies in this step.
    pub decay: bool,
    /// The indices of the elements that are trained, counted from 0. [`CheckedConfig::step_with`] errors unless the range is inside the
    /// tensor. The other elements keep their values, and their moments up to rounding: if an 8-bit block holds trained and other elements,
    /// all its moments are rounded to the block's new scale.
    pub active: Range<usize>,
}
