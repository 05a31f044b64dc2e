//! The best factors in a norm (Eckart and Young), and their storage.

use tersor_core::{Context, Error, Layout, LinearOp, MatView, Method, Result, StatSet};
use tersor_linalg::{cholesky, matmul, svd_truncated};
use tersor_operators::Factored;

use super::{Norm, Rank};

/// Columns beyond the rank that the randomized decomposition looks at, and its power iterations.
const OVERSAMPLE: usize = 16;
const POWER: usize = 3;

/// The smallest mean magnitude of a feature (arXiv 2402.02446, released code).
const SMALLEST: f64 = 1e-4;

/// Damping of a Gram matrix, as a share of its mean diagonal.
const DAMPING: f64 = 0.01;

/// `E ≈ up · down`.
#[derive(Clone, PartialEq, Debug)]
pub struct Factors {
    /// `[out_features, rank]`: singular vectors times values.
    pub up: Vec<f32>,
    /// `[rank, in_features]`.
    pub down: Vec<f32>,
    /// Directions that were kept.
    pub rank: usize,
}

/// The matrix `W` that a matrix is multiplied by before it is decomposed.
pub(crate) enum Weights {
    None,
    /// A factor for each feature.
    Diagonal(Vec<f64>),
    /// A lower triangle `[features, features]`.
    Triangle(Vec<f64>),
}

impl Weights {
    /// Returns the weights of a norm. Errors if the statistics lack what it needs.
    pub(crate) fn of(norm: Norm, stats: &StatSet) -> Result<Self> {
        Ok(match norm {
            Norm::Plain => Weights::None,
            Norm::Magnitude => {
                let channel = stats.require_channel()?;
                let a: Vec<f64> = channel.max_mean_abs.iter().map(|v| v.max(SMALLEST)).collect();
                let (min, max) = a.iter().fold((f64::MAX, SMALLEST), |(l, m), v| (l.min(*v), m.max(*v)));
                let scale = (min.min(max) * max).sqrt();
                Weights::Diagonal(a.into_iter().map(|v| v / scale).collect())
            }
            Norm::Gram => {
                let (gram, n) = (stats.require_gram()?, stats.features());
                let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n.max(1) as f64;
                let mut damped = gram.to_vec();
                let added = if mean > 0.0 { DAMPING * mean } else { 1.0 };
                (0..n).for_each(|i| damped[i * n + i] += added);
                Weights::Triangle(cholesky(&damped, n)?)
            }
        })
    }

    /// `E W`. Error when the features differ.
    fn weigh(&self, e: Vec<f64>, [rows, cols]: [usize; 2]) -> Result<Vec<f64>> {
        let fits = |found: usize, want: usize| match found == want {
            true => Ok(()),
            false => Err(Error::shape("features of the statistics", want, found)),
        };
        match self {
            Weights::None => Ok(e),
            Weights::Diagonal(s) => {
                fits(s.len(), cols)?;
                let mut e = e;
                for row in e.chunks_exact_mut(cols.max(1)) {
                    row.iter_mut().zip(s).for_each(|(v, s)| *v *= s);
                }
                Ok(e)
            }
            Weights::Triangle(l) => {
                fits(l.len(), cols * cols)?;
                matmul(&e, [rows, cols], l, cols)
            }
        }
    }

    /// `v W⁻¹` of each row.
    fn unweigh(&self, rows: &mut [f64], cols: usize) {
        match self {
            Weights::None => {}
            Weights::Diagonal(s) => {
                for row in rows.chunks_exact_mut(cols.max(1)) {
                    row.iter_mut().zip(s).for_each(|(v, s)| *v /= s);
                }
            }
            Weights::Triangle(l) => {
                for row in rows.chunks_exact_mut(cols.max(1)) {
                    for j in (0..cols).rev() {
                        let x = row[j] / l[j * cols + j];
                        row[j] = x;
                        row[..j].iter_mut().zip(&l[j * cols..]).for_each(|(v, l)| *v -= x * l);
                    }
                }
            }
        }
    }
}

