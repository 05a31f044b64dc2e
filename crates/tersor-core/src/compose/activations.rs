//! A method whose results quantize their inputs.

use std::ops::Range;

use crate::compose::QuantizedInputs;
use crate::*;

/// Compresses by another method, and lets an activation quantizer in front of what comes out. The codes of the weights are those that the
/// other method finds for inputs as they are.
pub struct WithActivations {
    act: ActQuant,
    method: Box<dyn Method>,
}

impl WithActivations {
    /// Of a quantizer and a method.
    pub fn new(act: ActQuant, method: Box<dyn Method>) -> Self {
        Self { act, method }
    }
}

impl Method for WithActivations {
    fn name(&self) -> String {
        format!("{} a{}", self.method.name(), self.act.bits().get())
    }
    fn needs(&self) -> StatNeeds {
        self.method.needs()
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        Ok(self.method.layout(shape)?.nested("op"))
    }
    fn prepare<'s>(&'s self, stats: Option<&'s StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready { act: self.act, prepared: self.method.prepare(stats, cx)? }))
    }
}

struct Ready<'s> {
    act: ActQuant,
    prepared: Box<dyn Prepared + 's>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let done = self.prepared.compress(w, rows, cx)?;
        Ok(Compressed { op: Box::new(QuantizedInputs::new(self.act, done.op)), report: done.report })
    }
}
