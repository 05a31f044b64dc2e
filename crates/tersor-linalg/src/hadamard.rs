//! Hadamard matrices of Paley's orders, over fields of prime power order.

use tersor_core::{Error, Result};

/// The largest order; its matrix has 2^30 elements.
const MAX_ORDER: usize = 1 << 15;

/// Returns whether [`hadamard`] can make a Hadamard matrix with `n` rows and columns. It can for 1, 2, the orders of Paley's two
/// constructions and these numbers times powers of two, up to 32 768; the result is false for any other `n`, such as 0.
pub fn hadamard_order(n: usize) -> bool {
    n <= MAX_ORDER && has_order(n)
}

fn has_order(n: usize) -> bool {
    n == 1 || n == 2 || (n > 0 && (paley(n).is_some() || (n.is_multiple_of(2) && has_order(n / 2))))
}

/// Returns a Hadamard matrix `H`, `[n, n]` row-major: its elements are 1 and -1, and `HHᵀ = nI`. It is made by Paley's first construction
/// if `n - 1` is a prime power congruent to 3 modulo 4, by his second if `n / 2 - 1` is a prime power congruent to 1 modulo 4, and
/// otherwise by Sylvester's doubling of the Hadamard matrix of order `n / 2`; the smallest orders are 1 and 2. Errors with
/// [`Error::Unsupported`] if none of these gives the order `n`, or if `n` is 0 or above 32 768; [`hadamard_order`] tells this beforehand.
///
/// ```
/// # fn main() -> tersor_core::Result<()> {
/// let h = tersor_linalg::hadamard(12)?;
/// let dot: i32 = (0..12).map(|j| i32::from(h[j]) * i32::from(h[12 + j])).sum();
/// assert_eq!(dot, 0);
/// assert!(tersor_linalg::hadamard(6).is_err() && !tersor_linalg::hadamard_order(6));
/// # Ok(())
/// # }
/// ```
pub fn hadamard(n: usize) -> Result<Vec<i8>> {
    match n {
        1 => return Ok(vec![1]),
        2 => return Ok(vec![1, 1, 1, -1]),
        _ if !hadamard_order(n) => {
            let value = format!("{n} (Paley's orders times powers of two exist, up to {MAX_ORDER})");
            return Err(Error::Unsupported { what: "order of a Hadamard matrix", value });
        }
        _ => {}
    }
    if let Some((field, second)) = paley(n) {
        return Ok(if second { paley_two(&field) } else { paley_one(&field) });
    }
    let half = hadamard(n / 2)?;
    let (m, mut out) = (n / 2, vec![0i8; n * n]);
    for (i, row) in half.chunks_exact(m).enumerate() {
        for (j, &v) in row.iter().enumerate() {
            for (r, c, v) in [(i, j, v), (i, j + m, v), (i + m, j, v), (i + m, j + m, -v)] {
                out[r * n + c] = v;
            }
        }
    }
    Ok(out)
}

/// Returns the field of Paley's first construction of order `n`, or of his second (true); None if neither exists.
fn paley(n: usize) -> Option<(Field, bool)> {
    if n > 0 && n.is_multiple_of(4) {
        if let Some(f) = Field::new(n - 1) {
            return Some((f, false));
        }
        if n % 8 == 4
            && let Some(f) = Field::new(n / 2 - 1)
        {
            return Some((f, true));
        }
    }
    None
}

/// Returns `[[1, 1ᵀ], [-1, Q + I]]` with the skew-symmetric Jacobsthal matrix `Q`.
fn paley_one(field: &Field) -> Vec<i8> {
    let n = field.q + 1;
    let mut out = vec![1i8; n * n];
    for i in 1..n {
        out[i * n] = -1;
        for j in 1..n {
            out[i * n + j] = if i == j { 1 } else { field.character(j - 1, i - 1) };
        }
    }
    out
}