/// The best factors of `e`, `[out_features, in_features]`, in a norm (Eckart and Young). `bits` is what a value of a factor will take, for
/// [`Rank::Bits`]. Error on a value that is not finite, on statistics of other features or without what the norm needs, or where the
/// decomposition does not converge.
pub fn factorize(
    e: &[f32],
    shape: [usize; 2],
    norm: Norm,
    rank: Rank,
    bits: f64,
    stats: &StatSet,
    cx: &Context,
) -> Result<Factors> {
    rank.check()?;
    let weights = Weights::of(norm, stats)?;
    decompose(e, shape, &weights, rank, bits, cx)
}

pub(crate) fn decompose(
    e: &[f32],
    shape: [usize; 2],
    weights: &Weights,
    rank: Rank,
    bits: f64,
    cx: &Context,
) -> Result<Factors> {
    let [rows, cols] = shape;
    let max = rank.max_rank(shape, bits);
    if max == 0 {
        return Ok(Factors { up: Vec::new(), down: Vec::new(), rank: 0 });
    }
    let weighted = weights.weigh(e.iter().map(|v| f64::from(*v)).collect(), shape)?;
    let total: f64 = weighted.iter().map(|v| v * v).sum();
    // Keyed by the shape: which matrix it is does not matter to a search for its range.
    let mut rng = cx.stream(&format!("low rank {rows} x {cols}"));
    let found = svd_truncated(&weighted, shape, max, OVERSAMPLE, POWER, &mut rng)?;
    let mut kept = max;
    if let Rank::Error { tolerance, .. } = rank {
        let mut rest = total;
        for (i, s) in found.s.iter().enumerate() {
            rest -= s * s;
            if rest.max(0.0) <= tolerance * tolerance * total {
                kept = i + 1;
                break;
            }
        }
    }
    let mut down = found.vt[..kept * cols].to_vec();
    weights.unweigh(&mut down, cols);
    let mut up = Vec::with_capacity(rows * kept);
    for row in found.u.chunks_exact(max) {
        up.extend(row[..kept].iter().zip(&found.s).map(|(u, s)| (u * s) as f32));
    }
    Ok(Factors { up, down: down.into_iter().map(|v| v as f32).collect(), rank: kept })
}

/// Returns the layout of the factors of a matrix `[rows, cols]` when `factors` stores them; an upper limit where the rank depends on the values.
pub(crate) fn factor_layout(factors: &dyn Method, rank: Rank, shape: [usize; 2]) -> Result<Layout> {
    let n = rank.max_rank(shape, bits_of(factors)?);
    let mut up = factors.layout([shape[0], n])?.nested("up");
    up.tensors.extend(factors.layout([n, shape[1]])?.nested("down").tensors);
    up.exact &= !matches!(rank, Rank::Error { .. });
    Ok(up)
}

/// Returns the bits that a value of a factor takes in a large matrix.
pub(crate) fn bits_of(factors: &dyn Method) -> Result<f64> {
    Ok(factors.layout([1024, 1024])?.bits()? as f64 / (1 << 20) as f64)
}

/// Stores factors as an operator.
pub(crate) fn compress_factors(
    factors: &dyn Method,
    found: &Factors,
    [rows, cols]: [usize; 2],
    cx: &Context,
) -> Result<Box<dyn LinearOp>> {
    let none = StatSet::none();
    let prepared = factors.prepare(&none, cx)?;
    let one = |values: &[f32], shape: [usize; 2]| {
        prepared.compress(&MatView::new(values, shape)?, 0..shape[0], cx).map(|done| done.op)
    };
    let (up, down) = (one(&found.up, [rows, found.rank])?, one(&found.down, [found.rank, cols])?);
    Ok(Box::new(Factored::new(up, down)?))
}
