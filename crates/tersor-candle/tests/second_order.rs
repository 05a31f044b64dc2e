//! Gradients of gradients, which candle computes if an environment variable asks for them: the tests run again in a process that has it.

mod common;

use std::process::Command;

use candle_core::{Module, Tensor, Var};
use common::{difference, fails, operators, tensor};
use tersor::core::Result;
use tersor::core::gradients::{Differentiable, Pass, Tensor as View};
use tersor_candle::{CompressedLinear, Function};

const VARIABLE: &str = "CANDLE_GRAD_DO_NOT_DETACH";

/// Runs `test` in a process with the variable, and returns whether this is that process.
fn with_variable(test: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let done = Command::new(own).args(["--exact", test, "--nocapture"]).env(VARIABLE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&done.stderr));
    false
}

#[test]
fn products_are_differentiated_twice() {
    if !with_variable("products_are_differentiated_twice") {
        return;
    }
    for (name, op) in operators() {
        let layer = CompressedLinear::new(op, None).unwrap();
        let dense = layer.dequantize().unwrap();
        // The gradient of the squared norm of a gradient.
        let second = |layer: &dyn Module, x: &Var| -> candle_core::Result<Tensor> {
            let first = layer.forward(x)?.tanh()?.sum_all()?.backward()?;
            let norm = first.get(x).unwrap().sqr()?.sum_all()?;
            Ok(norm.backward()?.get(x).unwrap().clone())
        };
        let x = Var::from_tensor(&(tensor(3, (3, 96)) * 0.1).unwrap()).unwrap();
        let off = difference(&second(&layer, &x).unwrap(), &second(&dense, &x).unwrap());
        assert!(off < 1e-4, "{name}: {off}");
    }
}

/// `y = x[0]²`; the other inputs have no effect.
struct Square;

impl Differentiable for Square {
    type Saved = ();
    fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
        Ok(x[0].to_vec())
    }
    fn forward(&self, x: &[View<'_>], y: &mut [f32], _: &Pass<'_>) -> Result<()> {
        y.iter_mut().zip(&*x[0].values()).for_each(|(y, v)| *y = v * v);
        Ok(())
    }
    fn backward(&self, x: &[View<'_>], _: &(), dy: &[f32], dx: &mut [Option<&mut [f32]>], _: &Pass<'_>) -> Result<()> {
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        dx.iter_mut().zip(dy).zip(&*x[0].values()).for_each(|((d, dy), v)| *d += 2.0 * dy * v);
        Ok(())
    }
}

#[test]
fn a_gradient_of_a_function_is_not_differentiated() {
    if !with_variable("a_gradient_of_a_function_is_not_differentiated") {
        return;
    }
    let x = Var::from_tensor(&tensor(1, (2, 3))).unwrap();
    for others in 0..4 {
        // One of the inputs depends on the variable by its square.
        for at in 0..=others {
            let mut inputs = vec![x.as_tensor().clone(); others + 1];
            inputs[at] = x.sqr().unwrap();
            let y = Function::new(Square).apply(&inputs.iter().collect::<Vec<_>>()).unwrap();
            let first = y.sum_all().unwrap().backward().unwrap();
            let again = first.get(&x).unwrap().sum_all().unwrap().backward();
            fails(again, &["gradient of a Tersor function", "backward"]);
        }
    }
}
