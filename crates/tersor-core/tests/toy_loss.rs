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

    fn forward(&self, x: &[Tensor<'_, T>], y: &mut [T], _: &Pass<'_>) -> Result<Vec<T>> {
        let ([rows, classes], mut log_p) = (x[0].matrix(), x[0].values().into_owned());
        for (row, teacher) in log_p.chunks_exact_mut(classes).zip(x[1].values().chunks_exact(classes)) {
            row.iter_mut().for_each(|v| *v /= T::rounded(self.0));
            let sum = T::log_sum_exp(row);
            row.iter_mut().for_each(|v| *v -= sum);
            y[0] -= row.iter().zip(teacher).map(|(l, t)| *l * *t).sum::<T>() / T::rounded(rows as f64);
        }
        Ok(log_p)
    }

    fn backward(
        &self,
        x: &[Tensor<'_, T>],
        log_p: &Vec<T>,
        dy: &[T],
        dx: &mut [Option<&mut [T]>],
        _: &Pass<'_>,
    ) -> Result<()> {
        let ([rows, classes], teacher) = (x[0].matrix(), x[1].values());
        let factor = dy[0] / T::rounded(rows as f64);
        for i in 0..teacher.len() {
            let mass: T = teacher[i / classes * classes..][..classes].iter().copied().sum();
            let by_student = factor / T::rounded(self.0) * (mass * log_p[i].exp() - teacher[i]);
            for (dx, change) in dx.iter_mut().zip([by_student, -factor * log_p[i]]) {
                dx.iter_mut().for_each(|dx| dx[i] += change);
            }
        }
        Ok(())
    }
}

#[test]
fn the_gradients_equal_central_differences() {
    let student: Vec<f64> = (0..12).map(|i| ((i * 7) % 5) as f64 - 1.5).collect();
    let teacher = [0.1, 0.2, 0.3, 0.4].repeat(3);
    check_gradients(&Distill(2.0), &[(&student, &[3, 4]), (&teacher, &[3, 4])], 1e-6).unwrap();
    let (x, shape, exec) = ([1f32, 0.0], [1, 2], Exec::new());
    let same = [Tensor::new(&x, &shape).unwrap(); 2];
    let (y, dx) = gradients(&Distill(1.0), &same, &Pass::new(&exec)).unwrap();
    assert!((y[0] - 0.313_261_7).abs() < 1e-6 && (dx[0][0] + 0.268_941_4).abs() < 1e-6);
}
