//! [`Optimizer`]: rules that update parameters by their gradients.

use std::ops::Range;

use crate::{Exec, Result, TensorSink, TensorSource};

/// One trained tensor of a step, with its gradient.
pub struct Param<'a> {
    /// The name of the trained tensor, under which the optimizer stores its state.
    pub name: &'a str,
    /// The values of the trained tensor, which the optimizer changes.
    pub value: &'a mut [f32],
    /// The gradient of the loss with respect to the trained tensor, as long as the values.
    pub grad: &'a [f32],
    /// Whether weight decay applies to the trained tensor (not for biases and norms, as a rule).
    pub decay: bool,
    /// The factor on the optimizer's learning rate for the trained tensor.
    pub rate: f32,
    /// The elements of the trained tensor that this step changes; the others keep their values and optimizer state.
    pub active: Range<usize>,
}

impl<'a> Param<'a> {
    /// Returns a parameter whose elements are all trained, with weight decay and the optimizer's own learning rate.
    pub fn new(name: &'a str, value: &'a mut [f32], grad: &'a [f32]) -> Self {
        let active = 0..value.len();
        Self { name, value, grad, decay: true, rate: 1.0, active }
    }
}

/// The trained tensors of a step, as a collection that an optimizer can visit several times.
pub trait Params: Send {
    /// Calls `f` for each trained tensor, always in the same order. Errors with the first error of `f`.
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()>;
}

/// A rule that updates parameters by their gradients. It gets all parameters of a step together, so that it can bound a norm over them.
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
    /// Makes step number `step`, counted from 1, on all parameters. Errors, with nothing changed, if a gradient is not finite or has
    /// another length than its parameter, or if a parameter has another length than in earlier steps.
    fn step(&mut self, step: u64, all: &mut dyn Params, exec: &Exec) -> Result<()>;

    /// Writes the state of all parameters under their names. Errors if the sink errors.
    fn save(&self, sink: &mut dyn TensorSink) -> Result<()>;

    /// Replaces the state by one that [`save`](Self::save) wrote. Errors, with the state unchanged, if it is invalid or that of another
    /// optimizer.
    fn load(&mut self, source: &dyn TensorSource) -> Result<()>;
}
