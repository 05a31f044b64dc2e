//! Tersor's optimizers as a candle `Optimizer`.

use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor, Var};
use tersor::blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig};
use tersor::core::Element;

/// An optimizer of candle variables with 8-bit moments.
///
/// A program that trains with `AdamW::new(varmap.all_vars(), params)?` replaces that line by
/// `EightBit::new(varmap.all_vars(), OptimizerConfig::adamw().lr(1e-3))?`. Parameters are updated in place, in f32, f16 or bf16.
pub struct EightBit {
    vars: Vec<Var>,
    base: f64,
    lr: f64,
    group: BlockwiseOptimizer,
}

impl EightBit {
    /// Stores the moments of `var` in f32, as the paper recommends for embeddings. To be called before the first step. Errors if the variable does not
    /// belong to this optimizer.
    pub fn keep_f32(&mut self, var: &Var) -> Result<()> {
        let at = self.vars.iter().position(|v| v.id() == var.id());
        let at = at.ok_or_else(|| Error::Msg("the variable is not one of this optimizer".into()))?;
        self.group.keep_f32(&at.to_string()).map_err(Error::wrap)
    }

    /// Returns the moments, each under the index of its variable, for saving, loading or inspection.
    pub fn state(&mut self) -> &mut BlockwiseOptimizer {
        &mut self.group
    }

    /// Returns the number of bytes of all moments.
    pub fn state_bytes(&self) -> usize {
        self.group.bytes()
    }
}

impl candle_nn::Optimizer for EightBit {
    type Config = OptimizerConfig;

    fn new(vars: Vec<Var>, how: OptimizerConfig) -> Result<Self> {
        let vars: Vec<Var> = vars.into_iter().filter(|v| v.dtype().is_float()).collect();
        if let Some(v) = vars.iter().find(|v| !v.is_contiguous()) {
            return Err(Error::Msg(format!("a variable of shape {:?} is not contiguous", v.shape())));
        }
        let base = f64::from(how.learning_rate());
        Ok(Self { vars, base, lr: base, group: BlockwiseOptimizer::new(how).map_err(Error::wrap)? })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let factor = if self.lr == self.base { 1.0 } else { (self.lr / self.base) as f32 };
        self.group.scale_lr(factor).map_err(Error::wrap)?;
        for (i, var) in self.vars.iter().enumerate() {
            if let Some(grad) = grads.get(var) {
                let step = Step { group: Mutex::new(&mut self.group), name: i.to_string() };
                let grad: Tensor = grad.contiguous()?;
                var.as_tensor().inplace_op2(&grad, &step)?;
            }
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }
}

/// A step of one variable, as a candle operation, because candle gives access to storage to operations only. The mutex makes the optimizer mutable through
/// the shared reference that candle passes.
struct Step<'a> {
    group: Mutex<&'a mut BlockwiseOptimizer>,
    name: String,
}

impl Step<'_> {
    fn run<P: Element, G: Element>(&self, param: &mut [P], at: &Layout, grad: &[G], from: &Layout) -> Result<()> {
        let part = |l: &Layout| l.contiguous_offsets().ok_or_else(|| Error::Msg("strided parameters".into()));
        let ((a, b), (c, d)) = (part(at)?, part(from)?);
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        group.step_tensor(&self.name, &mut param[a..b], &grad[c..d]).map_err(Error::wrap)
    }
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, param: &mut CpuStorage, at: &Layout, grad: &CpuStorage, from: &Layout) -> Result<()> {
        match (param, grad) {
            (CpuStorage::F32(p), CpuStorage::F32(g)) => self.run(p, at, g, from),
            (CpuStorage::F16(p), CpuStorage::F16(g)) => self.run(p, at, g, from),
            (CpuStorage::BF16(p), CpuStorage::BF16(g)) => self.run(p, at, g, from),
            _ => Err(Error::Msg("parameters must be f32, f16 or bf16, and gradients of the same type".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};

    use super::*;

    fn losses<O: candle_nn::Optimizer>(dtype: DType, make: impl Fn(Vec<Var>) -> Result<O>) -> Result<(Vec<f32>, O)> {
        let device = Device::Cpu;
        let noise = |i: i32| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.5;
        let values = |n: i32, from: i32| -> Vec<f32> { (from..from + n).map(noise).collect() };
        let w = Tensor::from_vec(values(96 * 64, 0), (96, 64), &device)?.to_dtype(dtype)?;
        let w = Var::from_tensor(&w)?;
        let x = Tensor::from_vec(values(32 * 64, 9), (32, 64), &device)?.to_dtype(dtype)?;
        let target = Tensor::from_vec(values(32 * 96, 77), (32, 96), &device)?.to_dtype(dtype)?;
        let mut optimizer = make(vec![w.clone()])?;
        let mut losses = Vec::new();
        for step in 0..40 {
            let loss = (x.matmul(&w.t()?)? - &target)?.sqr()?.mean_all()?;
            optimizer.set_learning_rate(0.01 * (1.0 - f64::from(step) / 80.0));
            optimizer.backward_step(&loss)?;
            losses.push(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        }
        Ok((losses, optimizer))
    }

    #[test]
    fn trains_as_candles_own_does() {
        let params = ParamsAdamW { lr: 0.01, weight_decay: 0.01, ..Default::default() };
        let (theirs, _) = losses(DType::F32, |v| AdamW::new(v, params.clone())).unwrap();
        let ours = |bits| losses(DType::F32, move |v| EightBit::new(v, OptimizerConfig::adamw().lr(0.01).bits(bits)));
        let ((full, _), (eight, state)) = (ours(32).unwrap(), ours(8).unwrap());
        // Candle applies weight decay before the step, Tersor after it: a difference of the second order.
        assert!(theirs.iter().zip(&full).all(|(a, b)| (a - b).abs() < 1e-3 * a), "{theirs:?} {full:?}");
        assert!(full.iter().zip(&eight).all(|(a, b)| (a - b).abs() < 0.02 * a), "{full:?} {eight:?}");
        assert!(eight[39] < 0.5 * eight[0]);
        assert_eq!(state.state_bytes(), 2 * (96 * 64 + 4 * 24));
    }

    #[test]
    fn halves_and_overrides() {
        let (half, _) = losses(DType::BF16, |v| EightBit::new(v, OptimizerConfig::adamw().lr(0.01))).unwrap();
        assert!(half[39] < 0.6 * half[0], "{half:?}");
        let kept = losses(DType::F32, |v| {
            let mut o = EightBit::new(v.clone(), OptimizerConfig::adamw().lr(0.01))?;
            o.keep_f32(&v[0])?;
            assert!(o.keep_f32(&Var::zeros(3, DType::F32, &Device::Cpu)?).is_err());
            Ok(o)
        });
        assert_eq!(kept.unwrap().1.state_bytes(), 8 * 96 * 64);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let w = Var::from_vec(vec![1f32, 2.0], 2, &Device::Cpu).unwrap();
        let mut optimizer = EightBit::new(vec![w.clone()], OptimizerConfig::adamw()).unwrap();
        let loss = (w.as_tensor().sum_all().unwrap() * f64::NAN).unwrap();
        let error = optimizer.backward_step(&loss).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
        assert_eq!((w.to_vec1::<f32>().unwrap(), optimizer.state_bytes()), (vec![1.0, 2.0], 0));
    }
}
