//! [`VarOptimizer`]: Tersor's optimizers as an optimizer of candle.

use std::cell::RefCell;
use std::collections::BTreeSet;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use candle_nn::VarMap;
use tersor_blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig};
use tersor_core::gradients::{Optimizer, Param, Params};
use tersor_core::{Element, Exec, Isa, ParamError, TensorSink, TensorSource};

use crate::error::check_cpu;
use crate::storage::{FLOATS, span, type_of};
use crate::{Error, Result};

/// A trained variable, in messages.
const VAR: &str = "a variable of an optimizer";

/// An optimizer of candle variables with 8-bit moments (arXiv 2110.02861): Adam, AdamW, AdEMAMix, momentum, Lion, RMSProp, Adagrad, LARS or
/// LAMB, as [`OptimizerConfig`] says. Variables are updated in place, in f32, f16 or bf16.
///
/// A program that trains with `AdamW::new(varmap.all_vars(), params)?` replaces that line by `VarOptimizer::new(varmap.all_vars(),
/// OptimizerConfig::adamw().lr(1e-3))?`.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use candle_nn::Optimizer;
/// use tersor_candle::{OptimizerConfig, VarOptimizer};
///
/// # fn main() -> candle_core::Result<()> {
/// let w = Var::zeros((64, 64), DType::F32, &Device::Cpu)?;
/// let mut optimizer = VarOptimizer::new(vec![w.clone()], OptimizerConfig::adamw().lr(0.1))?.max_norm(1.0)?;
/// let loss = |w: &Tensor| (w - 1.0)?.sqr()?.sum_all();
/// let before = loss(&w)?;
/// optimizer.backward_step(&before)?;
/// assert!(loss(&w)?.to_scalar::<f32>()? < before.to_scalar::<f32>()?);
/// // Two moments of 8 bits, in 16 blocks each, which have a scale in f32.
/// assert_eq!(optimizer.state_bytes(), 2 * (64 * 64 + 4 * 16));
/// # Ok(())
/// # }
/// ```
pub struct VarOptimizer {
    vars: Vec<(String, Var)>,
    base: f64,
    lr: f64,
    steps: u64,
    inner: BlockwiseOptimizer,
    exec: Exec,
}

impl VarOptimizer {
    /// Returns an optimizer of variables with names, under which their moments are saved. Variables with elements of integers are left out.
    /// Errors if a value of `config` is out of range, a name or a variable occurs twice, or a variable is not in f32, f16 or bf16,
    /// contiguous, and on the CPU.
    pub fn named(vars: impl IntoIterator<Item = (String, Var)>, config: OptimizerConfig) -> Result<Self> {
        let vars: Vec<(String, Var)> = vars.into_iter().filter(|(_, v)| v.dtype().is_float()).collect();
        let (mut names, mut seen) = (BTreeSet::new(), Vec::new());
        for (name, var) in &vars {
            check_cpu(VAR, var.device())?;
            if !matches!(var.dtype(), DType::F32 | DType::F16 | DType::BF16) {
                return Err(Error::DType { what: VAR, expected: FLOATS, found: var.dtype() });
            }
            span(VAR, var.layout())?;
            if !names.insert(name) || seen.contains(&var.id()) {
                return Err(tersor_core::Error::order("variables of an optimizer", "each occurs once", name).into());
            }
            seen.push(var.id());
        }
        let base = f64::from(config.learning_rate());
        let inner = BlockwiseOptimizer::new(config)?;
        Ok(Self { vars, base, lr: base, steps: 0, inner, exec: Exec::new() })
    }

    /// Returns an optimizer of all variables of `map`, under their names; see [`VarOptimizer::named`].
    pub fn of_map(map: &VarMap, config: OptimizerConfig) -> Result<Self> {
        let vars = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // In the order of names: the order of the map is random.
        let mut vars: Vec<(String, Var)> = vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        Self::named(vars, config)
    }

