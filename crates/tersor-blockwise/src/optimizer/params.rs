//! The parameters of an optimizer.

use std::ops::Range;

use tersor_core::{Check, ParamError};

use crate::Map;

/// The rule that turns gradients into steps. Moments begin at 0, and `t` counts steps from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Rule {
    /// Means of the gradient and of its square (arXiv 1412.6980); with decoupled decay AdamW (arXiv 1711.05101).
    Adam,
    /// Adam with a second, slow mean of the gradient (arXiv 2409.03137).
    AdEmaMix,
    /// Stochastic gradient descent with momentum: `m = beta1 * m + g`.
    Momentum,
    /// The sign of a mean (arXiv 2302.06675).
    Lion,
    /// The gradient over the root of its mean square.
    RmsProp,
    /// The gradient over the root of the sum of its squares.
    Adagrad,
}

impl Rule {
    /// The name in saved states.
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

    /// The names of its moments; those called `square` are never negative and, after another moment, on the unsigned map.
    pub const fn moments(self) -> &'static [&'static str] {
        match self {
            Rule::Adam => &["mean", "square"],
            Rule::AdEmaMix => &["mean", "slow", "square"],
            Rule::Momentum | Rule::Lion => &["mean"],
            Rule::RmsProp | Rule::Adagrad => &["square"],
        }
    }
}

/// How weights decay.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decay {
    /// `weight_decay * p` is added to the gradient.
    Gradient,
    /// The step is followed by `p *= 1 - lr * weight_decay`.
    AfterStep,
    /// The step is preceded by it.
    BeforeStep,
}

/// Parameters of an optimizer, unchecked.
///
/// Moments are stored in 8 bits (arXiv 2110.02861): signed ones by the signed dynamic map, the square beside another moment by the unsigned one, in
/// blocks of 256. A tensor with fewer than 4096 elements keeps them in f32.
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
    pub(super) smallest: usize,
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
            smallest: 4096,
            percentile: 100,
            skip_zeros: false,
            maps: [Map::dynamic(true), Map::dynamic(false)],
        }
    }

    /// Adam: learning rate 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay.
    pub fn adam() -> Self {
        Self::new(Rule::Adam, 1e-3, Decay::AfterStep)
    }

    /// AdamW: Adam with a decoupled weight decay of 0.01.
    pub fn adamw() -> Self {
        Self::adam().weight_decay(0.01)
    }

    /// AdEMAMix: learning rate 1e-3, betas 0.9, 0.999 and 0.9999, alpha 5, eps 1e-8, decoupled weight decay of 0.01.
    pub fn ademamix() -> Self {
        Self::new(Rule::AdEmaMix, 1e-3, Decay::AfterStep).weight_decay(0.01)
    }

    /// Stochastic gradient descent with a momentum of 0.9: learning rate 1e-2, decay added to the gradient.
    pub fn momentum() -> Self {
        Self::new(Rule::Momentum, 1e-2, Decay::Gradient)
    }

    /// Lion: learning rate 1e-4, betas 0.9 and 0.99, decoupled decay before the step.
    pub fn lion() -> Self {
        Self::new(Rule::Lion, 1e-4, Decay::BeforeStep).betas(0.9, 0.99)
    }

    /// RMSProp: learning rate 1e-2, alpha (here `beta2`) 0.99, eps 1e-8, decay added to the gradient.
    pub fn rmsprop() -> Self {
        Self::new(Rule::RmsProp, 1e-2, Decay::Gradient).betas(0.0, 0.99)
    }

    /// Adagrad: learning rate 1e-2, eps 1e-10, decay added to the gradient.
    pub fn adagrad() -> Self {
        Self::new(Rule::Adagrad, 1e-2, Decay::Gradient).eps(1e-10)
    }

    /// LARS (arXiv 1708.03888) as momentum whose update has at most 0.02 times the norm of the parameters.
    pub fn lars() -> Self {
        Self::momentum().max_update(0.02)
    }

    /// LAMB (arXiv 1904.00962) as AdamW whose update has at most the norm of the parameters.
    pub fn lamb() -> Self {
        Self::adamw().max_update(1.0)
    }

    /// The learning rate.
    pub fn lr(self, lr: f32) -> Self {
        Self { lr, ..self }
    }

    /// The learning rate that was set.
    pub fn learning_rate(&self) -> f32 {
        self.lr
    }

    /// Decay of the mean (the momentum) and of the mean square (for Lion, of the mean that is kept).
    pub fn betas(mut self, beta1: f32, beta2: f32) -> Self {
        self.betas[..2].copy_from_slice(&[beta1, beta2]);
        self
    }

    /// AdEMAMix: decay of the slow mean, its weight, and the steps over which both grow to that (0: at once).
    pub fn slow_mean(mut self, beta3: f32, alpha: f32, warmup: [u64; 2]) -> Self {
        (self.betas[2], self.alpha, self.warmup) = (beta3, alpha, warmup);
        self
    }

    /// Added to the root of the square.
    pub fn eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    /// Momentum as Nesterov has it: `g + beta1 * m`.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }

    /// How strongly weights decay.
    pub fn weight_decay(self, weight_decay: f32) -> Self {
        Self { weight_decay, ..self }
    }

    /// How weights decay.
    pub fn decay(self, decay: Decay) -> Self {
        Self { decay, ..self }
    }

    /// The largest norm of an update as a part of the parameters' norm; 0 for any. Parameters that are all zero take any.
    pub fn max_update(self, max_update: f32) -> Self {
        Self { max_update, ..self }
    }

    /// Bits of a stored moment: 8, or 32 for f32.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Values that share a scale, from 1 on.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Tensors of fewer elements keep their moments in f32.
    pub fn smallest(self, smallest: usize) -> Self {
        Self { smallest, ..self }
    }

    /// Percentile clipping (arXiv 2110.02861, appendix C): gradients are scaled down to this percentile of their last 100 norms. 100 is off, 5 usual.
    pub fn percentile(self, percentile: usize) -> Self {
        Self { percentile, ..self }
    }

    /// Leaves parameters and moments as they are wherever the gradient is exactly zero. (In 8 bits, moments beside others that change are
    /// stored anew on the block's new scale; blocks without a gradient stay bit for bit.)
    pub fn skip_zeros(self, skip_zeros: bool) -> Self {
        Self { skip_zeros, ..self }
    }

    /// The maps of signed moments and of the square beside them. For comparisons: the dynamic ones are the best that is known.
    pub fn maps(self, signed: Map, unsigned: Map) -> Self {
        Self { maps: [signed, unsigned], ..self }
    }
}

