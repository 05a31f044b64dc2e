//! Squared errors of the outputs of a matrix: `tr E H Eᵀ` for an error `E` of the weights and the Gram matrix `H = XᵀX` of the inputs.

use tersor_core::method::ROW_UNIT;
use tersor_core::{Error, Result};
use tersor_kernels::{dense, par};

/// A Gram matrix `H = XᵀX`, `[features, features]` in f32, of the inputs `X`, `[tokens, features]`, of a weight matrix. From it the squared
/// output errors `tr E H Eᵀ` of weight errors `E`, `[rows, features]`, are computed, for many candidates `E`.
///
/// ```
/// use tersor_linalg::Gram;
/// # fn main() -> tersor_core::Result<()> {
/// let gram = Gram::new(&[2.0, 0.0, 0.0, 3.0], 2, 1.0)?;
/// // Two rows of errors: 1² · 2 + 2² · 3, and 1² · 2.
/// assert_eq!(gram.row_losses(&[1.0, 2.0, 1.0, 0.0], &mut Vec::new())?, [14.0, 2.0]);
/// assert_eq!(gram.loss(&[1.0, 2.0, 1.0, 0.0])?, 16.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Gram {
    values: Vec<f32>,
    features: usize,
}

impl Gram {
    /// Returns the Gram matrix `gram`, `[features, features]` row-major, multiplied by `scale` and rounded to f32. `scale` may be any
    /// number, and values are not checked: if a result is not finite in f32, the losses are infinite or NaN. Errors if `gram` does not have
    /// `features * features` elements.
    pub fn new(gram: &[f64], features: usize, scale: f64) -> Result<Self> {
        if features.checked_mul(features) != Some(gram.len()) {
            return Err(Error::shape("Gram matrix", [features, features], gram.len()));
        }
        Ok(Self { values: gram.iter().map(|v| (*v * scale) as f32).collect(), features })
    }

    /// Returns the number of input features: the size of each axis of the Gram matrix.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the elements of the Gram matrix after scaling, `[features, features]` row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Returns the Gram matrix of the features `first..first + width` alone: the square block of these rows and columns. Features beyond
    /// the last one are left out, so that the result may have fewer than `width` features, or none.
    pub fn block(&self, first: usize, width: usize) -> Self {
        let span = first.min(self.features)..first.saturating_add(width).min(self.features);
        let row = |r: usize| &self.values[r * self.features + span.start..r * self.features + span.end];
        Self { values: span.clone().flat_map(row).copied().collect(), features: span.len() }
    }

    /// Returns the squared output error `e H eᵀ` of each row `e` of the weight errors `errors`, `[rows, features]` row-major, where `H` is
    /// this Gram matrix: one number for each row. Products with `H` are in f32, sums over a row in f64. `scratch` is a buffer for
    /// intermediate results: its content is overwritten, and its memory is reused by later calls. Errors if the length of `errors` is not a
    /// multiple of the number of features.
    pub fn row_losses(&self, errors: &[f32], scratch: &mut Vec<f32>) -> Result<Vec<f64>> {
        let n = self.features.max(1);
        self.product(errors, scratch)?;
        let row = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        Ok(errors.chunks_exact(n).zip(scratch.chunks_exact(n)).map(row).collect())
    }

    /// Returns the squared output error `tr E H Eᵀ` of the weight errors `E` (`errors`, `[rows, features]` row-major), where `H` is this
    /// Gram matrix; 0 without rows. Products with `H` are in f32, sums in f64. Rows are shared by the threads of the current rayon pool.
    /// Errors if the length of `errors` is not a multiple of the number of features.
    pub fn loss(&self, errors: &[f32]) -> Result<f64> {
        let n = self.features;
        if n == 0 || !errors.len().is_multiple_of(n) {
            return if errors.is_empty() { Ok(0.0) } else { Err(Error::shape("values of rows", n, errors.len())) };
        }
        let unit = |i: usize, scratch: &mut Vec<f32>| -> Result<f64> {
            let part = &errors[i * ROW_UNIT * n..errors.len().min((i + 1) * ROW_UNIT * n)];
            self.product(part, scratch)?;
            Ok(part.iter().zip(&*scratch).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        };
        let units = (errors.len() / n).div_ceil(ROW_UNIT);
        par::map(units, true, Vec::new, unit).into_iter().sum()
    }

    /// Writes `E H` into `out`.
    fn product(&self, errors: &[f32], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.resize(errors.len(), 0.0);
        let rows = errors.len() / self.features.max(1);
        Ok(dense::product_plain(errors, [rows, self.features], &self.values, self.features, out)?)
    }
}

/// Returns the squared output error `tr E H Eᵀ`, at least 0, of the weight errors `E` (`errors`, `[rows, features]` row-major), where `H`
/// is the Gram matrix of the inputs (`gram`, `[features, features]` row-major, rounded to f32). Errors if `gram` does not have
/// `features * features` elements, the length of `errors` is not a multiple of `features`, or the result is not finite.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// assert_eq!(tersor_linalg::output_loss(&[1.0, -1.0], &[2.0, 1.0, 1.0, 3.0], 2)?, 3.0);
/// # Ok(())
/// # }
/// ```
pub fn output_loss(errors: &[f32], gram: &[f64], features: usize) -> Result<f64> {
    let loss = Gram::new(gram, features, 1.0)?.loss(errors)?;
    if !loss.is_finite() {
        return Err(Error::Numerical(format!(
            "the loss of the outputs is {loss}: errors or Gram matrix are not finite or too large"
        )));
    }
    Ok(loss.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_equal_squared_errors_of_outputs() {
        let (tokens, k, rows) = (40, 12, 130);
        let x: Vec<f64> = (0..tokens * k).map(|i| (i as f64 * 0.37).sin()).collect();
        let e: Vec<f32> = (0..rows * k).map(|i| (i as f32 * 0.91).cos()).collect();
        let at = |i: usize, j: usize| (0..tokens).map(|t| x[t * k + i] * x[t * k + j]).sum::<f64>();
        let gram: Vec<f64> = (0..k * k).map(|i| at(i / k, i % k)).collect();
        let output = |r: usize, t: usize| (0..k).map(|c| f64::from(e[r * k + c]) * x[t * k + c]).sum::<f64>();
        let want: Vec<f64> = (0..rows).map(|r| (0..tokens).map(|t| output(r, t).powi(2)).sum()).collect();
        let g = Gram::new(&gram, k, 1.0).unwrap();
        let each = g.row_losses(&e, &mut Vec::new()).unwrap();
        assert!(each.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4 * b.max(1.0)));
        let (sum, all) = (want.iter().sum::<f64>(), output_loss(&e, &gram, k).unwrap());
        assert!((sum - all).abs() < 1e-5 * sum);
        let block = g.block(8, 9);
        assert_eq!((block.features(), block.values()[0]), (4, gram[8 * k + 8] as f32));
        assert!(Gram::new(&gram, k + 1, 1.0).is_err() && g.loss(&e[1..]).is_err());
        assert_eq!(g.loss(&[]).unwrap(), 0.0);
        assert!(output_loss(&[f32::NAN], &[1.0], 1).is_err() && output_loss(&[1.0], &[f64::NAN], 1).is_err());
        assert!(output_loss(&[0.0, f32::INFINITY], &[1.0, 0.0, 0.0, 0.0], 2).is_err());
    }
}
