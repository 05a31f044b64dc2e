//! [`BlockwiseOptimizer`]: all tensors of a model, as an [`Optimizer`].

use std::collections::BTreeMap;

use tersor_core::gradients::{Optimizer, Param, Params};
use tersor_core::{Check, Element, Error, Exec, ParamError, Result, TensorSink, TensorSource};

use super::{CheckedConfig, OptimizerConfig, State, StepOptions};

/// Added to the norm that the maximum is divided by, as in `torch.nn.utils.clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// An optimizer of the named tensors of a model. It holds one [`State`] (moments and number of steps) for each tensor name, made at the
/// tensor's first step. All tensors use the parameters passed to [`BlockwiseOptimizer::new`], except those to which
/// [`BlockwiseOptimizer::set`] or [`BlockwiseOptimizer::keep_f32`] gave parameters of their own.
///
/// ```
/// use tersor_blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig};
/// use tersor_core::gradients::{Optimizer, Param, Params};
/// use tersor_core::{Exec, Result};
///
/// struct Model([f32; 2], [f32; 2]);
///
/// impl Params for Model {
///     fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()> {
///         f(Param::new("w", &mut self.0, &self.1))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut sgd = BlockwiseOptimizer::new(OptimizerConfig::momentum().lr(1.0))?.max_norm(1.0)?;
/// let mut model = Model([0.0, 0.0], [30.0, -40.0]);
/// sgd.step(1, &mut model, &Exec::new())?;
/// assert!((model.0[0] + 0.6).abs() < 1e-6 && (model.0[1] - 0.8).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub struct BlockwiseOptimizer {
    base: OptimizerConfig,
    /// `base`, checked.
    checked: CheckedConfig,
    /// Parameters of single tensors, by name.
    own: BTreeMap<String, CheckedConfig>,
    states: BTreeMap<String, State>,
    /// Factor of all learning rates.
    lr_factor: f32,
    max_norm: Option<f64>,
}

