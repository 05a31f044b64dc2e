//! Scaled dot-product attention of one head.

use std::ops::Range;

use crate::dense::{How, Out, Write, product, product_plain};
use crate::{Fault, Isa, fault, vector};

/// Number of queries below which each is multiplied with one key or value at a time: a product of matrices is not worth
/// its start.
pub const FEW: usize = 4;

/// Rows that [`attend_few`] reads at once.
const READ: usize = 32;

/// `out[t] = Σ_j p[t, j] values[j]`, `p[t] = softmax over visible[t] of q[t] · keys[j]`; queries `[tokens, dim]` are
/// scaled already, keys and values are `[len, dim]`. Returns the range of keys that any token sees, and leaves `p` over
/// it in `probs` (`[tokens, range]`, 0 where a token sees nothing). Products of matrices are those of the `gemm` crate,
/// which chooses its own instruction set. Long texts are best taken a block of tokens at a time, since keys that no
/// token of the block sees are left out.
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
    check([q.len(), out.len()], [len, dim], visible)?;
    fault::matrix("keys", [len, dim], keys.len())?;
    fault::matrix("values", [len, dim], values.len())?;
    let first = visible.iter().map(|v| v.start).min().unwrap_or(0);
    let last = visible.iter().map(|v| v.end).max().unwrap_or(0).max(first);
    let (keys, values, seen) = (&keys[first * dim..last * dim], &values[first * dim..last * dim], last - first);
    let cut = |v: &Range<usize>| v.start - first..v.end - first;
    // What is not written below is filled with zeros.
    probs.resize(tokens * seen, 0.0);
    let matrices = tokens >= FEW;
    if matrices {
        let how = How { isa, write: Write::Set, parallel: false };
        product(how, q, [tokens, dim], keys, seen, Out { data: probs, stride: seen })?;
    } else {
        out.fill(0.0);
    }
    for (t, (p, v)) in probs.chunks_exact_mut(seen.max(1)).zip(visible).enumerate() {
        p[..v.start - first].fill(0.0);
        p[v.end - first..].fill(0.0);
        if !matrices {
            for j in cut(v) {
                p[j] = vector::dot(isa, &q[t * dim..][..dim], &keys[j * dim..][..dim]);
            }
        }
        vector::softmax(isa, &mut p[cut(v)]);
        if !matrices {
            for j in cut(v) {
                vector::axpy(isa, p[j], &values[j * dim..][..dim], &mut out[t * dim..][..dim]);
            }
        }
    }
    if matrices {
        product_plain(probs, [tokens, seen], values, dim, out)?;
    }
    Ok(first..last)
}

/// Fails unless queries and output, of these lengths, have a row for each token, and ranges lie inside the keys.
fn check([queries, out]: [usize; 2], [len, dim]: [usize; 2], visible: &[Range<usize>]) -> Result<(), Fault> {
    fault::matrix("queries", [visible.len(), dim], queries)?;
    fault::matrix("output", [visible.len(), dim], out)?;
    for v in visible {
        fault::at_most("end of a range of visible keys", len, v.end)?;
        fault::at_most("start of a range of visible keys", v.end, v.start)?;
    }
    Ok(())
}

/// Rows that are made as they are needed: `read(rows, out)` writes those of a range, `[rows, dim]`.
pub type ReadRows<'a> = dyn Fn(Range<usize>, &mut [f32]) + Sync + 'a;

