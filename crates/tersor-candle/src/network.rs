//! [`TapLinear`], [`Taps`] and [`CandleNetwork`]: a candle model as a [`Network`], which calibration and compression of whole networks
//! take.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Linear;
use tersor_core::network::{Batch, MemWeights, Scores, Stage, Stream};
use tersor_core::{Consumer, Error, Exec, Input, MatViewMut, Network, Role, Site, Tap, Weights};

use crate::storage::{as_matrix, with_f32};
use crate::{Matrix, Result};

/// The input of a tapped layer, in messages.
const INPUT: &str = "the input of a tapped layer";

/// The tap that the layers of a model currently multiply through, and the list of these layers. Clones share both.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use tersor::core::{Context, network::Batch};
/// use tersor::pipeline::{Recipe, network::compress_network};
/// use tersor_candle::{CompressedLinear, Taps};
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
/// let taps = Taps::new();
/// let first = taps.linear("first", Linear::new(weight((64, 32))?, None))?;
/// let second = taps.linear("second", Linear::new(weight((10, 64))?, None))?;
/// let model = move |x: &Tensor| second.forward(&first.forward(x)?.relu()?);
///
/// let network = taps.network(model);
/// let x = weight((100, 32))?.flatten_all()?.to_vec1()?;
/// let compress = || {
///     let (kinds, cx) = (tersor::kinds(), Context::new());
///     let data = Batch::of_values(x, vec![100, 32], vec![])?;
///     let recipe = Recipe::find("w4-g32-gptq", &kinds.stages)?;
///     compress_network(&network, &taps.weights()?, &[data], &recipe, kinds, &cx)
/// };
/// let made = compress().map_err(tersor_candle::Error::from)?;
/// let first = CompressedLinear::new(made.operators["first"].clone(), None)?;
/// assert_eq!(first.shape(), [64, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Taps(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The sites, each with the weights of its matrices.
    sites: Mutex<Vec<(Site, Vec<Tensor>)>>,
    current: Mutex<Option<Current>>,
    /// Held by a run, so that concurrent runs of one model take turns.
    running: Mutex<()>,
}

