//! Scaled dot-product attention of one head: scores, weighted sums, and both around a softmax.
//!
//! ```
//! use tersor_kernels::{Isa, attention};
//! // Two tokens of dimension 1; the second token sees both keys.
//! let (q, keys, values) = ([1.0, 0.0], [5.0, 5.0], [2.0, 4.0]);
//! let (mut probs, mut out) = (Vec::new(), [0f32; 2]);
//! let seen = attention::attend(Isa::detect(), [&q, &keys, &values], 1, &[0..1, 0..2], &mut probs, &mut out).unwrap();
//! assert_eq!((seen, out), (0..2, [2.0, 3.0]));
//! assert_eq!(probs, [1.0, 0.0, 0.5, 0.5]);
//! ```

use std::ops::Range;

use crate::dense::{Options, Out, Write, add_product, product};
use crate::{Fault, Isa, fault, vector};

/// The number of query tokens (4) from which [`Product::of`] chooses matrix products. For fewer tokens the set-up of a matrix product costs
/// more than it saves.
pub const MATRIX_MIN_TOKENS: usize = 4;

/// How attention computes its two products, queries with keys and probabilities with values. [`Vector`](Self::Vector), the default,
/// computes one dot product or adds one scaled row at a time; [`Matrix`](Self::Matrix) uses matrix products, which are faster for several
/// query tokens. The results of the two agree up to rounding.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Product {
    /// One dot product (or one scaled row) at a time, by the loops of this crate: the same bits on every instruction set.
    #[default]
    Vector,
    /// Matrix products by the `gemm` crate, which chooses its own instruction set.
    Matrix,
}

impl Product {
    /// Returns the kind of product for a number of query tokens: [`Product::Vector`] below [`MATRIX_MIN_TOKENS`] (4), [`Product::Matrix`]
    /// from there on.
    #[must_use]
    pub fn of(tokens: usize) -> Self {
        if tokens < MATRIX_MIN_TOKENS { Self::Vector } else { Self::Matrix }
    }
}

/// Writes the dot products `out[t, j] = q[t] · keys[j]` of one attention head, without scale or softmax. `kind` chooses how they are
/// computed. `q` is `[tokens, dim]` and `keys` `[len, dim]`, row-major; `tokens` and `len` follow from the lengths of the slices. `out` is
/// `[tokens, len]` with rows `out.stride` elements apart.
///
/// Fails with `Fault::Length` if `q` or `keys` is not a whole number of rows of `dim` values, if `out.stride` is less than `len`, or if
/// `out` is too short; with a `dim` of 0, if `q` or `keys` is not empty. Fails with `Fault::Overflow` if the size of `out` does not fit in
/// `usize`. `out` is unchanged then. Without tokens or keys nothing is written, and `out` is not checked.
pub fn scores(isa: Isa, kind: Product, q: &[f32], keys: &[f32], dim: usize, out: Out<'_>) -> Result<(), Fault> {
    let (tokens, len) = (q.len() / dim.max(1), keys.len() / dim.max(1));
    fault::matrix("keys", [len, dim], keys.len())?;
    if kind == Product::Matrix {
        let options = Options { isa, write: Write::Set, parallel: false };
        return product(options, q, [tokens, dim], keys, len, out);
    }
    fault::matrix("queries", [tokens, dim], q.len())?;
    out.check([tokens, len])?;
    for (j, key) in keys.chunks_exact(dim.max(1)).enumerate() {
        for (t, q) in q.chunks_exact(dim.max(1)).enumerate() {
            out.data[t * out.stride + j] = vector::dot(isa, q, key);
        }
    }
    Ok(())
}