/// [`attend`] of a few queries to `len` keys and values that are kept in some other form than f32: they are read once
/// for all queries, so many at a time as stay in the cache. The results are those of `attend` with fewer than [`FEW`]
/// queries, to the bit. Fails, with the outputs unchanged, with `Fault::Length` or `Fault::Overflow` when a length is
/// wrong, and with `Fault::Range` when a range is reversed or goes past the keys.
pub fn attend_few(
    isa: Isa,
    q: &[f32],
    [keys, values]: [&ReadRows<'_>; 2],
    [len, dim]: [usize; 2],
    visible: &[Range<usize>],
    probs: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<Range<usize>, Fault> {
    check([q.len(), out.len()], [len, dim], visible)?;
    let first = visible.iter().map(|v| v.start).min().unwrap_or(0);
    let last = visible.iter().map(|v| v.end).max().unwrap_or(0).max(first);
    let seen = last - first;
    probs.clear();
    probs.resize(visible.len() * seen, 0.0);
    out.fill(0.0);
    let mut rows = vec![0f32; READ.min(seen) * dim];
    // What query `t` sees of a run of rows, counted from the first row of the run.
    let cut = |run: &Range<usize>, v: &Range<usize>| {
        let start = v.start.clamp(run.start, run.end);
        start - run.start..v.end.clamp(start, run.end) - run.start
    };
    let runs = || (first..last).step_by(READ).map(|at| at..(at + READ).min(last));
    for run in runs() {
        let rows = &mut rows[..run.len() * dim];
        keys(run.clone(), rows);
        for ((q, p), v) in q.chunks_exact(dim.max(1)).zip(probs.chunks_exact_mut(seen)).zip(visible) {
            for j in cut(&run, v) {
                p[run.start - first + j] = vector::dot(isa, q, &rows[j * dim..][..dim]);
            }
        }
    }
    for (p, v) in probs.chunks_exact_mut(seen.max(1)).zip(visible) {
        vector::softmax(isa, &mut p[v.start - first..v.end - first]);
    }
    for run in runs() {
        let rows = &mut rows[..run.len() * dim];
        values(run.clone(), rows);
        for ((out, p), v) in out.chunks_exact_mut(dim.max(1)).zip(probs.chunks_exact(seen)).zip(visible) {
            for j in cut(&run, v) {
                vector::axpy(isa, p[run.start - first + j], &rows[j * dim..][..dim], out);
            }
        }
    }
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
                let read = |x: &[f32], rows: Range<usize>, out: &mut [f32]| out.copy_from_slice(&x[rows.start * dim..rows.end * dim]);
                let [of_keys, of_values] = [&keys, &values].map(|x| move |rows: Range<usize>, out: &mut [f32]| read(x, rows, out));
                let (mut few_probs, mut few) = (Vec::new(), vec![f32::NAN; tokens * dim]);
                let range = attend_few(isa, &q, [&of_keys, &of_values], [len, dim], &visible, &mut few_probs, &mut few).unwrap();
                prop_assert_eq!(&range, &seen);
                prop_assert!(few.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                if tokens < FEW {
                    prop_assert!(few == out && few_probs == probs);
                }
                for (p, v) in probs.chunks(seen.len()).zip(&visible) {
                    let v = v.start - seen.start..v.end - seen.start;
                    prop_assert!((p[v.clone()].iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    prop_assert!(p[..v.start].iter().chain(&p[v.end..]).all(|p| *p == 0.0));
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let (x, mut out, mut probs) = ([1.0f32; 8], [0f32; 4], Vec::new());
        let mut run =
            |q: &[f32], visible: Range<usize>| attend(Isa::SCALAR, [q, &x, &x], 4, &[visible], &mut probs, &mut out);
        let still: &ReadRows<'_> = &|_, _| {};
        let few = |q: &[f32], v: Range<usize>| {
            attend_few(Isa::SCALAR, q, [still, still], [2, 4], &[v], &mut Vec::new(), &mut [0f32; 4])
        };
        let short = Err(Fault::Length { what: "queries", expected: 4, found: 3 });
        let far = Err(Fault::Range { what: "end of a range of visible keys", limit: 2, found: 3 });
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = few(&x[..4], 2..1);
        assert_eq!(reversed, Err(Fault::Range { what: "start of a range of visible keys", limit: 1, found: 2 }));
        assert!(few(&x[..3], 0..2) == short && few(&x[..4], 0..3) == far && few(&x[..4], 1..1) == Ok(1..1));
        assert!(run(&x[..3], 0..2) == short && run(&x[..4], 0..3) == far && run(&x[..4], 0..2) == Ok(0..2));
    }
}
