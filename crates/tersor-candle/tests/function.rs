//! Functions of Tersor in candle's graph: outputs, gradients by type and number of inputs, randomness, and faults.

mod common;

use candle_core::{DType, Device, Tensor, Var};
use common::{difference, refuses, tensor};
use rand_core::RngCore;
use tersor::core::gradients::{Differentiable, Pass, Real, Tensor as View};
use tersor::core::{Error, Result};
use tersor_candle::Function;

/// `y = Π x[i]`, elementwise, for any number of inputs of one shape. It saves its output.
struct Product;

impl<T: Real> Differentiable<T> for Product {
    type Saved = Vec<T>;
    fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
        match x.iter().find(|s| *s != &x[0]) {
            None => Ok(x[0].to_vec()),
            Some(other) => Err(Error::shape("factor", x[0], other)),
        }
    }
    fn forward(&self, x: &[View<'_, T>], y: &mut [T], _: &Pass<'_>) -> Result<Vec<T>> {
        y.fill(T::one());
        for x in x {
            x.check_finite()?;
            y.iter_mut().zip(&*x.values()).for_each(|(y, v)| *y *= *v);
        }
        Ok(y.to_vec())
    }
    fn backward(
        &self,
        x: &[View<'_, T>],
        y: &Vec<T>,
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        _: &Pass<'_>,
    ) -> Result<()> {
        for (dx, x) in dx.iter_mut().zip(x) {
            let Some(dx) = dx else { continue };
            let terms = dy.iter().zip(y).zip(&*x.values()).map(|((d, y), x)| *d * *y / *x).collect::<Vec<T>>();
            dx.iter_mut().zip(terms).for_each(|(d, t)| *d += t);
        }
        Ok(())
    }
}

fn inputs(n: usize, dtype: DType) -> Vec<Var> {
    // Away from zero, by which the backward pass divides.
    let one = |i| (tensor(i, (3, 5)).abs()? + 0.5)?.to_dtype(dtype);
    (0..n).map(|i| Var::from_tensor(&one(i as u32).unwrap()).unwrap()).collect()
}

fn product_of(all: &[&Tensor]) -> Tensor {
    let wide: Vec<Tensor> = all.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    wide.iter().skip(1).fold(wide[0].clone(), |y, x| (y * x).unwrap())
}

#[test]
fn gradients_are_those_of_candle_for_any_number_of_inputs() {
    for n in 1..=5 {
        let vars = inputs(n, DType::F32);
        let all: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
        let y = Function::<f32>::new(Product).apply(&all).unwrap();
        let expected = product_of(&all);
        assert!(difference(&y, &expected) < 1e-6);
        // Twice: the saved values stay.
        for _ in 0..2 {
            let ours = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let theirs = expected.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            for var in &vars {
                let off = difference(ours.get(var).unwrap(), theirs.get(var).unwrap());
                assert!(off < 1e-5, "{n} inputs: {off}");
            }
        }
    }
}

#[test]
fn halves_views_constants_and_f64() {
    let vars = inputs(5, DType::F32);
    for n in [2, 3, 5] {
        let half = Var::from_tensor(&vars[0].to_dtype(DType::F16).unwrap()).unwrap();
        let constants: Vec<Tensor> =
            vars[1..n].iter().map(|v| v.as_detached_tensor().to_dtype(DType::BF16).unwrap()).collect();
        let all: Vec<&Tensor> = std::iter::once(half.as_tensor()).chain(&constants).collect();
        let y = Function::<f32>::new(Product).apply(&all).unwrap();
        assert_eq!(y.dtype(), DType::F32);
        let grads = y.sum_all().unwrap().backward().unwrap();
        let found = grads.get(&half).unwrap();
        assert_eq!(found.dtype(), DType::F16);
        let expected = product_of(&all).sum_all().unwrap().backward().unwrap();
        assert!(difference(found, expected.get(&half).unwrap()) < 2e-3);
        assert!(constants.iter().all(|c| grads.get(c).is_none()));
    }
    let view = [vars[0].t().unwrap(), vars[1].t().unwrap()];
    let y = Function::<f32>::new(Product).apply(&[&view[0], &view[1]]).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(difference(grads.get(&vars[0]).unwrap(), &vars[1]) < 1e-6);
    let wide = inputs(2, DType::F64);
    let y = Function::<f64>::new(Product).apply(&[&wide[0], &wide[1]]).unwrap();
    assert_eq!(y.dtype(), DType::F64);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(difference(grads.get(&wide[0]).unwrap(), &wide[1]) < 1e-14);
}

/// `y = x` where a random bit is set, otherwise 0: dropout without a factor.
struct Dropout;

impl Differentiable for Dropout {
    type Saved = ();
    fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
        Ok(x[0].to_vec())
    }
    fn forward(&self, x: &[View<'_>], y: &mut [f32], pass: &Pass<'_>) -> Result<()> {
        let mut bits = pass.stream("dropout");
        y.iter_mut().zip(&*x[0].values()).for_each(|(y, v)| *y = v * (bits.next_u32() & 1) as f32);
        Ok(())
    }
    fn backward(
        &self,
        _: &[View<'_>],
        _: &(),
        dy: &[f32],
        dx: &mut [Option<&mut [f32]>],
        pass: &Pass<'_>,
    ) -> Result<()> {
        let mut bits = pass.stream("dropout");
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        dx.iter_mut().zip(dy).for_each(|(d, dy)| *d += dy * (bits.next_u32() & 1) as f32);
        Ok(())
    }
}

#[test]
fn a_backward_pass_draws_the_numbers_of_its_forward_pass() {
    let x = Var::ones(256, DType::F32, &Device::Cpu).unwrap();
    let mut seen = Vec::new();
    for (seed, step) in [(1, 1), (1, 2), (2, 1)] {
        let y = Function::new(Dropout).at(seed, step).apply(&[&x]).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let (y, dx) = (y.to_vec1::<f32>().unwrap(), grads.get(&x).unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(y, dx);
        assert!(!seen.contains(&y));
        seen.push(y);
    }
}

#[test]
fn faults_are_errors() {
    let product = Function::<f32>::new(Product);
    refuses(product.apply(&[]), &["inputs of a function"]);
    let (a, b) = (tensor(1, (2, 3)), tensor(2, (3, 2)));
    refuses(product.apply(&[&a, &b]), &["factor", "[2, 3]", "[3, 2]"]);
    refuses(product.apply(&[&a.to_dtype(DType::F64).unwrap()]), &["F64", "to_dtype"]);
    refuses(Function::<f64>::new(Product).apply(&[&a]), &["F32", "F64"]);
    let nan = (&a * f64::NAN).unwrap();
    refuses(product.apply(&[&nan, &a]), &["NaN", "row 0, column 0"]);
    refuses(product.apply(&[&a, &a, &a, &nan]), &["NaN"]);
}