/// Adds the weighted sums of the values of one attention head to `out`: `out[t] += Σ_j p[t, j] * values[j]`, where `p` holds the attention
/// probabilities. `values` is `[len, dim]` and `out` `[tokens, dim]`, row-major; `len` and `tokens` follow from the lengths of the slices.
/// `p` is `[tokens, len]` with rows `stride` elements apart; the last row may end after its `len` values. `kind` chooses how the sums are
/// computed. With [`Product::Vector`] values of probability 0 are skipped, even if they are NaN; with [`Product::Matrix`] a NaN or infinite
/// value of probability 0 makes the sum NaN.
///
/// Fails with `Fault::Length` if `values` or `out` is not a whole number of rows of `dim` values, if `stride` is less than `len`, or if `p`
/// is too short; with a `dim` of 0, if `values` or `out` is not empty. Fails with `Fault::Overflow` if the size of `p` does not fit in
/// `usize`. `out` is unchanged then. Without tokens or values `out` is unchanged, and `p` and `stride` are not checked.
pub fn add_weighted(
    isa: Isa,
    kind: Product,
    [p, values]: [&[f32]; 2],
    stride: usize,
    dim: usize,
    out: &mut [f32],
) -> Result<(), Fault> {
    let (tokens, len) = (out.len() / dim.max(1), values.len() / dim.max(1));
    fault::matrix("values", [len, dim], values.len())?;
    fault::matrix("output", [tokens, dim], out.len())?;
    if tokens == 0 || len == 0 {
        return Ok(());
    }
    if kind == Product::Matrix {
        return add_product(p, stride, [tokens, len], values, dim, out);
    }
    fault::at_least("stride of the probabilities", len, stride)?;
    let last = (tokens - 1).checked_mul(stride).and_then(|n| n.checked_add(len));
    fault::at_least("probabilities", last.ok_or(Fault::Overflow { what: "probabilities" })?, p.len())?;
    for (j, value) in values.chunks_exact(dim).enumerate() {
        for (t, out) in out.chunks_exact_mut(dim).enumerate() {
            let p = p[t * stride + j];
            if p != 0.0 {
                vector::axpy(isa, p, value, out);
            }
        }
    }
    Ok(())
}

