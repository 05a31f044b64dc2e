//! Comparison of gradients with central differences.

use tersor_kernels::Real;

use super::{DynDifferentiable, Pass, Tensor, elements};
use crate::{Error, Exec, Result};

/// The relative step of a difference: near the cube root of the rounding error of f64, where truncation and rounding errors balance.
const STEP: f64 = 6e-6;

/// Tests the gradients of `function` in f64 against central differences, in every element of every input. `inputs` has the values
/// (row-major) and the shape of each input. The step of a difference is 6e-6 times the larger of 1 and the element's magnitude. A function
/// with several outputs is reduced to one number by a sum with fixed, unequal weights. The [module](super) has an example.
///
/// Errors, naming input and element, at the first gradient `a` and difference `d` for which `|a - d| <= tolerance * max(1, |a|, |d|)` does
/// not hold or that are not finite; if an input has another number of values than its shape; and if the function errors.
///
/// A function that rounds is constant between steps, so that its differences do not show its surrogate gradient (such as a straight-through
/// estimate). For such functions see [`check_surrogate`].
pub fn check_gradients(
    function: &dyn DynDifferentiable<f64>,
    inputs: &[(&[f64], &[usize])],
    tolerance: f64,
) -> Result<()> {
    check_surrogate(function, function, inputs, tolerance)
}

/// Tests the gradients of `surrogate`, a function that rounds and has a surrogate gradient (such as a straight-through estimate), against
/// central differences of `smooth`, in f64 and in every element of every input. `smooth` is the same function with each rounding replaced
/// by adding the constant `rounded - original`, computed once at the given inputs. It must accept the same input shapes and return the same
/// output shape: its output is written into a buffer of the size of the output of `surrogate`, so that another size leads to an error, a
/// panic or a wrong comparison, depending on `smooth`.
///
/// `inputs` has the values (row-major) and the shape of each input. The step of a difference is 6e-6 times the larger of 1 and the
/// element's magnitude. Several outputs are reduced to one number by a sum with fixed, unequal weights.
///
/// Errors, naming input and element, at the first gradient `a` and difference `d` that are not finite, or for which `|a - d|` is above
/// `tolerance * max(1, |a|, |d|)`. Errors if an input has another number of values than its shape, or if `surrogate` or `smooth` errors.
pub fn check_surrogate(
    surrogate: &dyn DynDifferentiable<f64>,
    smooth: &dyn DynDifferentiable<f64>,
    inputs: &[(&[f64], &[usize])],
    tolerance: f64,
) -> Result<()> {
    let exec = Exec::serial();
    let pass = Pass::new(&exec);
    let shapes: Vec<&[usize]> = inputs.iter().map(|(_, shape)| *shape).collect();
    let outputs = elements(&surrogate.output_shape(&shapes)?)?;
    let weights: Vec<f64> =
        (0..outputs).map(|i| if outputs == 1 { 1.0 } else { 1.0 + (i as f64).sin() / 2.0 }).collect();
    let mut values: Vec<Vec<f64>> = inputs.iter().map(|(values, _)| values.to_vec()).collect();
    let mut found: Vec<Vec<f64>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
    {
        let x = tensors(&values, &shapes)?;
        let mut y = vec![0.0; outputs];
        let saved = surrogate.forward_dyn(&x, &mut y, &pass)?;
        let mut dx: Vec<Option<&mut [f64]>> = found.iter_mut().map(|d| Some(&mut d[..])).collect();
        surrogate.backward_dyn(&x, &*saved, &weights, &mut dx, &pass)?;
    }
    let sum = |values: &[Vec<f64>]| -> Result<f64> {
        let mut y = vec![0.0; outputs];
        smooth.forward_dyn(&tensors(values, &shapes)?, &mut y, &pass)?;
        Ok(y.iter().zip(&weights).map(|(y, w)| y * w).sum())
    };
    for (input, gradient) in found.iter().enumerate() {
        for (at, gradient) in gradient.iter().enumerate() {
            let before = values[input][at];
            let step = STEP * before.abs().max(1.0);
            let mut side = |value: f64| {
                values[input][at] = value;
                sum(&values)
            };
            let (high, low) = (side(before + step)?, side(before - step)?);
            values[input][at] = before;
            let difference = (high - low) / ((before + step) - (before - step));
            let limit = tolerance * gradient.abs().max(difference.abs()).max(1.0);
            let close = (gradient - difference).abs() <= limit;
            if !(close && gradient.is_finite() && difference.is_finite()) {
                return Err(Error::Numerical(format!(
                    "gradient of input {input} at element {at}: {gradient:e}, where central differences give {difference:e}"
                )));
            }
        }
    }
    Ok(())
}

fn tensors<'a, T: Real>(values: &'a [Vec<T>], shapes: &[&'a [usize]]) -> Result<Vec<Tensor<'a, T>>> {
    values.iter().zip(shapes).map(|(values, shape)| Tensor::new(values, shape)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Differentiable;

    /// `y[i] = round(x[i] / s) s` with the gradient of the identity, or, with frozen offsets, `x[i] + offset[i]`. The gradient is multiplied by
    /// `factor`.
    struct StraightThrough {
        offsets: Option<Vec<f64>>,
        factor: f64,
    }

    impl Differentiable<f64> for StraightThrough {
        type Saved = ();
        fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
            Ok(x[0].to_vec())
        }
        fn forward(&self, x: &[Tensor<'_, f64>], y: &mut [f64], _: &Pass<'_>) -> Result<()> {
            for (i, (y, x)) in y.iter_mut().zip(&*x[0].values()).enumerate() {
                *y = self.offsets.as_ref().map_or((x / 0.25).round() * 0.25, |o| x + o[i]);
            }
            Ok(())
        }
        fn backward(
            &self,
            _: &[Tensor<'_, f64>],
            _: &(),
            dy: &[f64],
            dx: &mut [Option<&mut [f64]>],
            _: &Pass<'_>,
        ) -> Result<()> {
            if let Some(dx) = &mut dx[0] {
                dx.iter_mut().zip(dy).for_each(|(d, dy)| *d += dy * self.factor);
            }
            Ok(())
        }
    }

    #[test]
    fn a_surrogate_equals_the_differences_of_its_twin_and_wrong_gradients_are_found() {
        let x = [0.3, -1.1, 1000.0];
        let offsets = x.iter().map(|v| (v / 0.25f64).round() * 0.25 - v).collect();
        let (rounded, smooth) =
            (StraightThrough { offsets: None, factor: 1.0 }, StraightThrough { offsets: Some(offsets), factor: 1.0 });
        let inputs: [(&[f64], &[usize]); 1] = [(&x, &[3])];
        check_surrogate(&rounded, &smooth, &inputs, 1e-6).unwrap();
        check_gradients(&smooth, &inputs, 1e-6).unwrap();
        assert!(check_gradients(&rounded, &inputs, 1e-6).is_err(), "steps have no differences");
        for factor in [0.0, -1.0, 1.00001, f64::NAN] {
            let wrong = StraightThrough { factor, ..StraightThrough { offsets: None, factor: 1.0 } };
            let found = check_surrogate(&wrong, &smooth, &inputs, 1e-6).unwrap_err().to_string();
            assert!(found.contains("input 0 at element 0"), "{found}");
        }
    }
}
