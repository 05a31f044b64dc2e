//! [`Observer`]: statistics of the inputs of a candle model's layers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Module, Tensor};
use candle_nn::Linear;
use tersor_core::{Exec, Input, MatView, StatNeeds, StatSet};

use crate::Result;
use crate::storage::{as_matrix, with_f32};

/// The input of an observed layer, in messages.
const INPUT: &str = "the input of an observed layer";

/// Gathers statistics of the inputs of layers while a candle model runs on calibration data. It wraps each layer in an [`ObservedLinear`].
///
/// The last axis of an input is its features, the axis before it counts tokens, and all axes before that count windows (sequences). Each
/// window is observed by itself, in the order of the passes, so that the statistics do not depend on how windows are divided into batches.
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use tersor_candle::{CompressedLinear, Matrix, Observer, core::StatNeeds};
/// use tersor::groupwise::Gptq;
///
/// # fn main() -> candle_core::Result<()> {
/// let linear = Linear::new(Tensor::randn(0f32, 1.0, (16, 64), &Device::Cpu)?, None);
/// let observer = Observer::new(StatNeeds::none().with_gram());
/// let observed = observer.linear("up", linear.clone())?;
/// // 4 windows of 32 tokens.
/// observed.forward(&Tensor::randn(0f32, 1.0, (4, 32, 64), &Device::Cpu)?)?;
/// let stats = observer.stats("up")?;
/// assert_eq!(stats.tokens(), 128);
/// let quantized = Gptq::new().bits(4).group(32).quantize(&Matrix::new(linear.weight())?, &stats);
/// let (op, _) = quantized.map_err(tersor_candle::Error::from)?;
/// let layer = CompressedLinear::new(op.into(), linear.bias().cloned())?;
/// assert_eq!(layer.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Observer {
    needs: StatNeeds,
    seed: u64,
    layers: Mutex<BTreeMap<String, Arc<Mutex<StatSet>>>>,
    weights: Mutex<Option<Weights>>,
}

/// Weights of tokens, and their shape.
#[derive(Clone, Debug)]
struct Weights {
    shape: Vec<usize>,
    values: Arc<Vec<f32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    /// Returns an observer that gathers the statistics `needs` of each layer; those of a method are its
    /// [`needs`](tersor_core::Method::needs). A sample of tokens is drawn with seed 0.
    pub fn new(needs: StatNeeds) -> Arc<Self> {
        Self::with_seed(needs, 0)
    }

    /// Returns an observer that gathers the statistics `needs` of each layer; `seed` determines which tokens a sample has.
    pub fn with_seed(needs: StatNeeds, seed: u64) -> Arc<Self> {
        Arc::new(Self { needs, seed, layers: Mutex::default(), weights: Mutex::default() })
    }

    /// Returns the layer `linear` as one whose inputs are observed under `name`. Errors if a layer of this name is observed already, or if
    /// the Gram matrix would exceed the address space.
    pub fn linear(self: &Arc<Self>, name: &str, linear: Linear) -> Result<ObservedLinear> {
        let features = linear.weight().dim(1)?;
        self.module(name, features, linear)
    }

    /// Returns any module with inputs `[.., features]` as one whose inputs are observed under `name`. Errors if a layer of this name is
    /// observed already, or if the Gram matrix would exceed the address space.
    pub fn module<M: Module>(self: &Arc<Self>, name: &str, features: usize, module: M) -> Result<ObservedLinear<M>> {
        let mut layers = lock(&self.layers);
        if layers.contains_key(name) {
            return Err(tersor_core::Error::order("names of observed layers", "each occurs once", name).into());
        }
        let stats = StatSet::new(features, self.needs, self.seed, 0).map_err(|e| e.in_tensor(name))?;
        let stats = Arc::new(Mutex::new(stats));
        layers.insert(name.into(), stats.clone());
        Ok(ObservedLinear { inner: module, name: name.into(), stats, observer: self.clone() })
    }

    /// Sets the weight of each token in the passes that follow, such as 0 for padding: a tensor with the shape of the inputs without their
    /// last axis, in f32, f16, bf16 or integers, for example an attention mask `[windows, tokens]`. With None, the weight of every token is
    /// 1. Errors if the tensor is not on the CPU.
    pub fn set_weights(&self, weights: Option<&Tensor>) -> Result<()> {
        let read = |w: &Tensor| -> Result<Weights> {
            let f32s = w.to_dtype(candle_core::DType::F32)?;
            let values = with_f32("the weights of tokens", &f32s, Exec::new().isa(), |v| Ok(v.to_vec()))?;
            Ok(Weights { shape: w.dims().to_vec(), values: Arc::new(values) })
        };
        let weights = weights.map(read).transpose()?;
        *lock(&self.weights) = weights;
        Ok(())
    }

    /// Returns the names of the observed layers, sorted.
    pub fn names(&self) -> Vec<String> {
        lock(&self.layers).keys().cloned().collect()
    }

    /// Returns a copy of the statistics of the layer `name` up to now. Errors if no layer of this name is observed.
    pub fn stats(&self, name: &str) -> Result<StatSet> {
        let layer = lock(&self.layers).get(name).cloned();
        let layer = layer.ok_or_else(|| tersor_core::Error::missing(name, "the observed layers"))?;
        let stats = lock(&layer).clone();
        Ok(stats)
    }
}

/// A layer whose inputs an [`Observer`] observes. Its output is that of the inner layer. Clones share the statistics.
#[derive(Clone, Debug)]
pub struct ObservedLinear<M = Linear> {
    inner: M,
    name: String,
    stats: Arc<Mutex<StatSet>>,
    observer: Arc<Observer>,
}

impl<M> ObservedLinear<M> {
    /// Returns the inner layer.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    /// Returns the inner layer, which is no longer observed.
    pub fn into_inner(self) -> M {
        self.inner
    }

    fn observe(&self, x: &Tensor) -> Result<()> {
        let weights = lock(&self.observer.weights).clone();
        let [rows, features] = as_matrix(INPUT, x.dims())?;
        let leading = &x.dims()[..x.rank().saturating_sub(1)];
        if let Some(weights) = weights.as_ref().filter(|w| w.shape != leading) {
            return Err(tersor_core::Error::shape("shape of the weights of tokens", leading, &weights.shape).into());
        }
        let tokens = leading.last().copied().unwrap_or(1);
        with_f32(INPUT, x, Exec::new().isa(), |values| {
            let mut stats = lock(&self.stats);
            if features != stats.features() {
                return Err(tersor_core::Error::shape("features of the input", stats.features(), features).into());
            }
            // All windows are checked before the first is added.
            Input::new(values, [rows, features])?.check_finite()?;
            let windows = if rows == 0 || features == 0 { 0 } else { rows / tokens };
            for window in 0..windows {
                let at = window * tokens..(window + 1) * tokens;
                let own = MatView::new(&values[at.start * features..at.end * features], [tokens, features])?;
                stats.observe_window(&own, weights.as_ref().map(|w| &w.values[at]))?;
            }
            Ok(())
        })
    }
}

impl<M: Module> Module for ObservedLinear<M> {
    /// Returns the output of the inner layer for `x` `[.., features]`, and adds `x` to the statistics. Errors, naming the layer, if the
    /// number of features differs, a value is not finite, weights of tokens have another shape, or `x` is not in f32, f16 or bf16 on the
    /// CPU; and if the inner layer errors.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.observe(x).map_err(|e| match e {
            crate::Error::Tersor(e) => crate::Error::Tersor(e.in_tensor(&self.name)),
            other => other,
        })?;
        self.inner.forward(x)
    }
}
