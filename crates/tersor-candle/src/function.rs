//! [`Function`]: a differentiable function of Tersor as a candle operation.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor, WithDType};
use tersor_core::Exec;
use tersor_core::gradients::{self, DynDifferentiable, Pass, Real};

use crate::error::{candle, check_cpu};
use crate::storage::{on_cpu, span};
use crate::{Error, Result};

/// The name of an input in messages.
const INPUT: &str = "an input of a function";

/// A [`Differentiable`](gradients::Differentiable) function (a loss, a layer, a quantizer with a surrogate gradient) that is applied to
/// candle tensors, with gradients. It is computed in `T`, f32 or f64.
///
/// Inputs have elements of the type `T`, f16 or bf16; the output has elements of the type `T`. Gradients have the types of their inputs,
/// and only those of inputs that depend on variables are computed. A gradient cannot be differentiated again: candle's backward pass
/// errors. Tensors must be on the CPU.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use tersor_candle::Function;
/// use tersor_candle::core::{Result, gradients::{Differentiable, Pass, Tensor as View}};
///
/// /// `y = Σ x²`.
/// struct SumOfSquares;
///
/// impl Differentiable for SumOfSquares {
///     type Saved = ();
///     fn shape(&self, _: &[&[usize]]) -> Result<Vec<usize>> {
///         Ok(vec![])
///     }
///     fn forward(&self, x: &[View<'_>], y: &mut [f32], _: &Pass<'_>) -> Result<()> {
///         y[0] = x[0].values().iter().map(|v| v * v).sum();
///         Ok(())
///     }
///     fn backward(&self, x: &[View<'_>], _: &(), dy: &[f32], dx: &mut [Option<&mut [f32]>], _: &Pass<'_>) -> Result<()> {
///         if let Some(dx) = &mut dx[0] {
///             dx.iter_mut().zip(&*x[0].values()).for_each(|(d, v)| *d += 2.0 * dy[0] * v);
///         }
///         Ok(())
///     }
/// }
///
/// # fn main() -> candle_core::Result<()> {
/// let x = Var::new(&[1f32, -3.0], &Device::Cpu)?;
/// let loss = Function::new(SumOfSquares).apply(&[&x])?;
/// assert_eq!(loss.to_scalar::<f32>()?, 10.0);
/// assert_eq!(loss.backward()?.get(&x).unwrap().to_vec1::<f32>()?, [2.0, -6.0]);
/// # Ok(())
/// # }
/// ```
pub struct Function<T: Real = f32> {
    function: Arc<dyn DynDifferentiable<T>>,
    exec: Exec,
    seed: u64,
    step: u64,
}

impl<T: Real> Clone for Function<T> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), exec: self.exec.clone(), seed: self.seed, step: self.step }
    }
}

impl<T: Real + WithDType> Function<T> {
    /// Returns the function as a candle operation with seed 0 at step 0. It runs in the rayon pool of the calling thread, with the
    /// processor's best instruction set.
    pub fn new(function: impl DynDifferentiable<T> + 'static) -> Self {
        Self::shared(Arc::new(function))
    }

    /// Returns a shared function as a candle operation; see [`Function::new`].
    pub fn shared(function: Arc<dyn DynDifferentiable<T>>) -> Self {
        Self { function, exec: Exec::new(), seed: 0, step: 0 }
    }

    /// Returns the operation that runs on `exec`: its threads, its instruction set and its scratch memory.
    pub fn with_exec(self, exec: Exec) -> Self {
        Self { exec, ..self }
    }

    /// Returns the operation with the seed and the step of a [`Pass`], on which random numbers of the function depend. A backward pass uses
    /// those of its forward pass.
    pub fn at(self, seed: u64, step: u64) -> Self {
        Self { seed, step, ..self }
    }

