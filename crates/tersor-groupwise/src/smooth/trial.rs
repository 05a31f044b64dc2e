//! [`Trial`]: the error of a module's output under candidate factors.

use tersor_core::{
    Context, DType, Error, FoldedRows, LinearOp, Result, RowSource, SeenSite, StatSet, Transform, metrics, read_finite,
};
use tersor_operators::{ActQuant, Dense, QuantizedInputs, online};

use super::smoothed;

/// The matrices of one site on its sample of inputs, ready to be compressed under candidate factors.
pub(crate) struct Trial<'a> {
    seen: &'a SeenSite<'a>,
    weights: &'a [&'a dyn RowSource],
    /// For each matrix the quantizer of its activations; `None` where they are not quantized.
    activations: Vec<Option<ActQuant>>,
    /// Whether outputs are compared after the next matrix of the network.
    through: bool,
    /// The module's output with the original weights.
    want: Vec<f32>,
}

impl<'a> Trial<'a> {
    /// Returns a trial of the site `seen`, with the module's output for the original `weights` (one for each matrix of the site) on the site's
    /// sample of inputs. `activations` holds one quantizer of inputs for each matrix, one for all, or none; with `through`, outputs are compared
    /// after the next matrix of the network. Errors on another number of quantizers, a weight that is not finite, or an empty sample.
    pub fn new(
        seen: &'a SeenSite<'a>,
        weights: &'a [&'a dyn RowSource],
        activations: &[ActQuant],
        through: bool,
    ) -> Result<Self> {
        if activations.len() > 1 && activations.len() != weights.len() {
            let expected = format!("1 or {}", weights.len());
            return Err(Error::shape("activation quantizers for the matrices of a site", expected, activations.len()));
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
            return Err(Error::missing(
                "a whole window of tokens",
                "the sample of the inputs; calibrate on a longer text",
            ));
        }
        Ok(Self { seen, weights, activations, through, want })
    }

    /// Returns the squared error of the module's output on the sample when its inputs are divided by `factors`, `[features]`, and its matrices are
    /// multiplied by them and compressed by their data-free methods. Errors if a matrix has no data-free method, or compression fails.
    pub fn loss(&self, factors: &[f32], cx: &Context) -> Result<f64> {
        cx.cancel.check()?;
        let folds = smoothed(self.seen.site, factors);
        let change = Transform::Scale(factors.to_vec()).input_change()?;
        let (mut ops, none) = (Vec::new(), StatSet::none());
        for (i, (w, consumer)) in self.weights.iter().zip(&self.seen.site.consumers).enumerate() {
            let method = self.seen.plain.get(i).copied().flatten();
            let method = method.ok_or_else(|| {
                let value = format!(
                    "for {}: its method has no data-free form, which the search compresses with",
                    consumer.weight
                );
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
