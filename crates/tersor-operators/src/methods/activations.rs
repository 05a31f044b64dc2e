//! [`WithActivations`]: a method with quantized activations.

use std::ops::Range;

use tersor_core::{
    Compressed, Context, DType, Error, Extent, Layout, Method, Prepared, Result, RowSource, StatNeeds, StatSet,
    TensorInfo,
};

use crate::{ActPlan, ActQuant, QuantizedInputs};

/// The [`Method`] that compresses a matrix by another method and puts a quantizer of activations in front of the result
/// ([`QuantizedInputs`]). The other method sees the statistics of inputs that are not quantized. The tensors of the other method are stored
/// under `op`, static scales as `activation_scales` (f32, `[1]` or `[features]`). Compressing errors if the other method errors, or if
/// [`QuantizedInputs::new`] errors, for example because the quantizer has scales for another number of features than the matrix has
/// columns. Compressing also errors if static scales were computed from statistics of another number of features.
///
/// ```
/// use tersor_operators::*;
/// # fn main() -> Result<()> {
/// let method = WithActivations::new(ActQuant::per_token(8)?, Box::new(Cast::new(DType::F16)?));
/// let (cx, w) = (Context::new(), [0.5f32, 1.5]);
/// let done = method.prepare(&StatSet::none(), &cx)?.compress(&MatView::new(&w, [1, 2])?, 0..1, &cx)?;
/// assert_eq!(done.op.spec().kind, QuantizedInputs::KIND);
/// # Ok(())
/// # }
/// ```
pub struct WithActivations {
    act: ActPlan,
    method: Box<dyn Method>,
}

impl WithActivations {
    /// Returns the method that compresses by `method` and quantizes inputs by `act`, which needs no calibration. Does not fail. Compressing
    /// a matrix errors later if `act` has scales for another number of features than the matrix has columns, or if `act` cuts tokens into a
    /// number of equal runs that does not divide the columns.
    pub fn new(act: ActQuant, method: Box<dyn Method>) -> Self {
        Self::planned(ActPlan::Ready(act), method)
    }

    /// Returns the method that compresses by `method` and quantizes inputs as `act` plans: its static scales are computed from the
    /// statistics that [`Method::prepare`] receives. Does not fail; [`Method::prepare`] errors if the statistics lack what
    /// [`ActPlan::needs`] names.
    pub fn planned(act: ActPlan, method: Box<dyn Method>) -> Self {
        Self { act, method }
    }
}

impl Method for WithActivations {
    fn name(&self) -> String {
        format!("{} a{}", self.method.name(), self.act.bits().get())
    }
    fn needs(&self) -> StatNeeds {
        self.method.needs().union(self.act.needs())
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        let mut layout = self.method.layout(shape)?.nested("op");
        let scales = self.act.scales(shape[1]);
        if scales > 0 {
            let info = TensorInfo { dtype: DType::F32, shape: vec![scales] };
            layout.tensors.push(("activation_scales".into(), info));
        }
        Ok(layout)
    }
    fn extent(&self) -> Extent {
        self.method.extent()
    }
    fn plain(&self) -> Option<&dyn Method> {
        self.method.plain()
    }
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let features = self.act.needs().any_data().then(|| stats.features());
        Ok(Box::new(Ready { act: self.act.ready(stats)?, features, prepared: self.method.prepare(stats, cx)? }))
    }
}

/// The method and the quantizer, prepared for a site.
struct Ready<'s> {
    act: ActQuant,
    /// Number of features of the statistics that the scales were computed from; `None` if they need none.
    features: Option<usize>,
    prepared: Box<dyn Prepared + 's>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let cols = w.shape()[1];
        if let Some(found) = self.features.filter(|n| *n != cols) {
            return Err(Error::shape("features of the statistics", cols, found));
        }
        self.act.check(cols)?;
        let done = self.prepared.compress(w, rows, cx)?;
        Ok(Compressed { op: Box::new(QuantizedInputs::new(self.act.clone(), done.op)?), report: done.report })
    }
}