    /// Returns the output of the function for `inputs`, row-major, with the shape that the function states; a loss has the shape `[]`.
    /// Errors if there is no input, if an input has another type or is not on the CPU, or if the function errors, usually because shapes do
    /// not match or a value is not finite.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        for x in inputs {
            check_cpu(INPUT, x.device())?;
            if x.dtype() != T::DTYPE && !matches!(x.dtype(), DType::F16 | DType::BF16) {
                let expected = if T::DTYPE == DType::F64 { "F64, F16 or BF16" } else { "F32, F16 or BF16" };
                return Err(Error::DType { what: INPUT, expected, found: x.dtype() });
            }
        }
        if inputs.is_empty() {
            return Err(tersor_core::Error::shape("inputs of a function", "at least 1", 0).into());
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.dims().to_vec()).collect();
        let all: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let op = Applied {
            out: self.function.output_shape(&all)?,
            wanted: inputs.iter().map(|x| x.track_op()).collect(),
            shapes,
            function: self.clone(),
            saved: Mutex::new(None),
        };
        let whole = inputs.iter().map(|x| x.contiguous()).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(match &whole[..] {
            [a] => a.apply_op1(op)?,
            [a, b] => a.apply_op2(b, op)?,
            [a, b, c] => a.apply_op3(b, c, op)?,
            // Candle has no operations of more inputs: they are one after the other in one tensor.
            more => {
                let flat = |x: &Tensor| x.to_dtype(T::DTYPE)?.flatten_all();
                Tensor::cat(&more.iter().map(flat).collect::<candle_core::Result<Vec<_>>>()?, 0)?.apply_op1(op)?
            }
        })
    }
}

/// One application of a function, which is a node of candle's graph.
struct Applied<T: Real> {
    function: Function<T>,
    /// The shapes of the inputs.
    shapes: Vec<Vec<usize>>,
    /// The shape of the output.
    out: Vec<usize>,
    /// Whether each input depends on a variable.
    wanted: Vec<bool>,
    /// What the forward pass saved for the backward pass.
    saved: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<T: Real + WithDType> Applied<T> {
    fn pass(&self) -> Pass<'_> {
        Pass { exec: &self.function.exec, seed: self.function.seed, step: self.function.step }
    }

    /// Returns the number of elements of each input.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.shapes.iter().map(|shape| shape.iter().product())
    }

    /// Returns the inputs: each from a storage of its own, or all of them, one after the other, from one storage.
    fn views<'a>(&'a self, stored: &[(&'a CpuStorage, &'a Layout)]) -> Result<Vec<gradients::Tensor<'a, T>>> {
        let mut views = Vec::with_capacity(self.shapes.len());
        if let ([(stored, layout)], true) = (stored, self.shapes.len() > 1) {
            let mut rest = &T::cpu_storage_as_slice(stored)?[span(INPUT, layout)?];
            for (shape, len) in self.shapes.iter().zip(self.lengths()) {
                let (own, after) = rest.split_at_checked(len).unwrap_or((&[], &[]));
                rest = after;
                views.push(gradients::Tensor::new(own, shape)?);
            }
            return Ok(views);
        }
        for ((stored, layout), shape) in stored.iter().zip(&self.shapes) {
            let at = span(INPUT, layout)?;
            views.push(match stored {
                CpuStorage::F16(v) => gradients::Tensor::f16(&v[at], shape)?,
                CpuStorage::BF16(v) => gradients::Tensor::bf16(&v[at], shape)?,
                own => gradients::Tensor::new(&T::cpu_storage_as_slice(own)?[at], shape)?,
            });
        }
        Ok(views)
    }

    fn forward(&self, stored: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let shape = Shape::from(self.out.as_slice());
        let n = self.out.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let n = n.ok_or_else(|| tersor_core::Error::Overflow { what: format!("a tensor of shape {:?}", self.out) })?;
        let mut y = vec![T::zero(); n];
        let saved = self.function.function.forward_dyn(&self.views(stored)?, &mut y, &self.pass())?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok((T::to_cpu_storage_owned(y), shape))
    }

    /// Returns the gradient of each input that depends on a variable, flat.
    fn gradients(&self, inputs: &[&Tensor], dy: &Tensor) -> Result<Vec<Option<Vec<T>>>> {
        let guards: Vec<_> = inputs.iter().map(|x| x.storage_and_layout()).collect();
        let mut stored = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            stored.push((on_cpu(INPUT, storage)?, *layout));
        }
        let dy = dy.contiguous()?;
        let (storage, layout) = dy.storage_and_layout();
        let dy = &T::cpu_storage_as_slice(on_cpu(INPUT, &storage)?)?[span(INPUT, layout)?];
        let lengths = self.lengths().zip(&self.wanted);
        let mut found: Vec<Option<Vec<T>>> = lengths.map(|(n, wanted)| wanted.then(|| vec![T::zero(); n])).collect();
        let mut dx: Vec<Option<&mut [T]>> = found.iter_mut().map(|d| d.as_deref_mut()).collect();
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = saved.as_deref().ok_or_else(|| tersor_core::Error::missing("a forward pass", "this function"))?;
        self.function.function.backward_dyn(&self.views(&stored)?, saved, dy, &mut dx, &self.pass())?;
        Ok(found)
    }

    fn backward(&self, inputs: &[&Tensor], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let found = self.gradients(inputs, dy)?;
        let from = depending_on(inputs)?;
        let each = found.into_iter().zip(inputs).map(|(dx, x)| dx.map(|dx| gradient(dx, x, &from, dy)).transpose());
        each.collect()
    }
}

