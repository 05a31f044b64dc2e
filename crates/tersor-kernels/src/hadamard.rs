//! The fast Walsh-Hadamard transform.

/// Transforms `x` in place by the Sylvester-Hadamard matrix of order `x.len()` scaled to be orthogonal
/// (its own inverse). Returns false and leaves `x` alone unless the length is a power of two.
pub fn fwht(x: &mut [f32]) -> bool {
    let n = x.len();
    if !n.is_power_of_two() {
        return n == 0;
    }
    let mut half = 1;
    while half < n {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = (n as f32).sqrt().recip();
    x.iter_mut().for_each(|v| *v *= scale);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_its_own_inverse_and_matches_the_definition() {
        for log in 0..8 {
            let n = 1usize << log;
            let x: Vec<f32> = (0..n).map(|i| ((i * 31 + 7) % 17) as f32 - 8.0).collect();
            let mut y = x.clone();
            assert!(fwht(&mut y));
            for (i, &v) in y.iter().enumerate() {
                let sum: f32 =
                    x.iter().enumerate().map(|(j, &v)| if (i & j).count_ones() % 2 == 0 { v } else { -v }).sum();
                assert!((sum / (n as f32).sqrt() - v).abs() < 1e-4);
            }
            fwht(&mut y);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        assert!(!fwht(&mut [0.0; 3]));
    }
}
