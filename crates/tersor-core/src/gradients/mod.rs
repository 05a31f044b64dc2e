//! Functions with gradients, and optimizers, independent of any framework.
//!
//! A loss or a layer implements [`Differentiable`]: a forward pass that returns what the backward pass needs, and a backward pass that adds
//! gradients. It is written once for f32 and f64; [`check_gradients`](check::check_gradients) compares its gradients with central differences
//! in f64.
//!
//! ```
//! use tersor_core::gradients::{Differentiable, Pass, Real, Tensor, check, gradients};
//! use tersor_core::{Exec, Result};
//!
//! /// `y = Σ x²`.
//! struct SumOfSquares;
//!
//! impl<T: Real> Differentiable<T> for SumOfSquares {
//!     type Saved = ();
//!     fn shape(&self, _: &[&[usize]]) -> Result<Vec<usize>> {
//!         Ok(vec![])
//!     }
//!     fn forward(&self, x: &[Tensor<'_, T>], y: &mut [T], _: &Pass<'_>) -> Result<()> {
//!         y[0] = x[0].values().iter().map(|v| *v * *v).sum();
//!         Ok(())
//!     }
//!     fn backward(
//!         &self,
//!         x: &[Tensor<'_, T>],
//!         _: &(),
//!         dy: &[T],
//!         dx: &mut [Option<&mut [T]>],
//!         _: &Pass<'_>,
//!     ) -> Result<()> {
//!         if let Some(dx) = &mut dx[0] {
//!             dx.iter_mut().zip(&*x[0].values()).for_each(|(d, v)| *d += dy[0] * (*v + *v));
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let exec = Exec::new();
//! let x = [1f32, -3.0];
//! let (y, dx) = gradients(&SumOfSquares, &[Tensor::new(&x, &[2])?], &Pass::new(&exec))?;
//! assert_eq!((y, &dx[0]), (vec![10.0], &vec![2.0, -6.0]));
//! check::check_gradients(&SumOfSquares, &[(&[0.3, -2.0, 7.0], &[3])], 1e-6)?;
//! # Ok(())
//! # }
//! ```

pub mod check;
mod optimizer;
mod tensor;

use std::any::Any;

use rand_chacha::ChaCha8Rng;
pub use tersor_kernels::Real;

pub use optimizer::{Optimizer, Param, Params};
pub use tensor::Tensor;

use crate::{Error, Exec, Result};

/// The environment of one forward or backward pass: the instruction set, threads and scratch memory, the seed of random numbers, and the
/// number of the training step. Random numbers depend on both the seed and the step. A backward pass gets the same values as its forward
/// pass.
///
/// ```
/// use rand_core::RngCore;
/// use tersor_core::{Exec, gradients::Pass};
/// let exec = Exec::serial();
/// let pass = Pass { seed: 1, step: 3, ..Pass::new(&exec) };
/// // A backward pass draws the same numbers as its forward pass.
/// assert_eq!(pass.stream("dropout").next_u64(), pass.stream("dropout").next_u64());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Instruction set, thread pool and scratch memory of the pass.
    pub exec: &'a Exec,
    /// The seed of the random numbers of the pass (for dropout, stochastic rounding); any value.
    pub seed: u64,
    /// The number of the training step, as the caller counts; any value. Random numbers differ between steps. [`Pass::new`] sets it to 0.
    pub step: u64,
}

impl<'a> Pass<'a> {
    /// Returns a pass that runs on `exec`, with seed 0 at step 0.
    pub fn new(exec: &'a Exec) -> Self {
        Self { exec, seed: 0, step: 0 }
    }

    /// Returns a random number generator whose numbers depend on the seed, the step and `name` alone: each call with the same name starts
    /// anew, so that a backward pass draws the same numbers as its forward pass.
    pub fn stream(&self, name: &str) -> ChaCha8Rng {
        crate::context::stream(self.seed, self.step, name)
    }
}