/// A run in progress.
struct Current {
    tap: Arc<dyn Tap>,
    exec: Exec,
    owner: ThreadId,
    /// The first error of the tap, which candle's errors cannot hold.
    failed: Option<Error>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Taps {
    /// Returns an empty list of layers, without a tap.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the layer `linear` to the list, as a site of its own, and returns it as one that multiplies through the tap. `weight` names its
    /// matrix. Layers are added in the order of execution. Errors if the weight is not a matrix of f32, f16 or bf16 on the CPU.
    pub fn linear(&self, weight: &str, linear: Linear) -> Result<TapLinear> {
        let mut one = self.shared(weight, [(weight.to_string(), linear)])?;
        one.pop().ok_or_else(|| Error::missing(weight, "the layers of a site").into())
    }

    /// Adds layers that read the same input, such as q, k and v, as the site `site`, and returns them as layers that multiply through the
    /// tap. `linears` has the name of each matrix. Errors if there are none, they have different numbers of features, or a weight is not a
    /// matrix of f32, f16 or bf16 on the CPU.
    pub fn shared(&self, site: &str, linears: impl IntoIterator<Item = (String, Linear)>) -> Result<Vec<TapLinear>> {
        let linears: Vec<(String, Linear)> = linears.into_iter().collect();
        let mut consumers = Vec::new();
        for (weight, linear) in &linears {
            Matrix::new(linear.weight())?;
            let (out, inp) = linear.weight().dims2()?;
            consumers.push(Consumer { weight: weight.clone(), shape: [out, inp], role: Role::Linear });
        }
        let first = consumers.first().ok_or_else(|| Error::shape("layers of a site", "at least 1", 0))?;
        let features = first.shape[1];
        if let Some(other) = consumers.iter().find(|c| c.shape[1] != features) {
            return Err(Error::shape("features of a shared input", features, other.shape[1])
                .in_tensor(&other.weight)
                .into());
        }
        let site = Site { name: site.into(), features, ..Site::linear(&first.weight, first.shape) };
        let weights = linears.iter().map(|(_, linear)| linear.weight().clone()).collect();
        let mut sites = lock(&self.0.sites);
        sites.push((Site { consumers, ..site }, weights));
        let index = sites.len() - 1;
        let tapped = linears.into_iter().enumerate();
        Ok(tapped.map(|(i, (_, linear))| TapLinear::new(linear, index, i, self)).collect())
    }

    /// Returns the sites of all added layers, in the order in which they were added.
    pub fn sites(&self) -> Vec<Site> {
        lock(&self.0.sites).iter().map(|(site, _)| site.clone()).collect()
    }

    /// Returns a copy of the weights of all added layers in f32, by name. Errors if a value is not finite.
    pub fn weights(&self) -> tersor_core::Result<MemWeights> {
        let mut all = MemWeights::new();
        for (site, weights) in lock(&self.0.sites).iter() {
            for (consumer, weight) in site.consumers.iter().zip(weights) {
                let matrix = Matrix::new(weight).map_err(crate::Error::into_tersor)?;
                all.insert_mat(&consumer.weight, &matrix)?;
            }
        }
        Ok(all)
    }

    /// Returns the network with the layers that were added up to now, whose output `forward` computes; see [`CandleNetwork`].
    pub fn network<F>(&self, forward: F) -> CandleNetwork<F>
    where
        F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync,
    {
        CandleNetwork { sites: self.sites(), taps: self.clone(), forward }
    }

    /// Runs `forward`, in which the layers multiply through `tap`, and returns its result. Runs on several threads take turns. An
    /// implementation of [`Stage`] calls it. Errors with the tap's own error if there was one, such as [`Error::Stopped`]; otherwise with
    /// the error of `forward`, as [`Error::Numerical`]; and if it is called from within `forward`.
    pub fn run<R>(
        &self,
        tap: &Arc<dyn Tap>,
        exec: &Exec,
        forward: impl FnOnce() -> candle_core::Result<R>,
    ) -> tersor_core::Result<R> {
        let owner = std::thread::current().id();
        if lock(&self.0.current).as_ref().is_some_and(|c| c.owner == owner) {
            let value = "a run within a run of the same model".into();
            return Err(Error::Unsupported { what: "nesting of taps", value });
        }
        let _turn = lock(&self.0.running);
        *lock(&self.0.current) = Some(Current { tap: tap.clone(), exec: exec.clone(), owner, failed: None });
        /// Takes the tap away, also after a panic.
        struct End<'a>(&'a Shared);
        impl End<'_> {
            fn failed(&self) -> Option<Error> {
                lock(&self.0.current).take().and_then(|c| c.failed)
            }
        }
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.failed();
            }
        }
        let end = End(&self.0);
        let found = forward();
        match (end.failed(), found) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => Ok(result),
            (None, Err(error)) => Err(crate::Error::Candle(error).into_tersor()),
        }
    }
}

/// A linear layer that multiplies through the tap of a network while [`Taps::run`] is in progress, and otherwise with its own weight. It
/// has gradients only outside of runs. Clones share the weight.
#[derive(Clone)]
pub struct TapLinear {
    linear: Linear,
    site: usize,
    consumer: usize,
    taps: Taps,
}

impl TapLinear {
    /// Returns the layer `linear` as matrix `consumer` of site `site`, both counted from 0 in the list of sites of a [`Network`]. It uses
    /// the tap of `taps` and is not added to its list. It serves implementations of [`Network`] with stages of their own.
    pub fn new(linear: Linear, site: usize, consumer: usize, taps: &Taps) -> Self {
        Self { linear, site, consumer, taps: taps.clone() }
    }

    /// Returns the layer with its own weight.
    pub fn inner(&self) -> &Linear {
        &self.linear
    }