impl Check for OptimizerConfig {
    type Checked = CheckedConfig;
    fn check(self) -> Result<CheckedConfig, ParamError> {
        let at_least = |name, value: f32, low: bool| {
            let fine = value.is_finite() && if low { value > 0.0 } else { value >= 0.0 };
            let what = if low { "must be a finite number above 0" } else { "must be a finite number from 0 on" };
            if fine { Ok(()) } else { Err(ParamError::new(name, value, what)) }
        };
        at_least("lr", self.lr, false)?;
        at_least("eps", self.eps, true)?;
        at_least("weight_decay", self.weight_decay, false)?;
        at_least("max_update", self.max_update, false)?;
        at_least("alpha", self.alpha, false)?;
        if let Some(b) = self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(ParamError::new("beta", b, "must be from 0 to below 1"));
        }
        if self.rule == Rule::Momentum && self.max_update > 0.0 && self.betas[0] == 0.0 {
            return Err(ParamError::new("beta1", 0, "LARS needs a momentum above 0"));
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
            return Err(ParamError::new("map", m.kind().name(), "must have codes of 8 bits"));
        }
        Ok(CheckedConfig(self))
    }
}

/// Checked parameters of an optimizer.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedConfig(pub(super) OptimizerConfig);

/// Options of one step of one tensor, for [`CheckedConfig::step_with`]; [`CheckedConfig::options`] returns the defaults.
#[derive(Clone, PartialEq, Debug)]
pub struct StepOptions {
    /// The learning rate, finite and at least 0.
    pub lr: f32,
    /// Factor of the gradient, finite and at least 0: for clipping by a norm over several tensors.
    pub grad_scale: f32,
    /// Whether weight decay applies.
    pub decay: bool,
    /// The elements that are trained, a range inside the tensor. The others keep their values, and their moments up to rounding: 8-bit moments of a block
    /// that is partly trained are rounded to the new scale of the block.
    pub active: Range<usize>,
}
