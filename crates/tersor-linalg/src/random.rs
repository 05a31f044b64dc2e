//! Random matrices, from streams that the caller passes in.

use rand_core::RngCore;
use rand_distr::{Distribution, StandardNormal};
use tersor_core::{Error, Result, Rotation};

use crate::{hadamard, hadamard_order, qr};

/// Largest dense factor of a [`rotation`]; it costs so many multiplications a feature.
pub const MAX_FACTOR: usize = 2048;

/// Independent values of the standard normal distribution.
pub fn gaussian(n: usize, rng: &mut impl RngCore) -> Vec<f64> {
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

/// A uniformly distributed orthogonal `[n, n]` matrix (Stewart 1980: the QR of a Gaussian one, its diagonal made
/// positive). Error when it does not fit the address space.
pub fn orthogonal(n: usize, rng: &mut impl RngCore) -> Result<Vec<f64>> {
    let size = tersor_core::view::elements([n, n])?;
    Ok(qr(&gaussian(size, rng), [n, n])?.q)
}

/// Returns `[p, power]`, the order of the dense factor and of the Walsh-Hadamard transform of a [`rotation`] of `dim` features: `p` is 1 or an order
/// of Paley's up to [`MAX_FACTOR`], the smallest that leaves a power of two, or else the odd part of `dim`. Errors if `dim` is 0 or its odd part is
/// above [`MAX_FACTOR`] and no such order serves.
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

/// Returns a rotation of `dim` features with random signs: a Hadamard matrix where [`rotation_shape`] finds an order of Paley's, a random orthogonal
/// factor times a power of two otherwise. Errors as [`rotation_shape`].
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
