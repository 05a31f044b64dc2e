//! The fast Walsh-Hadamard transform.
//!
//! ```
//! use tersor_kernels::{Isa, hadamard::fwht};
//! let mut x = [1.0f32, 2.0, 3.0, 4.0];
//! fwht(Isa::detect(), &mut x).unwrap();
//! assert_eq!(x, [5.0, -1.0, -2.0, 0.0]);
//! assert!(fwht(Isa::detect(), &mut [0.0; 3]).is_err(), "3 is not a power of two");
//! ```

use crate::isa::versions;
use crate::{Fault, Isa};

/// Multiplies the vector `x` of `n` values in place by the `n` x `n` Sylvester-Hadamard matrix, scaled by `1/√n` to be orthogonal; applied
/// twice, it gives back the vector up to rounding. An empty slice is allowed. Fails with `Fault::Length`, whose `expected` is the next
/// power of two, if `n` is not a power of two; `x` is unchanged then.
pub fn fwht(isa: Isa, x: &mut [f32]) -> Result<(), Fault> {
    if !x.is_empty() && !x.len().is_power_of_two() {
        let expected = x.len().checked_next_power_of_two().unwrap_or(usize::MAX);
        return Err(Fault::Length { what: "vector of a Hadamard transform", expected, found: x.len() });
    }
    transform(isa, x);
    Ok(())
}

versions! {
    /// Transforms a slice whose length is a power of two: levels of distance 1, 2 and 4 within eight neighbours, then two levels at a time.
    fn transform(isa: Isa, x: &mut [f32]) {
        let n = x.len();
        let scale = (n.max(1) as f32).sqrt().recip();
        let (eights, rest) = x.as_chunks_mut::<8>();
        for x in eights {
            let a: [f32; 8] = std::array::from_fn(|i| if i % 2 == 0 { x[i] + x[i + 1] } else { x[i - 1] - x[i] });
            let b: [f32; 8] = std::array::from_fn(|i| if i & 2 == 0 { a[i] + a[i + 2] } else { a[i - 2] - a[i] });
            *x = std::array::from_fn(|i| scale * if i & 4 == 0 { b[i] + b[i + 4] } else { b[i - 4] - b[i] });
        }
        let mut half = 8;
        if n < 8 {
            rest.iter_mut().for_each(|v| *v *= scale);
            half = 1;
        }
        while 4 * half <= n {
            for four in x.chunks_exact_mut(4 * half) {
                let (a, b) = four.split_at_mut(2 * half);
                let ((a, b), (c, d)) = (a.split_at_mut(half), b.split_at_mut(half));
                for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                    let (p, q, r, s) = (*a + *b, *a - *b, *c + *d, *c - *d);
                    (*a, *b, *c, *d) = (p + r, q + s, p - r, q - s);
                }
            }
            half *= 4;
        }
        if 2 * half <= n {
            let (a, b) = x.split_at_mut(half);
            a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_its_own_inverse_and_matches_the_definition() {
        for log in 0..if cfg!(miri) { 7 } else { 12 } {
            let n = 1usize << log;
            let x: Vec<f32> = (0..n).map(|i| ((i * 31 + 7) % 17) as f32 - 8.0).collect();
            let mut y = x.clone();
            fwht(Isa::detect(), &mut y).unwrap();
            for (i, &v) in y.iter().enumerate() {
                let sum: f32 =
                    x.iter().enumerate().map(|(j, &v)| if (i & j).count_ones() % 2 == 0 { v } else { -v }).sum();
                assert!((sum / (n as f32).sqrt() - v).abs() < 1e-4);
            }
            for isa in Isa::available() {
                let mut again = x.clone();
                fwht(isa, &mut again).unwrap();
                assert!(again.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
            }
            fwht(Isa::detect(), &mut y).unwrap();
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        let mut x = [1.0, 2.0, 3.0];
        let wrong = Fault::Length { what: "vector of a Hadamard transform", expected: 4, found: 3 };
        assert_eq!((fwht(Isa::SCALAR, &mut x), x), (Err(wrong), [1.0, 2.0, 3.0]));
        assert_eq!(fwht(Isa::SCALAR, &mut []), Ok(()));
    }
}