    /// Returns the optimizer with gradient clipping by the global norm: if the Euclidean norm of all gradients of a step together is above
    /// `max_norm`, they are scaled down to it. Errors unless `max_norm` is finite and above 0.
    pub fn max_norm(self, max_norm: f64) -> Result<Self> {
        Ok(Self { inner: self.inner.max_norm(max_norm)?, ..self })
    }

    /// Returns the optimizer with steps that run on `exec`: its threads and its instruction set.
    pub fn with_exec(self, exec: Exec) -> Self {
        Self { exec, ..self }
    }

    /// Gives the variable `var` parameters of its own, such as another weight decay: `own` of the optimizer's. To be called before the
    /// first step. Errors if the variable does not belong to this optimizer, or a value is out of range.
    pub fn set(&mut self, var: &Var, own: impl FnOnce(OptimizerConfig) -> OptimizerConfig) -> Result<()> {
        let name = self.name_of(var)?;
        Ok(self.inner.set(&name, own)?)
    }

    /// Stores the moments of `var` in f32, as the paper recommends for embeddings. To be called before the first step. Errors if the
    /// variable does not belong to this optimizer.
    pub fn keep_f32(&mut self, var: &Var) -> Result<()> {
        let name = self.name_of(var)?;
        Ok(self.inner.keep_f32(&name)?)
    }

    /// Returns the number of bytes of all moments; 0 before the first step.
    pub fn state_bytes(&self) -> usize {
        self.inner.bytes()
    }

    /// Returns the moments, each under the name of its variable; [`VarOptimizer::new`](candle_nn::Optimizer::new) names variables by their
    /// index.
    pub fn state(&self) -> &BlockwiseOptimizer {
        &self.inner
    }

    /// Writes the moments of all variables to `sink`. Errors if the sink errors.
    pub fn save(&self, sink: &mut dyn TensorSink) -> Result<()> {
        Ok(self.inner.save(sink)?)
    }

    /// Replaces the moments by those that [`save`](Self::save) wrote. Errors, with nothing changed, if they are invalid or those of another
    /// rule.
    pub fn load(&mut self, source: &dyn TensorSource) -> Result<()> {
        Ok(self.inner.load(source)?)
    }

    fn name_of(&self, var: &Var) -> Result<String> {
        let found = self.vars.iter().find(|(_, v)| v.id() == var.id());
        let missing = || tersor_core::Error::missing("the variable", "this optimizer; it is not one of its variables");
        Ok(found.ok_or_else(missing)?.0.clone())
    }

    fn update(&mut self, grads: &GradStore) -> Result<()> {
        let factor = if self.lr == self.base { 1.0 } else { (self.lr / self.base) as f32 };
        if !factor.is_finite() {
            let rule = format!("must be finite, and no other than 0 if the configured rate is {}", self.base);
            return Err(tersor_core::Error::from(ParamError::new("lr", self.lr, rule)).into());
        }
        self.inner.scale_lr(factor)?;
        let mut params = VarParams::new(&self.vars, grads, &self.exec)?;
        self.inner.step(self.steps + 1, &mut params, &self.exec)?;
        self.steps += 1;
        Ok(())
    }
}

impl candle_nn::Optimizer for VarOptimizer {
    type Config = OptimizerConfig;

    /// Returns an optimizer of `vars`, which are named by their index; see [`VarOptimizer::named`].
    fn new(vars: Vec<Var>, config: OptimizerConfig) -> candle_core::Result<Self> {
        Ok(Self::named(vars.into_iter().enumerate().map(|(i, var)| (i.to_string(), var)), config)?)
    }

    /// Updates all variables that have a gradient. Errors, with nothing changed, if a gradient is not finite or has another shape than its
    /// variable.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        Ok(self.update(grads)?)
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }
}

