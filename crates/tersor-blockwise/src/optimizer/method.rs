//! [`BlockwiseOptimizer`]: all tensors of a model, as an [`Optimizer`].

use std::collections::BTreeMap;

use tersor_core::gradients::{Optimizer, Param, Params};
use tersor_core::{Check, Element, Error, Exec, ParamError, Result, TensorSink, TensorSource};

use super::{CheckedConfig, OptimizerConfig, State, StepOptions};

/// Added to the norm that the maximum is divided by, as in `torch.nn.utils.clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// An optimizer of named tensors. It holds a [`State`] for each tensor, which begins with the tensor's first step, and may have different
/// parameters for some tensors.
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
    /// Returns an optimizer without states; `base` are the parameters of all tensors. Errors if one is out of range.
    pub fn new(base: OptimizerConfig) -> Result<Self> {
        let checked = base.clone().check()?;
        let (own, states) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { base, checked, own, states, lr_factor: 1.0, max_norm: None })
    }

    /// Returns the optimizer with gradient clipping by the global norm: in [`Optimizer::step`], if the norm of the gradients of all tensors
    /// together exceeds `max_norm`, they are scaled down to it. Errors unless `max_norm` is finite and above 0.
    pub fn max_norm(self, max_norm: f64) -> Result<Self> {
        if !(max_norm.is_finite() && max_norm > 0.0) {
            return Err(ParamError::new("max_norm", max_norm, "must be finite and above 0").into());
        }
        Ok(Self { max_norm: Some(max_norm), ..self })
    }

    /// Sets the parameters of the tensor `name` to `own(base)`, with `base` the parameters of all tensors. To be called before the tensor's first
    /// step: later steps fail if its state has another rule, other bits or, in 8 bits, another block size or map, or has no norms for percentile
    /// clipping. Errors if a parameter is out of range.
    pub fn set(&mut self, name: &str, own: impl FnOnce(OptimizerConfig) -> OptimizerConfig) -> Result<()> {
        self.own.insert(name.to_string(), own(self.base.clone()).check()?);
        Ok(())
    }

    /// Keeps the moments of the tensor `name` in f32, as the stable embedding layer does (arXiv 2110.02861, section 2.3). To be called before the
    /// tensor's first step. Errors as [`BlockwiseOptimizer::set`].
    pub fn keep_f32(&mut self, name: &str) -> Result<()> {
        self.set(name, |o| o.bits(32))
    }

    /// Sets the factor that multiplies every learning rate in the following steps, for schedules. Errors if it is negative or not finite.
    pub fn scale_lr(&mut self, factor: f32) -> Result<()> {
        if !(0.0..f32::INFINITY).contains(&factor) {
            return Err(ParamError::new("factor", factor, "must be finite and at least 0").into());
        }
        self.lr_factor = factor;
        Ok(())
    }

    /// Returns the parameters of the tensor `name`: its own, or those of all tensors.
    pub fn params(&self, name: &str) -> &CheckedConfig {
        self.own.get(name).unwrap_or(&self.checked)
    }

    /// Updates the tensor `name` with the values `param` by its gradient `grad`, of the same length; both may be f32, f16 or bf16. The global norm
    /// is not clipped. Errors as [`CheckedConfig::step`], naming the tensor; nothing has changed then.
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

    /// Returns the state of the tensor `name`; `None` before its first step.
    pub fn state(&self, name: &str) -> Option<&State> {
        self.states.get(name)
    }

    /// Returns the bytes of all states.
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
        if states.is_empty() {
            return Err(Error::missing("a state", "the saved tensors; none is named `<tensor>.state`"));
        }
        self.states = states;
        Ok(())
    }
}
