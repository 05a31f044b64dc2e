//! [`Optimizer`]: what changes parameters by their gradients.

use std::ops::Range;

use crate::{Exec, Result, TensorSink, TensorSource};

/// A trained tensor with its gradient.
pub struct Param<'a> {
    /// The name under which the optimizer keeps its state.
    pub name: &'a str,
    /// The values, which the optimizer changes.
    pub value: &'a mut [f32],
    /// The gradient of the loss, as long as the values.
    pub grad: &'a [f32],
    /// Whether weight decay applies (not to biases and norms, as a rule).
    pub decay: bool,
    /// The learning rate of this tensor over that of the optimizer.
    pub rate: f32,
    /// The elements that this step trains; the others keep their value and their state.
    pub active: Range<usize>,
}

impl<'a> Param<'a> {
    /// Returns a parameter that is trained as a whole, with weight decay and the optimizer's own learning rate.
    pub fn new(name: &'a str, value: &'a mut [f32], grad: &'a [f32]) -> Self {
        let active = 0..value.len();
        Self { name, value, grad, decay: true, rate: 1.0, active }
    }
}

/// The parameters of a step.
pub trait Params: Send {
    /// Calls `f` for each parameter, always in the same order. An optimizer may call it several times a step. Errors at the first error of `f`.
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()>;
}

/// A rule that changes parameters by their gradients. It sees all parameters of a step, so that it can bound a norm over them.
pub trait Optimizer: Send {
    /// Makes step number `step`, counted from 1. Errors if a gradient is not finite, has another length than its parameter, or the parameter
    /// has another length than in earlier steps; nothing is changed then.
    fn step(&mut self, step: u64, all: &mut dyn Params, exec: &Exec) -> Result<()>;

    /// Writes the state of all parameters under their names. Errors if the sink does.
    fn save(&self, sink: &mut dyn TensorSink) -> Result<()>;

    /// Replaces the state by what [`save`](Self::save) wrote. Errors if it is broken or of another optimizer; the state is unchanged then.
    fn load(&mut self, source: &dyn TensorSource) -> Result<()>;
}