impl BlockwiseOptimizer {
    /// Returns an optimizer without states. Every tensor uses the parameters `base`, unless [`BlockwiseOptimizer::set`] gives it others.
    /// Errors if a value in `base` is out of range.
    pub fn new(base: OptimizerConfig) -> Result<Self> {
        let checked = base.clone().check()?;
        let (own, states) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { base, checked, own, states, lr_factor: 1.0, max_norm: None })
    }

    /// Returns the optimizer with gradient clipping by the global norm: [`Optimizer::step`] then multiplies every gradient by `min(1,
    /// max_norm / (norm + 1e-6))`, where `norm` is the Euclidean norm of the gradients of all tensors together. Without this call gradients
    /// are not clipped. Errors unless `max_norm` is finite and above 0.
    pub fn max_norm(self, max_norm: f64) -> Result<Self> {
        if !(max_norm.is_finite() && max_norm > 0.0) {
            return Err(ParamError::new("max_norm", max_norm, "must be finite and above 0").into());
        }
        Ok(Self { max_norm: Some(max_norm), ..self })
    }

    /// Gives the tensor `name` parameters of its own: `own(base)`, where `base` are the parameters passed to [`BlockwiseOptimizer::new`].
    /// They replace those that earlier calls of this function or of [`BlockwiseOptimizer::keep_f32`] gave the tensor. Errors if a value in
    /// `own(base)` is out of range; nothing has changed then.
    ///
    /// Call it before the tensor's first step. A later call succeeds, too, but the tensor keeps its state. Its following steps then error
    /// if the new parameters have another update rule, other bits, or another block size or codebook of 8-bit moments, or if they turn on
    /// percentile clipping, for which the state lacks the norms.
    pub fn set(&mut self, name: &str, own: impl FnOnce(OptimizerConfig) -> OptimizerConfig) -> Result<()> {
        self.own.insert(name.to_string(), own(self.base.clone()).check()?);
        Ok(())
    }

    /// Keeps the moments of the tensor `name` in f32, as the stable embedding layer does (arXiv 2110.02861, section 2.3); its other
    /// parameters stay those of [`BlockwiseOptimizer::params`]. Call it before the tensor's first step; later steps error if the tensor's
    /// state already has 8-bit moments. This call itself never errors.
    pub fn keep_f32(&mut self, name: &str) -> Result<()> {
        let own = self.params(name).0.clone().bits(32);
        self.set(name, |_| own)
    }

    /// Sets the factor that multiplies the learning rate of every tensor in all following steps, for learning-rate schedules. It replaces
    /// the factor set before and is 1 at first. Errors if `factor` is negative or not finite.
    pub fn scale_lr(&mut self, factor: f32) -> Result<()> {
        if !(0.0..f32::INFINITY).contains(&factor) {
            return Err(ParamError::new("factor", factor, "must be finite and at least 0").into());
        }
        self.lr_factor = factor;
        Ok(())
    }

    /// Returns the parameters with which the tensor `name` is stepped: those that [`BlockwiseOptimizer::set`] or
    /// [`BlockwiseOptimizer::keep_f32`] gave to this tensor, or, for every other name, those passed to [`BlockwiseOptimizer::new`].
    pub fn params(&self, name: &str) -> &CheckedConfig {
        self.own.get(name).unwrap_or(&self.checked)
    }

    /// Makes one optimizer step on the tensor `name` alone: updates its values `param` and its state by the gradient `grad`. The first step
    /// of a tensor makes its state. `param` and `grad` have one number for each element, in f32, f16 or bf16. The gradient is not clipped
    /// by the global norm, even after [`BlockwiseOptimizer::max_norm`].
    ///
    /// Errors, naming the tensor, if `param` and `grad` have different lengths or another length than in earlier steps, or if a gradient is
    /// not finite or above 1e15 in magnitude. With a weight decay above 0 that is added to the gradient
    /// ([`Decay::Gradient`](super::Decay::Gradient)), errors also if a value of `param` is not finite, or above `1e15 / max(1,
    /// weight_decay)` in magnitude. Errors also if [`BlockwiseOptimizer::set`] or [`BlockwiseOptimizer::keep_f32`], called after the first
    /// step, gave the tensor parameters that need another state, for example other bits. Nothing has changed after an error.
    pub fn step_tensor<P: Element, G: Element>(&mut self, name: &str, param: &mut [P], grad: &[G]) -> Result<()> {
        let config = self.own.get(name).unwrap_or(&self.checked);
        let options = StepOptions { lr: config.0.lr * self.lr_factor, ..config.options(param.len()) };
        let mut new = None;
        let state = match self.states.get_mut(name) {
            Some(state) => state,
            None => new.insert(config.state(param.len())?),
        };
        config.step_with(&options, state, param, grad, &Exec::new()).map_err(|e| e.in_tensor(name))?;
        if let Some(state) = new {
            self.states.insert(name.to_string(), state);
        }
        Ok(())
    }

    /// Returns the state of the tensor `name`: its moments and the number of its steps. `None` before the tensor's first step.
    pub fn state(&self, name: &str) -> Option<&State> {
        self.states.get(name)
    }

    /// Returns the memory that the states of all tensors take, in bytes: moments, their block scales and, with percentile clipping,
    /// gradient norms. It is 0 before the first step.
    pub fn bytes(&self) -> usize {
        self.states.values().map(State::bytes).sum()
    }

    /// Returns the options of a step of `param`, with the gradient multiplied by `grad_scale`.
    fn options(&self, param: &Param<'_>, grad_scale: f32) -> StepOptions {
        let lr = self.params(param.name).0.lr * self.lr_factor * param.rate;
        StepOptions { lr, grad_scale, decay: param.decay, active: param.active.clone() }
    }

    /// Returns the sum of the squares of the gradient. Errors if a step of this parameter would be refused.
    fn check_param(&self, param: &Param<'_>, exec: &Exec) -> Result<f64> {
        let (config, state) = (self.params(param.name), self.states.get(param.name));
        config.check_step(&self.options(param, 1.0), state, param.value, param.grad, true, exec)
    }

    /// Steps a parameter that was checked; `square` is the sum of the squares of its gradient.
    fn update(&mut self, param: Param<'_>, square: f64, grad_scale: f32, exec: &Exec) -> Result<()> {
        let options = self.options(&param, grad_scale);
        let config = self.own.get(param.name).unwrap_or(&self.checked);
        if !self.states.contains_key(param.name) {
            self.states.insert(param.name.to_string(), config.state(param.value.len())?);
        }
        if let Some(state) = self.states.get_mut(param.name) {
            config.update(&options, state, param.value, param.grad, square, exec);
        }
        Ok(())
    }
}

impl Optimizer for BlockwiseOptimizer {
    fn step(&mut self, _: u64, all: &mut dyn Params, exec: &Exec) -> Result<()> {
        exec.run(|| {
            // All parameters are checked before any of them changes.
            let mut squares = Vec::new();
            all.each(&mut |param| {
                squares.push(self.check_param(&param, exec).map_err(|e| e.in_tensor(param.name))?);
                Ok(())
            })?;
            let norm = squares.iter().sum::<f64>().sqrt();
            let scale = self.max_norm.map_or(1.0, |max| (max / (norm + CLIP_EPS)).min(1.0)) as f32;
            let mut squares = squares.into_iter();
            all.each(&mut |param| {
                let name = param.name.to_string();
                let square = squares.next().ok_or_else(|| {
                    Error::missing(&name, "the first pass over the parameters; every pass must visit the same ones")
                })?;
                self.update(param, square, scale, exec).map_err(|e| e.in_tensor(&name))
            })
        })
    }

    fn save(&self, sink: &mut dyn TensorSink) -> Result<()> {
        self.states.iter().try_for_each(|(name, state)| state.save(name, sink))
    }

    fn load(&mut self, source: &dyn TensorSource) -> Result<()> {
        let mut states = BTreeMap::new();
        for tensor in source.names() {
            if let Some(name) = tensor.strip_suffix(".state") {
                let state = State::load(name, source)?;
                self.params(name).check_state(&state).map_err(|e| e.in_tensor(name))?;
                states.insert(name.to_string(), state);
            }
        }
        // An optimizer that was saved before its first step has no states.
        if states.is_empty() && !source.names().is_empty() {
            return Err(Error::missing("a state", "the saved tensors; none is named `<tensor>.state`"));
        }
        self.states = states;
        Ok(())
    }
}
