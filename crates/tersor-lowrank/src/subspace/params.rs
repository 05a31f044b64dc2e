//! Parameters of matrices in spans of columns.

use std::ops::Range;

use tersor_core::{Check, Element, Error, IntoMat, LinearOp, Method, ParamError, Report, Result, StatSet};

/// Parameters, unchecked until `check`, of a matrix whose columns (input features) are cut into consecutive ranges, each compressed by its
/// own method, for example with more bits for the principal directions of the inputs (ResQ, arXiv 2412.14363). Ranges are added by
/// [`part`](Self::part); without any, `check` errors. By default the features are not divided into heads, and the damping with which the
/// error of a range is compensated in the ranges after it ([`damping`](Self::damping)) is 0.01.
///
/// ```
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
/// use tersor_core::*;
/// use tersor_groupwise::Rtn;
/// use tersor_lowrank::{Blocks, Subspaces, principal_rotation};
///
/// # fn main() -> Result<()> {
/// // Inputs of 64 features that vary most along two directions.
/// let (tokens, k) = (100, 64);
/// let x: Vec<f32> = (0..tokens * k).map(|i| ((i % k + 1) as f32 * (i / k) as f32).sin() * if i % k < 2 { 9.0 } else { 1.0 }).collect();
/// let mut stats = StatSet::new(k, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&x, [tokens, k])?)?;
/// // An eighth of the directions, the last, at 8 bits.
/// let rotation = principal_rotation(stats.require_gram()?, &Blocks::random(&[56, 8], &mut ChaCha8Rng::seed_from_u64(0))?)?;
/// let rtn = |bits| Ok::<_, Error>(Box::new(Rtn::new().bits(bits).check()?));
/// let method = Subspaces::new().part(0.875, rtn(4)?).part(0.125, rtn(8)?);
/// let mut weights: Vec<f32> = (0..32 * k).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
/// rotation.forward(tersor_core::Isa::detect(), &mut weights);
/// let (op, _) = method.quantize(&MatView::new(&weights, [32, k])?, &StatSet::none())?;
/// // For inputs that are not rotated.
/// let op = tersor_operators::Rotated::new(rotation, op)?;
/// assert_eq!(op.shape(), [32, k]);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Subspaces {
    parts: Vec<(f64, Box<dyn Method>)>,
    heads: Option<usize>,
    damping: Option<f64>,
}

impl Subspaces {
    /// Returns parameters without ranges of columns; [`part`](Self::part) adds them, and `check` errors if there are none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a range of columns (input features) after those that were added before: the fraction `share` of all columns, rounded to
    /// whole columns, is compressed by `method`. A range that is rounded to no column is left out. `check` errors unless every share is
    /// finite and above 0 and all shares add to 1 (to 1e-6).
    pub fn part(mut self, share: f64, method: Box<dyn Method>) -> Self {
        self.parts.push((share, method));
        self
    }

    /// Divides the columns (input features) among `heads` heads, 1 by default: the shares of [`part`](Self::part) are then fractions of the
    /// columns of one head, rounded to whole columns, and each range holds its share of every head. The columns must come in this order:
    /// the first share of head 0, of head 1 and so on, then the second share of each head. `check` errors if `heads` is 0; compressing
    /// errors if the number of columns is not a multiple of it.
    pub fn heads(self, heads: usize) -> Self {
        Self { heads: Some(heads), ..self }
    }

    /// Sets the damping with which the error of a range of columns is compensated in the ranges after it: the fraction of the mean diagonal
    /// of the inputs' Gram matrix that is added to its diagonal. 0.01 by default. `check` errors unless it is finite and above 0.
    pub fn damping(self, damping: f64) -> Self {
        Self { damping: Some(damping), ..self }
    }

