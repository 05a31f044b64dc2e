//! Parameters of optimizers and of single steps.

use std::ops::Range;

use tersor_core::{Check, ParamError};

use crate::Map;

/// The update rule of an optimizer: `p -= lr * u`, with the direction `u` from the gradient `g` and moments that begin at 0.
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
    /// Returns the name of the rule in saved states, such as `adam`.
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

    /// Returns the names of the moments: `mean`, `slow` (AdEMAMix) and `square`, in the order in which they are stored.
    pub const fn moments(self) -> &'static [&'static str] {
        match self {
            Rule::Adam => &["mean", "square"],
            Rule::AdEmaMix => &["mean", "slow", "square"],
            Rule::Momentum | Rule::Lion => &["mean"],
            Rule::RmsProp | Rule::Adagrad => &["square"],
        }
    }
}

/// How weight decay enters a step: added to the gradient, or decoupled from it, before or after the update.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decay {
    /// `weight_decay * p` is added to the gradient (L2 regularization).
    Gradient,
    /// Decoupled: `p *= 1 - lr * weight_decay` after the update.
    AfterStep,
    /// Decoupled: `p *= 1 - lr * weight_decay` before the update.
    BeforeStep,
}

/// Unchecked parameters of an optimizer.
///
/// By default moments are stored in 8 bits, in blocks of 256 values (arXiv 2110.02861): with the unsigned dynamic map for a `square` that follows
/// another moment, with the signed one for the others. Tensors of fewer than 4096 elements keep moments in f32.
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

    /// Returns Adam: learning rate 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay.
    pub fn adam() -> Self {
        Self::new(Rule::Adam, 1e-3, Decay::AfterStep)
    }

    /// Returns AdamW: Adam with a decoupled weight decay of 0.01.
    pub fn adamw() -> Self {
        Self::adam().weight_decay(0.01)
    }

    /// Returns AdEMAMix: learning rate 1e-3, betas 0.9, 0.999 and 0.9999, alpha 5, eps 1e-8, decoupled weight decay of 0.01, no warm-up.
    pub fn ademamix() -> Self {
        Self::new(Rule::AdEmaMix, 1e-3, Decay::AfterStep).weight_decay(0.01)
    }

    /// Returns stochastic gradient descent with a momentum of 0.9: learning rate 1e-2, decay added to the gradient.
    pub fn momentum() -> Self {
        Self::new(Rule::Momentum, 1e-2, Decay::Gradient)
    }

    /// Returns Lion: learning rate 1e-4, betas 0.9 and 0.99, decoupled decay before the step.
    pub fn lion() -> Self {
        Self::new(Rule::Lion, 1e-4, Decay::BeforeStep).betas(0.9, 0.99)
    }

    /// Returns RMSProp: learning rate 1e-2, smoothing constant `beta2` 0.99, eps 1e-8, decay added to the gradient.
    pub fn rmsprop() -> Self {
        Self::new(Rule::RmsProp, 1e-2, Decay::Gradient).betas(0.0, 0.99)
    }

    /// Returns Adagrad: learning rate 1e-2, eps 1e-10, weight decay 0; a weight decay that is set is added to the gradient (not decoupled).
    pub fn adagrad() -> Self {
        Self::new(Rule::Adagrad, 1e-2, Decay::Gradient).eps(1e-10)
    }

    /// Returns LARS (arXiv 1708.03888): momentum, with the norm of the update limited to 0.02 times the norm of the parameters.
    pub fn lars() -> Self {
        Self::momentum().max_update(0.02)
    }

    /// Returns LAMB (arXiv 1904.00962): AdamW, with the norm of the update limited to the norm of the parameters.
    pub fn lamb() -> Self {
        Self::adamw().max_update(1.0)
    }

    /// Sets the learning rate, finite and at least 0.
    pub fn lr(self, lr: f32) -> Self {
        Self { lr, ..self }
    }

    /// Returns the learning rate.
    pub fn learning_rate(&self) -> f32 {
        self.lr
    }

    /// Sets `beta1` and `beta2`, both at least 0 and below 1: decay rates of the running means of the gradient (for [`Rule::Momentum`] the
    /// momentum) and of its square; see [`Rule`] for Lion.
    pub fn betas(mut self, beta1: f32, beta2: f32) -> Self {
        self.betas[..2].copy_from_slice(&[beta1, beta2]);
        self
    }

    /// Sets the slow mean of AdEMAMix: its decay rate `beta3`, at least 0 and below 1, its weight `alpha`, at least 0, and the numbers of steps
    /// over which `alpha` and `beta3`, in this order, are warmed up (0 for none).
    pub fn slow_mean(mut self, beta3: f32, alpha: f32, warmup: [u64; 2]) -> Self {
        (self.betas[2], self.alpha, self.warmup) = (beta3, alpha, warmup);
        self
    }

    /// Sets `eps`, above 0: the number added to the root of the mean square.
    pub fn eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    /// Sets whether [`Rule::Momentum`] uses Nesterov's momentum: `u = g + beta1 * m`.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }

    /// Sets the strength of the weight decay, finite and at least 0.
    pub fn weight_decay(self, weight_decay: f32) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets how weight decay enters a step.
    pub fn decay(self, decay: Decay) -> Self {
        Self { decay, ..self }
    }

    /// Sets the largest Euclidean norm of an update relative to that of the tensor's parameters, finite and at least 0; 0 for no limit. Parameters
    /// that are all zero have no limit.
    pub fn max_update(self, max_update: f32) -> Self {
        Self { max_update, ..self }
    }

    /// Sets the bits of a stored moment: 8, or 32 for f32.
    pub fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Sets the number of values of a moment that share a scale, 1 to 2^30.
    pub fn block(self, block: usize) -> Self {
        Self { block, ..self }
    }

    /// Sets the smallest number of elements of a tensor with 8-bit moments; smaller tensors keep moments in f32.
    pub fn min_8bit_size(self, min_8bit_size: usize) -> Self {
        Self { min_8bit_size, ..self }
    }

    /// Sets percentile clipping (arXiv 2110.02861, appendix C): a gradient whose norm exceeds this percentile of the last 100 norms of its tensor
    /// is scaled down to it. 0 to 100; 100 is off, 5 is usual.
    pub fn percentile(self, percentile: usize) -> Self {
        Self { percentile, ..self }
    }

    /// Sets whether elements whose gradient is exactly zero keep their parameters and moments. 8-bit moments in a block with other gradients are
    /// rounded to the new scale of the block; blocks without a gradient stay bit for bit.
    pub fn skip_zeros(self, skip_zeros: bool) -> Self {
        Self { skip_zeros, ..self }
    }

    /// Sets the codebooks of 8-bit moments: `unsigned` for the running mean of squared gradients of a rule that has another moment too, as Adam's
    /// second moment; `signed` for all others. The default is [`Map::dynamic`], signed and unsigned. `check` errors unless each has more than
    /// 16 values, so that its codes have 8 bits.
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

/// Checked parameters of an optimizer. [`CheckedConfig::state`] makes the state of a tensor, [`CheckedConfig::step`] updates a tensor and its state.
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
    /// The elements that are trained, a range inside the tensor. The others keep their values, and their moments up to rounding: 8-bit moments of a
    /// block that is partly trained are rounded to the new scale of the block.
    pub active: Range<usize>,
}
