//! A loss of a user's own: distillation by cross-entropy at a temperature, held to central differences in f64.

use tersor_core::gradients::{Differentiable, Pass, Real, Tensor, check::check_gradients, gradients};
use tersor_core::{Error, Exec, Result};

/// `y = -Σ p_teacher log softmax(student / temperature) / rows`, for student and teacher `[rows, classes]`.
struct Distill(f64);

impl<T: Real> Differentiable<T> for Distill {
    type Saved = Vec<T>;

    fn shape(&self, x: &[&[usize]]) -> Result<Vec<usize>> {
        if x[0] == x[1] { Ok(vec![]) } else { Err(Error::shape("teacher", x[0], x[1])) }
    }

    fn forward(&self, x: &[Tensor<'_, T>], y: &mut [T], pass: &Pass<'_>) -> Result<Vec<T>> {
        let ([rows, classes], mut saved) = (x[0].matrix(), x[0].values().into_owned());
        for (student, teacher) in saved.chunks_exact_mut(classes).zip(x[1].values().chunks_exact(classes)) {
            student.iter_mut().for_each(|v| *v /= T::rounded(self.0));
            let sum = T::log_sum_exp(student);
            let loss: T = student.iter().zip(teacher).map(|(s, t)| *t * (sum - *s)).sum();
            y[0] += loss / T::rounded(rows as f64);
            T::softmax(pass.exec.isa(), student);
        }
        Ok(saved)
    }

    fn backward(
        &self,
        x: &[Tensor<'_, T>],
        p: &Vec<T>,
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        _: &Pass<'_>,
    ) -> Result<()> {
        let [rows, classes] = x[0].matrix();
        let (factor, teacher) = (dy[0] / T::rounded(self.0 * rows as f64), x[1].values());
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        for ((dx, p), t) in dx.chunks_exact_mut(classes).zip(p.chunks_exact(classes)).zip(teacher.chunks_exact(classes))
        {
            let mass: T = t.iter().copied().sum();
            (0..classes).for_each(|i| dx[i] += factor * (mass * p[i] - t[i]));
        }
        Ok(())
    }
}

/// The loss of a student alone: the teacher is a constant.
struct OfStudent(Vec<f64>, [usize; 2]);

impl Differentiable<f64> for OfStudent {
    type Saved = Vec<f64>;
    fn shape(&self, _: &[&[usize]]) -> Result<Vec<usize>> {
        Ok(vec![])
    }
    fn forward(&self, x: &[Tensor<'_, f64>], y: &mut [f64], pass: &Pass<'_>) -> Result<Vec<f64>> {
        Distill(2.0).forward(&[x[0], Tensor::new(&self.0, &self.1)?], y, pass)
    }
    fn backward(
        &self,
        x: &[Tensor<'_, f64>],
        s: &Vec<f64>,
        dy: &[f64],
        dx: &mut [Option<&mut [f64]>],
        pass: &Pass<'_>,
    ) -> Result<()> {
        Distill(2.0).backward(&[x[0], Tensor::new(&self.0, &self.1)?], s, dy, dx, pass)
    }
}

#[test]
fn the_gradient_equals_central_differences() {
    let student: Vec<f64> = (0..12).map(|i| ((i * 7) % 5) as f64 - 1.5).collect();
    let teacher = [0.1, 0.2, 0.3, 0.4].repeat(3);
    check_gradients(&OfStudent(teacher.clone(), [3, 4]), &[(&student, &[3, 4])], 1e-6).unwrap();
    // In f32 the same within its precision.
    let narrow = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let (s, t, exec) = (narrow(&student), narrow(&teacher), Exec::new());
    let (_, single) = gradients(
        &Distill(2.0),
        &[Tensor::new(&s, &[3, 4]).unwrap(), Tensor::new(&t, &[3, 4]).unwrap()],
        &Pass::new(&exec),
    )
    .unwrap();
    let (_, double) =
        gradients(&OfStudent(teacher, [3, 4]), &[Tensor::new(&student, &[3, 4]).unwrap()], &Pass::new(&exec)).unwrap();
    assert!(single[0].iter().zip(&double[0]).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
}