/// Computes the attention of one head: writes `out[t] = Σ_j p[t, j] * values[j]`, where `p[t]` is the softmax of `q[t] · keys[j]` over the
/// keys `j` in the index range `visible[t]`. There are `visible.len()` query tokens. `q` is `[tokens, dim]` and already scaled (usually by
/// `1/√dim`), `keys` and `values` are `[len, dim]`, and `out` is `[tokens, dim]`, all row-major. A token with an empty range gets zeros.
///
/// [`Product::of`] chooses the kind of product by the number of tokens. From [`MATRIX_MIN_TOKENS`] (4) tokens on these are matrix products,
/// in which a NaN or an infinity in the returned range of `values` gives tokens that do not see it a NaN in the same dimension.
///
/// Returns the smallest range of key indices that contains all visible ranges, empty ones included (`0..0` without tokens). Resizes `probs`
/// to `[tokens, n]`, where `n` is the length of the returned range, and leaves there the probabilities of the keys in that range, 0 for
/// keys that a token does not see. Work and memory grow with `n`, so long texts are best processed in blocks of tokens.
///
/// Fails with `Fault::Length` if a slice does not have the stated shape, where `len` is `keys.len() / dim` (with a `dim` of 0, `q`, `keys`,
/// `values` and `out` must be empty). Fails with `Fault::Range` if a visible range ends after `len` or starts after its end. Fails with
/// `Fault::Overflow` if `tokens * dim` does not fit in `usize`. `probs` and `out` are unchanged then.
pub fn attend(
    isa: Isa,
    [q, keys, values]: [&[f32]; 3],
    dim: usize,
    visible: &[Range<usize>],
    probs: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<Range<usize>, Fault> {
    let (tokens, len) = (visible.len(), keys.len() / dim.max(1));
    fault::matrix("queries", [tokens, dim], q.len())?;
    fault::matrix("output", [tokens, dim], out.len())?;
    for v in visible {
        fault::at_most("end of a range of visible keys", len, v.end)?;
        fault::at_most("start of a range of visible keys", v.end, v.start)?;
    }
    fault::matrix("keys", [len, dim], keys.len())?;
    fault::matrix("values", [len, dim], values.len())?;
    let first = visible.iter().map(|v| v.start).min().unwrap_or(0);
    let last = visible.iter().map(|v| v.end).max().unwrap_or(0).max(first);
    let (keys, values, seen) = (&keys[first * dim..last * dim], &values[first * dim..last * dim], last - first);
    let kind = Product::of(tokens);
    // Entries that are not written below are set to zero.
    probs.resize(tokens * seen, 0.0);
    scores(isa, kind, q, keys, dim, Out { data: probs, stride: seen })?;
    for (p, v) in probs.chunks_exact_mut(seen.max(1)).zip(visible) {
        p[..v.start - first].fill(0.0);
        p[v.end - first..].fill(0.0);
        vector::softmax(isa, &mut p[v.start - first..v.end - first]);
    }
    out.fill(0.0);
    add_weighted(isa, kind, [probs, values], seen, dim, out)?;
    Ok(first..last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides the largest sizes, for Miri.
    const PART: usize = if cfg!(miri) { 8 } else { 1 };

    proptest! {
        #[test]
        fn it_is_the_definition(tokens in 1..20 / PART + 1, len in 1..100 / PART, dim in 1..70 / PART, salt: u64) {
            let mix = |i: usize| ((i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 16_777_216.0 - 0.5;
            let of = |n: usize, salt: usize| -> Vec<f32> { (0..n).map(|i| 3.0 * mix(i + salt)).collect() };
            let (mut q, keys, values) = (of(tokens * dim, 1), of(len * dim, 2), of(len * dim, 3));
            q.iter_mut().for_each(|q| *q /= (dim as f32).sqrt());
            let visible: Vec<_> = (0..tokens).map(|t| { let end = 1 + (t * 7) % len; end / 3..end }).collect();
            let want: Vec<f64> = (0..tokens * dim).map(|i| {
                let (t, d) = (i / dim, i % dim);
                let score = |j: usize| (0..dim).map(|k| f64::from(q[t * dim + k]) * f64::from(keys[j * dim + k])).sum::<f64>().exp();
                let total: f64 = visible[t].clone().map(score).sum();
                visible[t].clone().map(|j| score(j) / total * f64::from(values[j * dim + d])).sum()
            }).collect();
            for isa in Isa::available() {
                let (mut probs, mut out) = (Vec::new(), vec![f32::NAN; tokens * dim]);
                let seen = attend(isa, [&q, &keys, &values], dim, &visible, &mut probs, &mut out).unwrap();
                prop_assert!(out.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                // In parts, with either product.
                for kind in [Product::Vector, Product::Matrix] {
                    let mut parts = vec![0f32; tokens * dim];
                    for at in (0..seen.len()).step_by(7) {
                        let rows = (seen.start + at) * dim..(seen.start + (at + 7).min(seen.len())) * dim;
                        let mut again = vec![f32::NAN; tokens * seen.len()];
                        let out = Out { data: &mut again[at..], stride: seen.len() };
                        scores(isa, kind, &q, &keys[rows.clone()], dim, out).unwrap();
                        add_weighted(isa, kind, [&probs[at..], &values[rows]], seen.len(), dim, &mut parts).unwrap();
                        let q = &q[(tokens - 1) * dim..];
                        let score = vector::dot(isa, q, &keys[(seen.start + at) * dim..][..dim]);
                        prop_assert!((again[(tokens - 1) * seen.len() + at] - score).abs() < 1e-5);
                    }
                    prop_assert!(parts.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                }
                for (p, v) in probs.chunks(seen.len()).zip(&visible) {
                    let v = v.start - seen.start..v.end - seen.start;
                    prop_assert!((p[v.clone()].iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    prop_assert!(p[..v.start].iter().chain(&p[v.end..]).all(|p| *p == 0.0));
                }
            }
        }
    }

    fn place(data: &mut [f32]) -> Out<'_> {
        Out { data, stride: 2 }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let (x, mut out, mut probs) = ([1.0f32; 8], [0f32; 4], Vec::new());
        let mut run =
            |q: &[f32], visible: Range<usize>| attend(Isa::SCALAR, [q, &x, &x], 4, &[visible], &mut probs, &mut out);
        let short = Err(Fault::Length { what: "queries", expected: 4, found: 3 });
        let far = Err(Fault::Range { what: "end of a range of visible keys", limit: 2, found: 3 });
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = run(&x[..4], 2..1);
        assert_eq!(reversed, Err(Fault::Range { what: "start of a range of visible keys", limit: 1, found: 2 }));
        for kind in [Product::Vector, Product::Matrix] {
            let mut out = [0f32; 8];
            let mut cells = [0f32; 4];
            assert!(scores(Isa::SCALAR, kind, &x[..7], &x, 4, place(&mut cells)).is_err());
            assert!(scores(Isa::SCALAR, kind, &x, &x[..7], 4, place(&mut cells)).is_err());
            assert!(scores(Isa::SCALAR, kind, &x, &x, 4, place(&mut cells[..3])).is_err());
            assert!(add_weighted(Isa::SCALAR, kind, [&x[..3], &x], 2, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, kind, [&x[..4], &x], 1, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, kind, [&x[..4], &x[..7]], 2, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, kind, [&x[..4], &x], 2, 4, &mut out[..7]).is_err());
            assert_eq!(add_weighted(Isa::SCALAR, kind, [&x[..4], &x], 2, 4, &mut out), Ok(()));
        }
        assert!(run(&x[..3], 0..2) == short && run(&x[..4], 0..3) == far && run(&x[..4], 0..2) == Ok(0..2));
    }
}
