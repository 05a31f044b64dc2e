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
    /// Returns a trial of smoothing factors, by which the inputs of the site `seen` (an input and the matrices that read it) are divided.
    /// `weights` are the original matrices, one for each consumer of the site, in the same order. With them the call computes the output of
    /// the site's module on the sample of inputs in `seen`; [`Trial::loss`] compares other outputs to it. The output is that of attention
    /// for q, k and v, the input of the down projection for gate and up, and the product with the inputs for any other matrix. If `through`
    /// is true, the output of attention is taken after the output projection, and the output for gate and up after the down projection.
    ///
    /// `activations` holds the quantizers of the inputs in [`Trial::loss`]: one for each matrix, one for all of them, or none to leave
    /// inputs in f32. Errors if `activations` has another length, a weight is not finite, the sample is empty, or the module cannot be
    /// computed.
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

    /// Returns the squared difference between the output of the site's module (of attention for q, k and v, for example) under the
    /// smoothing factors `factors`, `[features]`, and the output that [`Trial::new`] computed with the original weights, summed over all
    /// sampled tokens and output features. The inputs are divided by the factors and then quantized, if [`Trial::new`] received quantizers.
    /// The columns of the matrices are multiplied by the factors, and each matrix is then compressed by its data-free method (the form of
    /// its compression method that needs no calibration data). `cx` has the instruction set and threads to compute with. Errors if a matrix
    /// has no data-free method, the number of factors is not that of the features, compressing errors, or `cx` is cancelled.
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
