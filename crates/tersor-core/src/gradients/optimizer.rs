//! [`Optimizer`]: rules that update parameters by their gradients.

use std::ops::Range;

use crate::{Exec, Result, TensorSink, TensorSource};

/// One trained tensor in one training step, with its gradient and the options of its update, as [`Params::each`] hands it to an
/// [`Optimizer`].
pub struct Param<'a> {
    /// The name of the trained tensor, the same in every step. An optimizer finds the tensor's state (such as moments) by it.
    pub name: &'a str,
    /// The values of the trained tensor, flat. The optimizer changes them in place.
    pub value: &'a mut [f32],
    /// The gradient of the loss with respect to each value of the trained tensor. [`Optimizer::step`] errors if it has another length than
    /// the values.
    pub grad: &'a [f32],
    /// Whether the optimizer's weight decay applies to the trained tensor; usually false for biases and norms.
    pub decay: bool,
    /// The factor by which the optimizer's learning rate is multiplied for the trained tensor; 1 for no change. It should be finite and at
    /// least 0; an optimizer may refuse other values in [`Optimizer::step`].
    pub rate: f32,
    /// The range of flat indices, counted from 0, of the values that this step trains. It must lie inside of the tensor; otherwise
    /// [`Optimizer::step`] errors or panics, depending on the optimizer. The other values do not change. Their optimizer state does not
    /// change either, except that quantized state may be rounded again.
    pub active: Range<usize>,
}

impl<'a> Param<'a> {
    /// Returns a parameter with weight decay, the optimizer's own learning rate (`rate` 1), and all values trained (`active` is
    /// `0..value.len()`). `grad` should be as long as `value`. Any length is accepted here, but [`Optimizer::step`] errors if it differs.
    pub fn new(name: &'a str, value: &'a mut [f32], grad: &'a [f32]) -> Self {
        let active = 0..value.len();
        Self { name, value, grad, decay: true, rate: 1.0, active }
    }
}

/// All trained tensors of a model in one training step. An optimizer may visit them several times in a step, for example to compute a norm
/// over all gradients first.
pub trait Params: Send {
    /// Calls `f` once for each trained tensor, always the same tensors in the same order. Stops at the first error of `f` and returns it.
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()>;
}

/// A rule that updates trained tensors by their gradients, such as Adam. It gets all tensors of a step together, so that it can clip the
/// gradients by their common norm.
///
/// ```
/// use tersor_core::gradients::{Optimizer, Param, Params};
/// use tersor_core::{Exec, Result, TensorSink, TensorSource};
///
/// /// Gradient descent with a fixed learning rate, which has no state.
/// struct Descent(f32);
///
/// impl Optimizer for Descent {
///     fn step(&mut self, _step: u64, all: &mut dyn Params, _exec: &Exec) -> Result<()> {
///         all.each(&mut |p: Param<'_>| {
///             p.value.iter_mut().zip(p.grad).for_each(|(v, g)| *v -= self.0 * p.rate * g);
///             Ok(())
///         })
///     }
///     fn save(&self, _: &mut dyn TensorSink) -> Result<()> {
///         Ok(())
///     }
///     fn load(&mut self, _: &dyn TensorSource) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// /// One tensor and its gradient.
/// struct One(Vec<f32>, Vec<f32>);
///
/// impl Params for One {
///     fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()> {
///         f(Param::new("w", &mut self.0, &self.1))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut w = One(vec![1.0, 2.0], vec![0.5, -1.0]);
/// Descent(2.0).step(1, &mut w, &Exec::new())?;
/// assert_eq!(w.0, [0.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub trait Optimizer: Send {
    /// Updates all trained tensors once. `step` is the number of the training step, counted from 1. Errors, with nothing changed, if a
    /// gradient is not finite where the tensor is trained ([`Param::active`]), if that range leaves the tensor, if a gradient has another
    /// length than its tensor, or if a tensor has another length than in earlier steps.
    fn step(&mut self, step: u64, all: &mut dyn Params, exec: &Exec) -> Result<()>;

    /// Writes the optimizer's state (such as moments) of every tensor, under names that begin with the tensor's name. Errors if the sink
    /// errors.
    fn save(&self, sink: &mut dyn TensorSink) -> Result<()>;

    /// Replaces the optimizer's state by one that [`save`](Self::save) wrote. Errors, with the state unchanged, if the saved state is
    /// invalid or was written by an optimizer of another kind.
    fn load(&mut self, source: &dyn TensorSource) -> Result<()>;
}