    /// Checks the parameters and compresses `w`, `[out_features, in_features]`. `stats` are the statistics of the inputs that `w` is
    /// multiplied with; [`StatSet::none`] suffices if no method needs any. Returns a [`Split`](tersor_operators::Split) (the compressed
    /// ranges of columns side by side) and a report of the errors. Errors if a parameter is out of range, `in_features` is not a multiple
    /// of the number of heads that [`heads`](Self::heads) sets, `stats` lack what a method needs, statistics that are needed have another
    /// number of features than `w`, the Gram matrix is not positive definite with the damping, a weight is not finite, or a method errors.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

/// Checked parameters of a matrix whose ranges of columns have methods of their own, made by `check` of [`Subspaces`], and the [`Method`]
/// that compresses with them.
///
/// If at least one of the methods needs statistics of the inputs, and the given statistics have a Gram matrix, errors are compensated
/// across ranges: each range is compressed with the Gram matrix conditioned on the ranges after it (a Schur complement), and then the
/// columns of those later ranges are changed to make up for its error. With GPTQ for every range, this is GPTQ over all columns with a
/// separate grid for each range (arXiv 2412.14363, section 4.1).
pub struct CheckedSubspaces {
    pub(super) parts: Vec<(f64, Box<dyn Method>)>,
    pub(super) heads: usize,
    pub(super) damping: f64,
}

impl Check for Subspaces {
    type Checked = CheckedSubspaces;
    fn check(self) -> Result<CheckedSubspaces, ParamError> {
        let shares: Vec<f64> = self.parts.iter().map(|p| p.0).collect();
        let rule = "must be above 0 and add to 1";
        let sum: f64 = shares.iter().sum();
        if shares.iter().any(|s| !s.is_finite() || *s <= 0.0) || (sum - 1.0).abs() > 1e-6 {
            return Err(ParamError::new("shares", format!("{shares:?}"), rule));
        }
        let damping = self.damping.unwrap_or(0.01);
        if !damping.is_finite() || damping <= 0.0 {
            return Err(ParamError::new("damping", damping, "must be finite and above 0"));
        }
        let heads = self.heads.unwrap_or(1);
        if heads == 0 {
            return Err(ParamError::new("heads", heads, "must be at least 1"));
        }
        Ok(CheckedSubspaces { parts: self.parts, heads, damping })
    }
}

/// Returns the number of features of each subspace, in order: `features` times its share, rounded so that the numbers add to `features` if
/// the shares add to 1. Each number then differs from its exact share by less than 1. Shares are not checked. A share of 0 or less gives 0,
/// and a negative one also lowers the numbers after it. From a NaN on, all numbers are 0. The numbers never add to more than `features`:
/// where the shares add to more than 1, the last ones are cut.
///
/// ```
/// assert_eq!(tersor_lowrank::widths([0.875, 0.125], 60), [53, 7]);
/// ```
pub fn widths(shares: impl IntoIterator<Item = f64>, features: usize) -> Vec<usize> {
    let (mut sum, mut before) = (0f64, 0);
    let width = |share: f64| {
        sum += share;
        let end = ((sum * features as f64).round() as usize).clamp(before, features);
        end - std::mem::replace(&mut before, end)
    };
    shares.into_iter().map(width).collect()
}

impl CheckedSubspaces {
    /// Returns the index of each part and its columns; parts whose share is below half a feature are left out. Errors unless the number of features
    /// is a multiple of the heads.
    pub(super) fn spans(&self, features: usize) -> Result<Vec<(usize, Range<usize>)>> {
        if !features.is_multiple_of(self.heads) {
            return Err(Error::shape("features of heads", format!("a multiple of {}", self.heads), features));
        }
        let widths = widths(self.parts.iter().map(|p| p.0), features / self.heads);
        let (mut at, mut spans) = (0, Vec::new());
        for (part, width) in widths.into_iter().enumerate().filter(|(_, width)| *width > 0) {
            let end = at + width * self.heads;
            spans.push((part, at..end));
            at = end;
        }
        Ok(spans)
    }
}