/// Variables with their gradients, as the parameters that any [`Optimizer`] of Tersor updates in place. Variables in f16 or bf16 are
/// updated in f32 and rounded to nearest.
///
/// ```
/// use candle_core::{Device, Var};
/// use tersor_candle::{VarParams, core::{Exec, gradients::Params}};
///
/// # fn main() -> candle_core::Result<()> {
/// let w = Var::new(&[1f32, 2.0], &Device::Cpu)?;
/// let grads = w.sqr()?.sum_all()?.backward()?;
/// let vars = [("w".to_string(), w.clone())];
/// let mut params = VarParams::new(&vars, &grads, &Exec::new())?;
/// let done = params.each(&mut |p| Ok(p.value.iter_mut().zip(p.grad).for_each(|(v, g)| *v -= 0.25 * g)));
/// done.map_err(tersor_candle::Error::from)?;
/// assert_eq!(w.to_vec1::<f32>()?, [0.5, 1.0]);
/// # Ok(())
/// # }
/// ```
pub struct VarParams<'a> {
    /// Names, variables, and gradients in f32.
    all: Vec<(&'a str, &'a Var, Tensor)>,
    isa: Isa,
}

impl<'a> VarParams<'a> {
    /// Returns the variables of `vars` that have a gradient in `grads`. Errors if a gradient has another shape than its variable, or is not
    /// on the CPU.
    pub fn new(vars: &'a [(String, Var)], grads: &GradStore, exec: &Exec) -> Result<Self> {
        let mut all = Vec::new();
        for (name, var) in vars {
            let Some(grad) = grads.get(var) else { continue };
            check_cpu("a gradient", grad.device())?;
            if grad.dims() != var.dims() {
                let error = tersor_core::Error::shape("shape of a gradient", var.dims(), grad.dims());
                return Err(error.in_tensor(name).into());
            }
            all.push((name.as_str(), var, grad.detach().to_dtype(DType::F32)?.contiguous()?));
        }
        Ok(Self { all, isa: exec.isa() })
    }
}

impl Params for VarParams<'_> {
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> tersor_core::Result<()>) -> tersor_core::Result<()> {
        let visit = Visit { f: RefCell::new(f), name: RefCell::new(""), failed: RefCell::new(None), isa: self.isa };
        for (name, var, grad) in &self.all {
            *visit.name.borrow_mut() = name;
            if let Err(error) = var.as_tensor().inplace_op2(grad, &visit) {
                return Err(visit.failed.take().unwrap_or_else(|| Error::Candle(error).into_tersor()));
            }
        }
        Ok(())
    }
}

/// The callback of [`Params::each`].
type Callback<'f> = dyn FnMut(Param<'_>) -> tersor_core::Result<()> + 'f;

/// A visit of one variable, as a candle operation, because candle gives mutable access to storage to operations only.
struct Visit<'a, 'f> {
    f: RefCell<&'a mut Callback<'f>>,
    name: RefCell<&'a str>,
    /// The error of the callback.
    failed: RefCell<Option<tersor_core::Error>>,
    isa: Isa,
}

impl Visit<'_, '_> {
    fn call(&self, value: &mut [f32], grad: &[f32]) -> candle_core::Result<()> {
        let done = (self.f.borrow_mut())(Param::new(*self.name.borrow(), value, grad));
        done.map_err(|error| {
            let shown = candle_core::Error::Msg(error.to_string());
            *self.failed.borrow_mut() = Some(error);
            shown
        })
    }

    fn half<E: Element>(&self, stored: &mut [E], grad: &[f32]) -> candle_core::Result<()> {
        let mut value = vec![0f32; stored.len()];
        E::widen(self.isa, stored, &mut value);
        self.call(&mut value, grad)?;
        E::narrow(self.isa, &value, stored);
        Ok(())
    }
}

impl InplaceOp2 for Visit<'_, '_> {
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, var: &mut CpuStorage, at: &Layout, grad: &CpuStorage, from: &Layout) -> candle_core::Result<()> {
        let (at, from) = (span(VAR, at)?, span("a gradient", from)?);
        let grad = &grad.as_slice::<f32>()?[from];
        match var {
            CpuStorage::F32(v) => self.call(&mut v[at], grad),
            CpuStorage::F16(v) => self.half(&mut v[at], grad),
            CpuStorage::BF16(v) => self.half(&mut v[at], grad),
            other => Err(Error::DType { what: VAR, expected: FLOATS, found: type_of(other) }.into()),
        }
    }
}
