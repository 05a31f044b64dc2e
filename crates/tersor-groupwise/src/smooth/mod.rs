//! Moving magnitude from inputs to weights before either is rounded: four ways to choose the factors.

mod adaptive;
mod percentile;
mod smoothquant;

pub use adaptive::Adaptive;
pub use percentile::Percentile;
pub use smoothquant::{CheckedSmoothQuant, SmoothQuant};

use tersor_core::compose::Dense;
use tersor_core::rewrite::{Module, online};
use tersor_core::{
    ChannelStats, Context, DType, Error, FoldedRows, LinearOp, Method, Result, RowSource, Transform, metrics,
    read_finite,
};

/// Per-channel figures of a site. Error when there are none.
pub(crate) fn channels<'a>(module: &Module<'a>) -> Result<&'a ChannelStats> {
    let missing =
        || Error::Missing { name: "per-channel figures".into(), place: "the statistics of the inputs".into() };
    module.stats.channel().filter(|_| module.stats.tokens() > 0).ok_or_else(missing)
}

/// Largest magnitude of each channel.
pub(crate) fn largest(c: &ChannelStats) -> Vec<f32> {
    c.min.iter().zip(&c.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect()
}

/// A module's error under candidate factors.
pub(crate) struct Trial<'a> {
    module: &'a Module<'a>,
    methods: &'a [Box<dyn Method>],
    through: bool,
    want: Vec<f32>,
}

impl<'a> Trial<'a> {
    /// Of methods without data, which stand for what the matrices will become: one for each, or one for all.
    pub fn new(module: &'a Module<'a>, methods: &'a [Box<dyn Method>], through: bool) -> Result<Self> {
        if methods.len() != 1 && methods.len() != module.weights.len() {
            let expected = format!("1 or {}", module.weights.len());
            return Err(Error::shape("methods that stand for those of a site", expected, methods.len()));
        }
        let exact = |w: &&dyn RowSource| -> Result<Dense> {
            let shape = w.shape();
            Dense::new(read_finite(*w, 0..shape[0])?, shape, DType::F32)
        };
        let exact = module.weights.iter().map(exact).collect::<Result<Vec<_>>>()?;
        let exact: Vec<&dyn LinearOp> = exact.iter().map(|o| o as &dyn LinearOp).collect();
        let want = (module.output)(module.sample, &exact, through)?;
        if want.is_empty() {
            return Err(Error::Missing { name: "whole windows".into(), place: "the sample of the inputs".into() });
        }
        Ok(Self { module, methods, through, want })
    }

    /// Squared distance of the module's outputs on the sample from the original's.
    pub fn loss(&self, factors: &[f32], cx: &Context) -> Result<f64> {
        cx.cancel.check()?;
        let folds = self.module.site.smoothed(factors);
        let change = Transform::Scale(factors.to_vec());
        let mut ops = Vec::new();
        let all = self.module.weights.iter().zip(&self.module.site.consumers);
        for ((w, consumer), method) in all.zip(self.methods.iter().cycle()) {
            let folded = FoldedRows::new(*w, &consumer.weight, &folds)?;
            let op = method.prepare(None, cx)?.compress(&folded, 0..w.shape()[0], cx)?.op;
            ops.push(online(op, &change)?);
        }
        let ops: Vec<&dyn LinearOp> = ops.iter().map(|o| &**o).collect();
        let found = (self.module.output)(self.module.sample, &ops, self.through)?;
        Ok(metrics::squared_error(&self.want, &found))
    }
}
