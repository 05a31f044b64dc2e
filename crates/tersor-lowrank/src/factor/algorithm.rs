//! The best factors of a matrix in a norm (Eckart and Young), by a truncated singular value decomposition.

use tersor_core::{Context, Error, ParamError, Result, StatSet};
use tersor_linalg::{cholesky, matmul, svd_truncated};

use super::{Norm, Rank};

/// Number of columns beyond the rank in the randomized decomposition.
const OVERSAMPLE: usize = 16;

/// Number of power iterations of the randomized decomposition.
const POWER: usize = 3;

/// Lower bound of the mean magnitude of a feature (arXiv 2402.02446, released code).
const MIN_MAGNITUDE: f64 = 1e-4;

/// Damping of a Gram matrix, as a share of its mean diagonal.
const DAMPING: f64 = 0.01;

/// Two low-rank factors of a matrix `E`, `[out_features, in_features]`: `E ≈ up · down`. Made by [`factorize`].
#[derive(Clone, PartialEq, Debug)]
pub struct Factors {
    /// The left factor of `E ≈ up · down`, `[out_features, rank]` row-major, where `E`, `[out_features, in_features]`, is the matrix that was
    /// factored: the left singular vectors of `E S` as columns, multiplied by the singular values. `S` is the matrix that weights the input
    /// features in the norm `‖E S‖` ([`Norm`]), the identity for [`Norm::Plain`].
    pub up: Vec<f32>,
    /// The right factor of `E ≈ up · down`, `[rank, in_features]` row-major, where `E`, `[out_features, in_features]`, is the matrix that was
    /// factored: the right singular vectors of `E S` as rows, multiplied by `S⁻¹` from the right. `S` is the matrix that weights the input
    /// features in the norm `‖E S‖` ([`Norm`]), the identity for [`Norm::Plain`].
    pub down: Vec<f32>,
    /// The rank of the factorization `up · down`: the number of columns of the left factor `up` and of rows of the right factor `down`.
    pub rank: usize,
}

/// The matrix `S`, `[features, features]`, of a norm `‖E S‖`: what is decomposed is `E S`.
pub(crate) enum Weights {
    /// The identity.
    None,
    /// A diagonal matrix: one factor for each feature.
    Diagonal(Vec<f64>),
    /// A lower triangular matrix, row-major.
    Triangle(Vec<f64>),
}

impl Weights {
    /// Returns the matrix of a norm. Errors if the statistics lack what it needs, or the damped Gram matrix has no Cholesky factor.
    pub(crate) fn of(norm: Norm, stats: &StatSet) -> Result<Self> {
        Ok(match norm {
            Norm::Plain => Weights::None,
            Norm::Magnitude => {
                let channel = stats.require_channel()?;
                let a: Vec<f64> = channel.max_mean_abs.iter().map(|v| v.max(MIN_MAGNITUDE)).collect();
                let (min, max) = a.iter().fold((f64::MAX, MIN_MAGNITUDE), |(l, m), v| (l.min(*v), m.max(*v)));
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

    /// Returns `E S` of `e`, `[rows, cols]`. Errors if the statistics are of another number of features.
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

    /// Replaces each row `v` of `rows`, `[n, cols]`, by `v S⁻¹`.
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

/// Returns the factors `up`, `[out_features, rank]`, and `down`, `[rank, in_features]`, whose product approximates the matrix `e` best in
/// the norm `norm` (Eckart and Young). `e` is row-major and has the `shape` `[out_features, in_features]`. `rank` says how many singular
/// directions are kept; a number above `min(out_features, in_features)` counts as this minimum. The rank of an empty matrix is 0. `bits` is
/// the number of bits in which one value of a factor will be stored; only [`Rank::Bits`] uses it. `stats` are the statistics of the inputs,
/// of `in_features` features, that the norm needs; [`StatSet::none`] suffices for [`Norm::Plain`]. Ranks far below
/// `min(out_features, in_features)` use a randomized decomposition, whose draws depend only on the seed of `cx` and on the shape.
///
/// Errors if a number in `rank` is out of range ([`Rank::check`]), or if `bits` is not finite and above 0 (also where it is not used).
/// Errors if `stats` lack what the norm needs, or if statistics that are needed have another number of features. Errors if the length of
/// `e` does not match the shape, or if a value is not finite. Errors if the damped Gram matrix of [`Norm::Gram`] is not positive definite,
/// or if the decomposition does not converge.
///
/// ```
/// use tersor_lowrank::{Context, Norm, Rank, StatSet, factorize};
/// # fn main() -> tersor_lowrank::Result<()> {
/// // An outer product has rank 1.
/// let e: Vec<f32> = [1.0f32, -2.0, 3.0].iter().flat_map(|r| [4.0f32, 5.0].map(|c| r * c)).collect();
/// let found = factorize(&e, [3, 2], Norm::Plain, Rank::Fixed(1), 16.0, &StatSet::none(), &Context::new())?;
/// assert_eq!((found.rank, found.up.len(), found.down.len()), (1, 3, 2));
/// assert!((found.up[2] * found.down[1] - 15.0).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
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

/// Returns the best factors of `e` as [`factorize`], with the matrix of the norm and a checked rank.
pub(crate) fn decompose(
    e: &[f32],
    shape: [usize; 2],
    weights: &Weights,
    rank: Rank,
    bits: f64,
    cx: &Context,
) -> Result<Factors> {
    let [rows, cols] = shape;
    if tersor_core::view::elements(shape)? != e.len() {
        return Err(Error::shape("values of a matrix to factor", shape, e.len()));
    }
    if !(bits.is_finite() && bits > 0.0) {
        return Err(ParamError::new("bits", bits, "must be finite and above 0").into());
    }
    let max = rank.max_rank(shape, bits);
    if max == 0 {
        return Ok(Factors { up: Vec::new(), down: Vec::new(), rank: 0 });
    }
    let weighted = weights.weigh(e.iter().map(|v| f64::from(*v)).collect(), shape)?;
    let total: f64 = weighted.iter().map(|v| v * v).sum();
    // Draws are keyed by the shape alone: they need not differ between matrices.
    let mut rng = cx.stream(&format!("low rank {rows} x {cols}"));
    let found = svd_truncated(&weighted, shape, max, OVERSAMPLE, POWER, &mut rng)?;
    let mut chosen = max;
    if let Rank::Error { tolerance, .. } = rank {
        let mut rest = total;
        for (i, s) in found.s.iter().enumerate() {
            rest -= s * s;
            if rest.max(0.0) <= tolerance * tolerance * total {
                chosen = i + 1;
                break;
            }
        }
    }
    let mut down = found.vt[..chosen * cols].to_vec();
    weights.unweigh(&mut down, cols);
    let mut up = Vec::with_capacity(rows * chosen);
    for row in found.u.chunks_exact(max) {
        up.extend(row[..chosen].iter().zip(&found.s).map(|(u, s)| (u * s) as f32));
    }
    Ok(Factors { up, down: down.into_iter().map(|v| v as f32).collect(), rank: chosen })
}
