//! A method whose results quantize their inputs.

use std::ops::Range;

use crate::compose::QuantizedInputs;
use crate::*;

/// Compresses by another method, and lets an activation quantizer in front of what comes out. The codes of the weights are those that the
/// other method finds for inputs as they are.
pub struct WithActivations {
    act: ActPlan,
    method: Box<dyn Method>,
}

impl WithActivations {
    /// Of a quantizer and a method.
    pub fn new(act: ActQuant, method: Box<dyn Method>) -> Self {
        Self::planned(ActPlan::Ready(act), method)
    }

    /// Of a quantizer whose scales are found on what flows in, and a method.
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
    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        let own = self.method.needs().any_data().then_some(stats).flatten();
        Ok(Box::new(Ready { act: self.act.ready(stats)?, prepared: self.method.prepare(own, cx)? }))
    }
}

struct Ready<'s> {
    act: ActQuant,
    prepared: Box<dyn Prepared + 's>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let done = self.prepared.compress(w, rows, cx)?;
        Ok(Compressed { op: Box::new(QuantizedInputs::new(self.act.clone(), done.op)), report: done.report })
    }
}