/// A function of tensors with a gradient, computed in `T` (f32 or f64): a loss, a layer, or a quantizer with a surrogate gradient. Labels
/// and constants are fields of the implementing type. A tensor that gets no gradient, such as the output of a teacher, is an input whose
/// gradient is not requested. The [module](self) has an example.
pub trait Differentiable<T: Real = f32>: Send + Sync {
    /// The values of the forward pass that the backward pass needs; `()` if it needs none.
    type Saved: Send + 'static;

    /// Returns the shape of the output for inputs of the shapes `x`, one for each input; `[]` for a loss, whose output is a single value.
    /// Errors if the number of inputs or their shapes do not suit the function.
    fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>>;

    /// Writes the output for the inputs `x` into `y`, row-major, and returns the values to save for the backward pass. The caller
    /// guarantees that `y` has as many elements as [`shape`](Self::shape) says; its former content is to be overwritten. Errors if the
    /// shapes do not match or a value is not finite.
    fn forward(&self, x: &[Tensor<'_, T>], y: &mut [T], pass: &Pass<'_>) -> Result<Self::Saved>;

    /// Adds `dyᵀ ∂y/∂x[i]` to `dx[i]` for each input whose gradient is requested (`Some`); None is skipped. `dy` is the gradient of the
    /// output, as long as the output; `dx` has an entry for each input, as long as the input. `x`, `saved` and `pass` are those of the
    /// forward pass. Errors if the shapes do not match.
    fn backward(
        &self,
        x: &[Tensor<'_, T>],
        saved: &Self::Saved,
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        pass: &Pass<'_>,
    ) -> Result<()>;
}

/// [`Differentiable`] as an object-safe trait, for lists of different functions, such as losses. Every `Differentiable` implements it; it
/// is not meant to be implemented otherwise.
pub trait DynDifferentiable<T: Real = f32>: Send + Sync {
    /// Returns the shape of the output for inputs of the shapes `x`, one for each input; `[]` for a loss, whose output is a single value.
    /// Errors if the number of inputs or their shapes do not suit the function.
    fn output_shape(&self, x: &[&[usize]]) -> Result<Vec<usize>>;

    /// Writes the output for the inputs `x` into `y`, row-major, and returns the values to save for the backward pass, in a box; see
    /// [`Differentiable::forward`]. Errors if the shapes do not match or a value is not finite.
    fn forward_dyn(&self, x: &[Tensor<'_, T>], y: &mut [T], pass: &Pass<'_>) -> Result<Box<dyn Any + Send>>;

    /// Adds the gradient of each input whose gradient is requested (`Some`) to its entry in `dx`; see [`Differentiable::backward`]. `saved`
    /// is what `forward_dyn` returned. Errors if the shapes do not match or `saved` came from a function of another type.
    fn backward_dyn(
        &self,
        x: &[Tensor<'_, T>],
        saved: &(dyn Any + Send),
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        pass: &Pass<'_>,
    ) -> Result<()>;
}

impl<T: Real, D: Differentiable<T>> DynDifferentiable<T> for D {
    fn output_shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
        self.shape(x)
    }
    fn forward_dyn(&self, x: &[Tensor<'_, T>], y: &mut [T], pass: &Pass<'_>) -> Result<Box<dyn Any + Send>> {
        Ok(Box::new(self.forward(x, y, pass)?))
    }
    fn backward_dyn(
        &self,
        x: &[Tensor<'_, T>],
        saved: &(dyn Any + Send),
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        pass: &Pass<'_>,
    ) -> Result<()> {
        let saved = saved.downcast_ref::<D::Saved>().ok_or_else(|| Error::Unsupported {
            what: "saved values of a backward pass",
            value: "from a function of another type; pass what `forward_dyn` of this function returned".into(),
        })?;
        self.backward(x, saved, dy, dx, pass)
    }
}

/// Runs `function` on the inputs `x` forward and backward. Returns its output, row-major, and the gradients of the sum of its outputs (for
/// a loss, the gradients of the loss): one vector for each input, row-major, as long as the input. Errors if the function does, usually
/// because shapes do not match or a value is not finite, or if the size of the output overflows.
pub fn gradients<T: Real>(
    function: &dyn DynDifferentiable<T>,
    x: &[Tensor<'_, T>],
    pass: &Pass<'_>,
) -> Result<(Vec<T>, Vec<Vec<T>>)> {
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let mut y = vec![T::zero(); elements(&function.output_shape(&shapes)?)?];
    let saved = function.forward_dyn(x, &mut y, pass)?;
    let mut dx: Vec<Vec<T>> = x.iter().map(|x| vec![T::zero(); x.len()]).collect();
    let mut wanted: Vec<Option<&mut [T]>> = dx.iter_mut().map(|d| Some(&mut d[..])).collect();
    function.backward_dyn(x, &*saved, &vec![T::one(); y.len()], &mut wanted, pass)?;
    Ok((y, dx))
}

/// Returns the number of elements of a shape; 1 for `[]`. Errors if it exceeds the address space.
fn elements(shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    product.ok_or_else(|| Error::Overflow { what: format!("a tensor of shape {shape:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::RngCore;

    /// `y = a b`, elementwise; keeps nothing.
    struct Product;

    impl<T: Real> Differentiable<T> for Product {
        type Saved = u8;
        fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
            if x[0] == x[1] { Ok(x[0].to_vec()) } else { Err(Error::shape("factor", x[0], x[1])) }
        }
        fn forward(&self, x: &[Tensor<'_, T>], y: &mut [T], _: &Pass<'_>) -> Result<u8> {
            let (a, b) = (x[0].values(), x[1].values());
            y.iter_mut().zip(a.iter().zip(&*b)).for_each(|(y, (a, b))| *y = *a * *b);
            Ok(7)
        }
        fn backward(
            &self,
            x: &[Tensor<'_, T>],
            saved: &u8,
            dy: &[T],
            dx: &mut [Option<&mut [T]>],
            _: &Pass<'_>,
        ) -> Result<()> {
            assert_eq!(*saved, 7);
            for (dx, other) in dx.iter_mut().zip([&x[1], &x[0]]) {
                let Some(dx) = dx else { continue };
                dx.iter_mut().zip(dy).zip(&*other.values()).for_each(|((d, dy), v)| *d += *dy * *v);
            }
            Ok(())
        }
    }

    #[test]
    fn gradients_of_a_product_and_a_constant_factor() {
        let exec = Exec::serial();
        let pass = Pass::new(&exec);
        let (a, b) = ([1f32, 2.0], [3f32, 5.0]);
        let x = [Tensor::new(&a, &[2]).unwrap(), Tensor::new(&b, &[2]).unwrap()];
        let (y, dx) = gradients(&Product, &x, &pass).unwrap();
        assert_eq!((y, dx), (vec![3.0, 10.0], vec![b.to_vec(), a.to_vec()]));
        // Gradients add to what is there, and a factor without one is a constant.
        let mut da = vec![1f32; 2];
        Product.backward(&x, &7, &[1.0, 10.0], &mut [Some(&mut da), None], &pass).unwrap();
        assert_eq!(da, [4.0, 51.0]);
        let wrong = [Tensor::new(&a, &[2]).unwrap(), Tensor::new(&b, &[1, 2]).unwrap()];
        assert!(gradients(&Product, &wrong, &pass).is_err());
        let of_another: Box<dyn Any + Send> = Box::new(7u16);
        let found = Product.backward_dyn(&x, &*of_another, &[1.0, 1.0], &mut [None, None], &pass);
        assert!(matches!(found, Err(Error::Unsupported { .. })));
    }

    #[test]
    fn streams_depend_on_seed_step_and_name() {
        let exec = Exec::serial();
        let first = |seed, step, name: &str| Pass { seed, step, ..Pass::new(&exec) }.stream(name).next_u64();
        let base = first(1, 2, "a");
        assert_eq!(base, first(1, 2, "a"));
        for other in [first(0, 2, "a"), first(1, 3, "a"), first(2, 1, "a"), first(1, 2, "b")] {
            assert_ne!(base, other);
        }
    }
}