    fn tapped(&self, x: &Tensor, tap: &dyn Tap, exec: &Exec) -> Result<Tensor> {
        let (matrix, out) = (as_matrix(INPUT, x.dims())?, self.linear.weight().dim(0)?);
        let mut y = vec![0f32; tersor_core::view::elements([matrix[0], out])?];
        with_f32(INPUT, x, exec.isa(), |values| {
            let view = MatViewMut::new(&mut y, [matrix[0], out])?;
            Ok(tap.apply(self.site, self.consumer, &Input::new(values, matrix)?, &mut [view], exec)?)
        })?;
        let dims: Vec<usize> = x.dims().iter().rev().skip(1).rev().copied().chain([out]).collect();
        let y = Tensor::from_vec(y, dims, &Device::Cpu)?.to_dtype(x.dtype())?;
        Ok(match self.linear.bias() {
            Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
            None => y,
        })
    }
}

impl Module for TapLinear {
    /// Returns `x Wᵀ + b`, `[.., out_features]`, for `x` `[.., in_features]`, where the tap multiplies with the matrix if there is one.
    /// Errors if the tap errors, which [`Taps::run`] passes on, or if `x` is not in f32, f16 or bf16 on the CPU.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let current = lock(&self.taps.0.current).as_ref().map(|c| (c.tap.clone(), c.exec.clone()));
        let Some((tap, exec)) = current else { return self.linear.forward(x) };
        self.tapped(x, &*tap, &exec).map_err(|error| match error {
            crate::Error::Tersor(own) => {
                let shown = candle_core::Error::Msg(own.to_string());
                if let Some(current) = &mut *lock(&self.taps.0.current) {
                    current.failed.get_or_insert(own);
                }
                shown
            }
            other => other.into(),
        })
    }
}

/// A candle model as a [`Network`] of one stage: it takes floats, `[windows, ..]` in f32, and returns logits `[windows, classes]`.
/// [`Taps::network`] makes it. A model that takes tokens, or whose layers are not in memory together, implements [`Network`] with
/// [`TapLinear`] and [`Taps::run`].
pub struct CandleNetwork<F> {
    sites: Vec<Site>,
    taps: Taps,
    forward: F,
}

/// Name of the only tensor of the stream.
const X: &str = "x";

impl<F> Network for CandleNetwork<F>
where
    F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync,
{
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn enter(&self, batch: &Batch, _: &dyn Weights, _: &Exec) -> tersor_core::Result<Stream> {
        if batch.shape.is_empty() {
            return Err(Error::missing("values", "the batch; this network takes floats"));
        }
        tersor_core::check_finite(&batch.values, batch.values.len() / batch.shape[0].max(1), 0)?;
        Stream::of(X, batch.shape.clone(), batch.values.clone())
    }

    fn stage<'n>(&'n self, index: usize, _: &dyn Weights) -> tersor_core::Result<Box<dyn Stage + 'n>> {
        if index == 0 { Ok(Box::new(Whole(self))) } else { Err(Error::range("stage", 0..1, index)) }
    }

    fn score(
        &self,
        out: &Stream,
        reference: Option<&Stream>,
        batch: &Batch,
        _: &dyn Weights,
    ) -> tersor_core::Result<Scores> {
        Scores::of_logits(out.part(X)?, reference.map(|r| r.part(X)).transpose()?, &batch.labels)
    }
}

struct Whole<'n, F>(&'n CandleNetwork<F>);

impl<F> Stage for Whole<'_, F>
where
    F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync,
{
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> tersor_core::Result<Stream> {
        let x = stream.take(X)?;
        let (shape, values) = self.0.taps.run(tap, exec, || {
            let y = (self.0.forward)(&Tensor::from_vec(x.values, x.shape, &Device::Cpu)?)?;
            let values = y.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok((y.dims().to_vec(), values))
        })?;
        stream.set(X, shape, values)?;
        Ok(stream)
    }
}