/// Returns the symmetric conference matrix `[[0, 1ᵀ], [1, Q]]` with each entry replaced by a block: 0 by `[[1, -1], [-1, -1]]`, `±1` by
/// `±[[1, 1], [1, -1]]`.
fn paley_two(field: &Field) -> Vec<i8> {
    let m = field.q + 1;
    let mut out = vec![0i8; 4 * m * m];
    for i in 0..m {
        for j in 0..m {
            let c = match (i, j) {
                (i, j) if i == j => 0,
                (0, _) | (_, 0) => 1,
                _ => field.character(j - 1, i - 1),
            };
            let block = if c == 0 { [1, -1, -1, -1] } else { [c, c, c, -c] };
            for (b, v) in block.into_iter().enumerate() {
                out[(2 * i + b / 2) * 2 * m + 2 * j + b % 2] = v;
            }
        }
    }
    out
}

/// A field of `q = p^k` elements, as polynomials over the integers modulo `p`: element `Σ cᵢ pⁱ` has the coefficients `cᵢ`.
struct Field {
    q: usize,
    p: usize,
    degree: usize,
    /// Whether an element is the square of a nonzero element.
    square: Vec<bool>,
}

impl Field {
    /// Returns the field of order `q`; None unless `q` is a power of an odd prime.
    fn new(q: usize) -> Option<Self> {
        let p = (3..).take_while(|d| d * d <= q).find(|d| q.is_multiple_of(*d)).unwrap_or(q);
        if q < 3 || q.is_multiple_of(2) {
            return None;
        }
        let (mut rest, mut degree) = (q, 0);
        while rest.is_multiple_of(p) {
            (rest, degree) = (rest / p, degree + 1);
        }
        if rest != 1 {
            return None;
        }
        let mut field = Self { q, p, degree, square: Vec::new() };
        // Half of a field's nonzero elements are squares; modulo a reducible polynomial this does not hold.
        for low in 0..q {
            field.square = field.squares(low);
            if field.square.iter().filter(|s| **s).count() == (q - 1) / 2 && !field.square[0] {
                return Some(field);
            }
        }
        None
    }

    /// Returns which polynomials are squares of nonzero polynomials modulo `x^degree + low`.
    fn squares(&self, low: usize) -> Vec<bool> {
        let (p, k) = (self.p, self.degree);
        let modulus = self.digits(low);
        let mut square = vec![false; self.q];
        for a in 1..self.q {
            let a = self.digits(a);
            let mut product = vec![0usize; 2 * k];
            for i in 0..k {
                for j in 0..k {
                    product[i + j] = (product[i + j] + a[i] * a[j]) % p;
                }
            }
            for top in (k..2 * k).rev() {
                let lead = std::mem::take(&mut product[top]);
                for (i, m) in modulus.iter().enumerate() {
                    let at = &mut product[top - k + i];
                    *at = (*at + (p - 1) * lead % p * m) % p;
                }
            }
            square[product[..k].iter().rev().fold(0, |n, d| n * p + d)] = true;
        }
        square
    }

    fn digits(&self, mut a: usize) -> Vec<usize> {
        (0..self.degree)
            .map(|_| {
                let d = a % self.p;
                a /= self.p;
                d
            })
            .collect()
    }

    /// Returns 1 if `a - b` is a square, -1 if it is not; `a` and `b` differ.
    fn character(&self, a: usize, b: usize) -> i8 {
        let (a, b) = (self.digits(a), self.digits(b));
        let difference = a.iter().zip(&b).rev().fold(0, |n, (a, b)| n * self.p + (a + self.p - b) % self.p);
        if self.square[difference] { 1 } else { -1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_orthogonal_at_every_order_up_to_two_hundred() {
        let mut missing = Vec::new();
        for n in (4..=200).step_by(4) {
            if !hadamard_order(n) {
                assert!(hadamard(n).is_err());
                missing.push(n);
                continue;
            }
            let h = hadamard(n).unwrap();
            assert!(h.iter().all(|v| v.abs() == 1));
            for i in 0..n {
                for j in 0..=i {
                    let dot: i32 = (0..n).map(|c| i32::from(h[i * n + c]) * i32::from(h[j * n + c])).sum();
                    assert_eq!(dot, if i == j { n as i32 } else { 0 }, "order {n}, rows {i} and {j}");
                }
            }
        }
        // The orders below 200 that neither of Paley's constructions nor doubling reaches.
        assert_eq!(missing, [92, 116, 156, 172, 184, 188]);
        assert!(hadamard_order(344), "over the field of 7³");
        for n in [0, 3, 6, 10, 18] {
            assert!(!hadamard_order(n) && hadamard(n).is_err());
        }
    }
}
