//! [`WithActivations`]: any method, with quantized activations.

use std::ops::Range;

use tersor_core::{
    Compressed, Context, DType, Error, Extent, Layout, Method, Prepared, Result, RowSource, StatNeeds, StatSet,
    TensorInfo,
};

use crate::{ActPlan, ActQuant, QuantizedInputs};

/// The method that compresses by another one and puts an activation quantizer in front of the result. The weights are those that the other
/// method finds for inputs that are not quantized.
pub struct WithActivations {
    act: ActPlan,
    method: Box<dyn Method>,
}

impl WithActivations {
    /// Puts a quantizer that needs no data in front of a method's results.
    pub fn new(act: ActQuant, method: Box<dyn Method>) -> Self {
        Self::planned(ActPlan::Ready(act), method)
    }

    /// Puts a quantizer whose scales are found on calibration data in front of a method's results.
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

struct Ready<'s> {
    act: ActQuant,
    /// Features of the statistics that the scales were found on; none where they needed none.
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
