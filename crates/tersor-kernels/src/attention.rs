//! Scaled dot-product attention of one head: scores, weighted sums, and both around a softmax.

use std::ops::Range;

use crate::dense::{How, Out, Write, add_product, product};
use crate::{Fault, Isa, fault, vector};

/// Number of query tokens below which each query is multiplied with one key or value at a time: a product of matrices
/// is not worth its start.
pub const FEW: usize = 4;

/// How queries are multiplied with keys, and probabilities with values. Both give the same numbers up to rounding.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Product {
    /// One dot product, or one scaled row, at a time, by the loops of this crate: the same bits on every instruction
    /// set.
    #[default]
    Vector,
    /// Products of matrices, by the `gemm` crate, which chooses its own instruction set.
    Matrix,
}

impl Product {
    /// Returns the product for so many query tokens: [`Product::Vector`] below [`FEW`].
    #[must_use]
    pub fn of(tokens: usize) -> Self {
        if tokens < FEW { Self::Vector } else { Self::Matrix }
    }
}

/// Writes `out[t, j] = q[t] · keys[j]` for queries `[tokens, dim]` and keys `[len, dim]`; rows of `out` are
/// `out.stride` apart. Fails, with `out` unchanged, with `Fault::Length` or `Fault::Overflow` when a length is wrong.
pub fn scores(isa: Isa, how: Product, q: &[f32], keys: &[f32], dim: usize, out: Out<'_>) -> Result<(), Fault> {
    let (tokens, len) = (q.len() / dim.max(1), keys.len() / dim.max(1));
    fault::matrix("keys", [len, dim], keys.len())?;
    if how == Product::Matrix {
        let how = How { isa, write: Write::Set, parallel: false };
        return product(how, q, [tokens, dim], keys, len, out);
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

/// Adds `Σ_j p[t, j] values[j]` to `out[t]` for values `[len, dim]` and `out` `[tokens, dim]`; rows of `p` are `stride`
/// apart. With [`Product::Vector`] values of probability 0 are left out. Fails, with `out` unchanged, with
/// `Fault::Length` or `Fault::Overflow` when a length is wrong.
pub fn add_weighted(
    isa: Isa,
    how: Product,
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
    if how == Product::Matrix {
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

/// `out[t] = Σ_j p[t, j] values[j]`, `p[t] = softmax over visible[t] of q[t] · keys[j]`; queries `[tokens, dim]` are
/// scaled already, keys and values are `[len, dim]`. Returns the range of keys that any token sees, and leaves `p` over
/// it in `probs` (`[tokens, range]`, 0 where a token sees nothing). Products are those of [`Product::of`] the tokens.
/// Long texts are best taken a block of tokens at a time, since keys that no token of the block sees are left out.
///
/// Fails, with the outputs unchanged, with `Fault::Length` or `Fault::Overflow` when a length is wrong, and with
/// `Fault::Range` when a range is reversed or goes past the keys.
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
    let how = Product::of(tokens);
    // What is not written below is filled with zeros.
    probs.resize(tokens * seen, 0.0);
    scores(isa, how, q, keys, dim, Out { data: probs, stride: seen })?;
    for (p, v) in probs.chunks_exact_mut(seen.max(1)).zip(visible) {
        p[..v.start - first].fill(0.0);
        p[v.end - first..].fill(0.0);
        vector::softmax(isa, &mut p[v.start - first..v.end - first]);
    }
    out.fill(0.0);
    add_weighted(isa, how, [probs, values], seen, dim, out)?;
    Ok(first..last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_definition(tokens in 1usize..20, len in 1usize..100, dim in 1usize..70, salt: u64) {
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
                for how in [Product::Vector, Product::Matrix] {
                    let mut parts = vec![0f32; tokens * dim];
                    for at in (0..seen.len()).step_by(7) {
                        let rows = (seen.start + at) * dim..(seen.start + (at + 7).min(seen.len())) * dim;
                        let mut again = vec![f32::NAN; tokens * seen.len()];
                        let out = Out { data: &mut again[at..], stride: seen.len() };
                        scores(isa, how, &q, &keys[rows.clone()], dim, out).unwrap();
                        add_weighted(isa, how, [&probs[at..], &values[rows]], seen.len(), dim, &mut parts).unwrap();
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
        for how in [Product::Vector, Product::Matrix] {
            let mut out = [0f32; 8];
            let mut cells = [0f32; 4];
            assert!(scores(Isa::SCALAR, how, &x[..7], &x, 4, place(&mut cells)).is_err());
            assert!(scores(Isa::SCALAR, how, &x, &x[..7], 4, place(&mut cells)).is_err());
            assert!(scores(Isa::SCALAR, how, &x, &x, 4, place(&mut cells[..3])).is_err());
            assert!(add_weighted(Isa::SCALAR, how, [&x[..3], &x], 2, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, how, [&x[..4], &x], 1, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, how, [&x[..4], &x[..7]], 2, 4, &mut out).is_err());
            assert!(add_weighted(Isa::SCALAR, how, [&x[..4], &x], 2, 4, &mut out[..7]).is_err());
            assert_eq!(add_weighted(Isa::SCALAR, how, [&x[..4], &x], 2, 4, &mut out), Ok(()));
        }
        assert!(run(&x[..3], 0..2) == short && run(&x[..4], 0..3) == far && run(&x[..4], 0..2) == Ok(0..2));
    }
}