/// Returns a tensor that depends on all inputs in candle's graph; its values have no meaning.
fn depending_on(inputs: &[&Tensor]) -> Result<Tensor> {
    let first = inputs.first().ok_or_else(|| tersor_core::Error::shape("inputs of a function", "at least 1", 0))?;
    let mut all = (*first).clone();
    for x in &inputs[1..] {
        // Of floats: candle does not look at what integers depend on.
        let nothing = Mutex::new(Some(CpuStorage::F32(Vec::new())));
        all = all.apply_op2(x, Gradient { values: nothing, shape: Shape::from(0) })?;
    }
    Ok(all)
}

/// Returns the gradient `dx`, row-major, with the shape and the type of the input `x`. In candle's graph it depends on `from` and `dy`, so
/// that its own gradient is an error.
fn gradient<T: WithDType>(dx: Vec<T>, x: &Tensor, from: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let values = Mutex::new(Some(T::to_cpu_storage_owned(dx)));
    Ok(from.apply_op2(dy, Gradient { values, shape: x.shape().clone() })?.to_dtype(x.dtype())?)
}

/// A gradient that was computed before. Its own gradient is an error of candle, not zero.
struct Gradient {
    values: Mutex<Option<CpuStorage>>,
    shape: Shape,
}

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "gradient of a Tersor function"
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner).take();
        let values = values.ok_or_else(|| candle(tersor_core::Error::missing("the gradient", "its function")))?;
        Ok((values, self.shape.clone()))
    }
}

/// The name of the operation in candle's messages.
const NAME: &str = "Tersor function";

impl<T: Real + WithDType> CustomOp1 for Applied<T> {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, a: &CpuStorage, at: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(&[(a, at)])?)
    }
    fn bwd(&self, a: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if self.shapes.len() > 1 {
            let found = self.gradients(&[a], dy)?.into_iter().zip(self.lengths());
            let flat = found.flat_map(|(dx, n)| dx.unwrap_or_else(|| vec![T::zero(); n])).collect();
            return Ok(Some(gradient::<T>(flat, a, a, dy)?));
        }
        Ok(self.backward(&[a], dy)?.pop().flatten())
    }
}

impl<T: Real + WithDType> CustomOp2 for Applied<T> {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        at: &Layout,
        b: &CpuStorage,
        bt: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(&[(a, at), (b, bt)])?)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dx = self.backward(&[a, b], dy)?.into_iter();
        Ok((dx.next().flatten(), dx.next().flatten()))
    }
}

/// The gradients of three inputs.
type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl<T: Real + WithDType> CustomOp3 for Applied<T> {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        at: &Layout,
        b: &CpuStorage,
        bt: &Layout,
        c: &CpuStorage,
        ct: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(&[(a, at), (b, bt), (c, ct)])?)
    }
    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Three> {
        let mut dx = self.backward(&[a, b, c], dy)?.into_iter();
        Ok((dx.next().flatten(), dx.next().flatten(), dx.next().flatten()))
    }
}
