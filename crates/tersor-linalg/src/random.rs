//! Random matrices, drawn from streams that the caller passes.

use rand_core::RngCore;
use rand_distr::{Distribution, StandardNormal};
use tersor_core::{Error, Result, Rotation};

use crate::{hadamard, hadamard_order, qr};

/// The largest order `p` of the dense factor `[p, p]` of a [`rotation`]: 2048. To apply such a factor takes `p` multiplications for each
/// feature.
pub const MAX_FACTOR: usize = 2048;

/// Returns `n` independent values of the standard normal distribution (mean 0, variance 1), drawn from `rng`.
pub fn gaussian(n: usize, rng: &mut impl RngCore) -> Vec<f64> {
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

/// Returns a random orthogonal matrix, `[n, n]` row-major, uniformly distributed (Haar) and drawn from `rng`: the `Q` of the QR
/// decomposition of a Gaussian matrix whose `R` has a positive diagonal (Stewart 1980). Errors if `n * n` elements exceed the address
/// space.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let mut rng = tersor_core::Context::new().stream("orthogonal");
/// let q = tersor_linalg::orthogonal(3, &mut rng)?;
/// let product = tersor_linalg::syrk(&q, [3, 3])?;
/// assert!((product[0] - 1.0).abs() < 1e-12 && product[1].abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn orthogonal(n: usize, rng: &mut impl RngCore) -> Result<Vec<f64>> {
    let size = tersor_core::view::elements([n, n])?;
    Ok(qr(&gaussian(size, rng), [n, n])?.q)
}

/// Returns the sizes `[p, power]` of the two parts of a [`rotation`] of `dim = p * power` features: the order `p` of its dense factor and
/// the order `power`, a power of two, of its Walsh-Hadamard transform. `p` is the smallest order up to [`MAX_FACTOR`] (2048) for which
/// [`hadamard()`] can make a matrix and `dim / p` is a power of two; if there is none, `p` is the largest odd divisor of `dim`. Errors if
/// `dim` is 0, or if its largest odd divisor is above [`MAX_FACTOR`].
pub fn rotation_shape(dim: usize) -> Result<[usize; 2]> {
    if dim == 0 {
        return Err(Error::shape("features of a rotation", "at least 1", 0));
    }
    let odd = dim >> dim.trailing_zeros();
    let orders = (0..=dim.trailing_zeros()).map(|shift| odd << shift);
    if let Some(p) = orders.take_while(|&p| p <= MAX_FACTOR).find(|&p| hadamard_order(p)) {
        return Ok([p, dim / p]);
    }
    if odd > MAX_FACTOR {
        let value = format!("{dim} features (their odd part {odd} is above {MAX_FACTOR})");
        return Err(Error::Unsupported { what: "width of a rotation", value });
    }
    Ok([odd, dim / odd])
}

/// Returns a random orthogonal transform of `dim` features, drawn from `rng`, that is cheap to apply. [`rotation_shape`] gives its sizes
/// `[p, power]`, where `p * power = dim`. First each feature gets a random sign. Then each of the `p` groups of `power` neighbouring
/// features goes through an orthonormal Walsh-Hadamard transform. Last a dense orthogonal factor `[p, p]` mixes the features at the same
/// place of all groups: a Hadamard matrix, divided by the square root of `p`, if [`hadamard()`] can make one of order `p`, and a random
/// orthogonal matrix otherwise. Errors if `dim` is 0, or if its largest odd divisor is above [`MAX_FACTOR`] (2048).
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let mut rng = tersor_core::Context::new().stream("rotation");
/// // 24 = 12 * 2: Paley's matrix of order 12 and a Walsh-Hadamard transform of order 2.
/// assert_eq!(tersor_linalg::rotation_shape(24)?, [12, 2]);
/// assert_eq!(tersor_linalg::rotation(24, &mut rng)?.dim(), 24);
/// # Ok(())
/// # }
/// ```
pub fn rotation(dim: usize, rng: &mut impl RngCore) -> Result<Rotation> {
    let [p, power] = rotation_shape(dim)?;
    let signs: Vec<f32> = (0..dim).map(|_| if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 }).collect();
    let factor: Vec<f32> = if hadamard_order(p) {
        let scale = (p as f64).sqrt().recip() as f32;
        hadamard(p)?.into_iter().map(|v| f32::from(v) * scale).collect()
    } else {
        orthogonal(p, rng)?.into_iter().map(|v| v as f32).collect()
    };
    Rotation::new(&factor, power, &signs)
}
