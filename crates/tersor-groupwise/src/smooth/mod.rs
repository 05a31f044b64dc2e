//! Smoothing: magnitude moves from inputs to weights before either is rounded. Four ways to choose the factors.

mod adaptive;
mod percentile;
mod rewrite;
mod smoothquant;

pub use adaptive::Adaptive;
pub use percentile::Percentile;
pub(crate) use rewrite::Factors;
pub use rewrite::smoothed;
pub use smoothquant::{CheckedSmoothQuant, SmoothQuant};

use tersor_core::{
    ChannelStats, Context, DType, Error, FoldedRows, LinearOp, Result, RowSource, SeenSite, StatSet, Transform,
    metrics, read_finite,
};
use tersor_operators::{ActQuant, Dense, QuantizedInputs, online};

/// Returns the largest magnitude of each channel.
pub(crate) fn largest(c: &ChannelStats) -> Vec<f32> {
    c.min.iter().zip(&c.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect()
}

/// The error of a module under candidate factors.
pub(crate) struct Trial<'a> {
    seen: &'a SeenSite<'a>,
    weights: &'a [&'a dyn RowSource],
    /// For each matrix the quantizer of its activations, if they are quantized.
    activations: Vec<Option<ActQuant>>,
    through: bool,
    want: Vec<f32>,
}

impl<'a> Trial<'a> {
    /// Returns the trial of a site on its sample. `activations` are quantizers for the inputs of each matrix, or one for all, or none. Errors if the
    /// sample is empty, or it is not known what a matrix will become.
    pub fn new(
        seen: &'a SeenSite<'a>,
        weights: &'a [&'a dyn RowSource],
        activations: &[ActQuant],
        through: bool,
    ) -> Result<Self> {
        if activations.len() > 1 && activations.len() != weights.len() {
            let expected = format!("1 or {}", weights.len());
            return Err(Error::shape("activation bits of the matrices of a site", expected, activations.len()));
        }
        let activations = (0..weights.len()).map(|i| activations.get(i).or(activations.first()).cloned()).collect();
        let exact = |w: &&dyn RowSource| -> Result<Dense> {
            let shape = w.shape();
            Dense::new(read_finite(*w, 0..shape[0])?, shape, DType::F32)
        };
        let exact = weights.iter().map(exact).collect::<Result<Vec<_>>>()?;
        let exact: Vec<&dyn LinearOp> = exact.iter().map(|o| o as &dyn LinearOp).collect();
        let want = (seen.output)(seen.sample, &exact, through)?;
        if want.is_empty() {
            return Err(Error::missing("whole windows", "the sample of the inputs"));
        }
        Ok(Self { seen, weights, activations, through, want })
    }

    /// Returns the squared distance of the module's outputs on the sample from the original's, with its matrices compressed without data under
    /// these factors.
    pub fn loss(&self, factors: &[f32], cx: &Context) -> Result<f64> {
        cx.cancel.check()?;
        let folds = smoothed(self.seen.site, factors);
        let change = Transform::Scale(factors.to_vec()).input_change()?;
        let (mut ops, none) = (Vec::new(), StatSet::none());
        for (i, (w, consumer)) in self.weights.iter().zip(&self.seen.site.consumers).enumerate() {
            let method = self.seen.plain.get(i).copied().flatten();
            let method = method.ok_or_else(|| {
                let value = format!("of {}: its method has no form without data to try factors with", consumer.weight);
                Error::Unsupported { what: "search of smoothing factors", value }
            })?;
            let folded = FoldedRows::new(*w, &consumer.weight, &folds)?.with_isa(cx.isa());
            let mut op = method.prepare(&none, cx)?.compress(&folded, 0..w.shape()[0], cx)?.op;
            if let Some(act) = &self.activations[i] {
                op = Box::new(QuantizedInputs::new(act.clone(), op)?);
            }
            ops.push(online(op, &change)?);
        }
        let ops: Vec<&dyn LinearOp> = ops.iter().map(|o| &**o).collect();
        let found = (self.seen.output)(self.seen.sample, &ops, self.through)?;
        Ok(metrics::squared_error(&self.want, &found))
    }
}
